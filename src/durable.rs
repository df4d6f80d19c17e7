//! Small files that are replaced whole: a reader finds the old one or the new one, also after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// Replaces the file at `path`; it is on disk when this returns.
///
/// # Errors
/// The file system refuses.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    replace(path, &to_text(path, value)?)
}

/// As [`write_json`], without waiting for the disk: for what is of no use after a crash of the host.
///
/// # Errors
/// The file system refuses.
pub(crate) fn write_json_unflushed(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = to_text(path, value)?;
    write_beside(path, &text)
        .and_then(|_| fs::rename(beside(path), path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// As [`write_json`], for any bytes. The file is this user's alone.
///
/// # Errors
/// The file system refuses.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    try_replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file that may be there.
///
/// # Errors
/// The file system refuses.
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

fn try_replace(path: &Path, text: &[u8]) -> io::Result<()> {
    write_beside(path, text)?.sync_all()?;
    fs::rename(beside(path), path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Writes `text` where it does not count yet.
fn write_beside(path: &Path, text: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = regular_file::open(&beside(path), &mut options)?;
    file.write_all(text)?;
    Ok(file)
}

/// The name under which a file is written before it replaces `path`: no suffix that anybody looks for.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
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
