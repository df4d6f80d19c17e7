//! Open files that another process has opened for a device of this one: a guest's process is
//! confined to the files that its guest has when it starts, and a device that is attached later
//! needs others.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The files; equal only to themselves.
#[derive(Debug, Clone)]
pub(super) struct HandedFiles(Arc<[Arc<File>]>);

impl HandedFiles {
    /// The files of a device, in an order that depends on its kind.
    pub(super) fn new(files: Vec<File>) -> Self {
        Self(files.into_iter().map(Arc::new).collect())
    }

    /// Returns the files.
    pub(super) fn files(&self) -> &[Arc<File>] {
        &self.0
    }
}

impl PartialEq for HandedFiles {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for HandedFiles {}

/// Returns the path without links at which `file` was opened.
///
/// # Errors
/// If it is not there any more.
pub(super) fn path_of(file: &File) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;

    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let (here, there) = (file.metadata()?, std::fs::metadata(&path)?);
    if (here.dev(), here.ino()) != (there.dev(), there.ino()) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it was replaced or removed"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_path_at_which_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("disk");
        let file = File::create(&path).unwrap();
        assert_eq!(path_of(&file).unwrap(), path);
        let moved = folder.path().canonicalize().unwrap().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(path_of(&file).unwrap(), moved);
        std::fs::remove_file(&moved).unwrap();
        assert!(path_of(&file).is_err());
        assert!(path_of(&tempfile::tempfile().unwrap()).is_err());
    }
}
