//! Where on this host disks may be made that come with guests: nowhere, unless the node's operator has said so.

use std::path::{Path, PathBuf};

/// The folders of `--disk-dir`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskFolders(Vec<PathBuf>);

impl DiskFolders {
    /// These folders and everything below them.
    pub(crate) fn new(folders: &[PathBuf]) -> Self {
        Self(folders.to_vec())
    }

    /// Where a disk that a peer wants at `path` goes: the same place, without links.
    ///
    /// # Errors
    /// It may not be made there, with the way out.
    pub(crate) fn place(&self, path: &Path) -> Result<PathBuf, String> {
        let shown = path.display();
        if self.0.is_empty() {
            return Err(format!(
                "this host takes no disks: start its node with --disk-dir and the folder for {shown}"
            ));
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(format!("{shown} is no place for a disk"));
        };
        let found = folder.canonicalize().map_err(|error| {
            format!(
                "there is no folder for disk {shown} here: {}: {error}; choose another place with --disk-path",
                folder.display()
            )
        })?;
        // Links in a permitted folder do not lead out of it.
        let permitted = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| found.starts_with(dir));
        if !path.is_absolute() || !self.0.iter().any(permitted) {
            let folders: Vec<_> = self.0.iter().map(|dir| dir.display().to_string()).collect();
            return Err(format!(
                "this host takes disks in {} alone, not {shown}: choose another place with --disk-path, or start its node with \
                 another --disk-dir",
                folders.join(", ")
            ));
        }
        Ok(found.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_made_in_permitted_folders_alone() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for folder in ["in/below", "out"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("out"), root.join("in/link")).unwrap();
        std::os::unix::fs::symlink(root.join("in"), root.join("alias")).unwrap();
        let folders = DiskFolders::new(&[root.join("alias")]);
        let place = |path: &str| folders.place(&root.join(path));
        assert_eq!(place("in/a.raw"), Ok(root.join("in/a.raw")));
        assert_eq!(place("alias/below/a.raw"), Ok(root.join("in/below/a.raw")));
        for outside in ["out/a.raw", "in/link/a.raw", "in/../out/a.raw"] {
            assert!(place(outside).unwrap_err().contains("--disk-dir"), "{outside}");
        }
        assert!(place("in/nowhere/a.raw").unwrap_err().contains("no folder"));
        assert!(place("in/..").is_err());
        assert!(folders.place(Path::new("/")).is_err());
        assert!(folders.place(Path::new("a.raw")).is_err());
        let none = DiskFolders::default().place(&root.join("in/a.raw")).unwrap_err();
        assert!(none.contains("takes no disks"), "{none}");
    }
}
