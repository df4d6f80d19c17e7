//! Small files that are replaced whole: a reader finds the old one or the new one, also after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Replaces the file at `path`; it is on disk when this returns.
///
/// # Errors
/// The file system refuses.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .with_context(|| format!("cannot write {}", path.display()))?;
    text.push(b'\n');
    replace(path, &text)
}

/// As [`write_json`], for any bytes. The file is this user's alone.
///
/// # Errors
/// The file system refuses.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    try_replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn try_replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = regular_file::open(&temporary, &mut options)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
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
