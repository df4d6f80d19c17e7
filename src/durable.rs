//! Small files that are replaced atomically: a reader finds the old content or the new one, even
//! after a crash.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Replaces the file at `path` with `value` as JSON; the file is on disk when this returns.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    replace(path, &to_text(path, value)?)
}

/// Like [`write_json`], without waiting for the disk: for data that is useless after the host
/// crashes.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_json_unflushed(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = to_text(path, value)?;
    regular_file::replace_unflushed(path, &text)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Like [`write_json`], for any bytes. Only this user may read the file.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    regular_file::replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file that may not exist.
///
/// # Errors
/// If the file exists and cannot be removed.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn to_text(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .with_context(|| format!("cannot write {}", path.display()))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_whole_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.json");
        write_json(&path, &"a long first text").unwrap();
        write_json(&path, &1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_the_file_that_cannot_be_written() {
        let message =
            format!("{:#}", write_json(Path::new("/proc/nowhere/x.json"), &1).unwrap_err());
        assert!(message.contains("/proc/nowhere/x.json"), "{message}");
    }
}
