//! Where arriving guests may have disks on this host: nowhere, unless the node's operator permits
//! it.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The places that `--disk-dir` and `--disk-device` permit.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskPlaces {
    folders: Vec<PathBuf>,
    devices: Vec<PathBuf>,
}

impl DiskPlaces {
    /// Permits these folders and everything below them, in which disks may also be created, and
    /// these block devices.
    pub(crate) fn new(folders: Vec<PathBuf>, devices: Vec<PathBuf>) -> Self {
        Self { folders, devices }
    }

    /// Checks the node's options, so that a mistake shows at its start. A device that does not
    /// exist is only warned of: it may appear later.
    ///
    /// # Errors
    /// If one of `folders` is not a folder, or one of `devices` exists and is not a block device.
    pub(crate) fn open(folders: &[PathBuf], devices: &[PathBuf]) -> Result<Self> {
        // The path must not be relative: guests' processes may have another working directory.
        let folder = |path: &PathBuf| {
            let refused = || format!("cannot use --disk-dir {}", path.display());
            let found = path.canonicalize().with_context(refused)?;
            if found.is_dir() { Ok(found) } else { bail!("{}: not a folder", refused()) }
        };
        for device in devices {
            match device.metadata() {
                Err(error) => {
                    tracing::warn!(device = %device.display(), %error, "--disk-device is not there yet");
                }
                Ok(found) if !found.file_type().is_block_device() => {
                    bail!("cannot use --disk-device {}: not a block device", device.display())
                }
                Ok(_) => {}
            }
        }
        Ok(Self::new(folders.iter().map(folder).collect::<Result<_>>()?, devices.to_vec()))
    }

    /// Returns the permitted folders.
    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Checks whether a guest may use the disk `path`, which a peer has named.
    ///
    /// # Errors
    /// If it may not; the message says what to do.
    pub(crate) fn permit(&self, path: &Path) -> Result<(), String> {
        let found = path.canonicalize().ok();
        let is_it = |device: &PathBuf| {
            device == path || found.is_some() && device.canonicalize().ok() == found
        };
        if self.devices.iter().any(is_it) { Ok(()) } else { self.place(path).map(drop) }
    }

    /// Returns where to create a disk that a peer wants at `path`: the same place, with links
    /// resolved.
    ///
    /// # Errors
    /// If it may not be created there; the message says what to do.
    pub(crate) fn place(&self, path: &Path) -> Result<PathBuf, String> {
        // The peer chose this text, and it goes to the log.
        let shown = path.to_string_lossy().escape_debug().to_string();
        if self.folders.is_empty() && self.devices.is_empty() {
            return Err(format!(
                "the destination takes no disks: start its node with --disk-dir and the folder for {shown}, or with --disk-device {shown} \
                 if that is a block device; without shared storage, also give --copy-disks"
            ));
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(format!("{shown} cannot be a disk"));
        };
        // Resolving links first keeps a link in a permitted folder from leading out of it. For
        // other places the answer does not reveal to a peer whether the path exists.
        let mut above = folder.ancestors().filter_map(|folder| folder.canonicalize().ok());
        let nearest = above.next().unwrap_or_default();
        if !path.is_absolute() || !self.is_permitted(&nearest) {
            let places = self.folders.iter().chain(&self.devices);
            let places: Vec<_> = places.map(|place| place.display().to_string()).collect();
            return Err(format!(
                "the destination takes disks in {} and nowhere else, and {shown} is not there: start its node with another \
                 --disk-dir or --disk-device, or choose another place for a disk that is copied (--copy-disks, --disk-path)",
                places.join(", ")
            ));
        }
        let found = folder.canonicalize().map_err(|error| {
            format!(
                "there is no folder for disk {shown} here: {}: {error}; make it, or choose another place for a disk that is \
                 copied (--copy-disks, --disk-path)",
                folder.to_string_lossy().escape_debug()
            )
        })?;
        // The folder may have become a link meanwhile.
        if !self.is_permitted(&found) {
            return Err(format!("the folder of disk {shown} has changed: try again"));
        }
        Ok(found.join(name))
    }

    /// Whether `folder`, a path without links, is a permitted folder or is below one.
    fn is_permitted(&self, folder: &Path) -> bool {
        let holds = |own: &PathBuf| own.canonicalize().is_ok_and(|own| folder.starts_with(own));
        self.folders.iter().any(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_created_only_in_permitted_folders() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for folder in ["in/below", "out"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("out"), root.join("in/link")).unwrap();
        std::os::unix::fs::symlink(root.join("in"), root.join("alias")).unwrap();
        let folders = DiskPlaces::new(vec![root.join("alias")], Vec::new());
        let place = |path: &str| folders.place(&root.join(path));
        assert_eq!(place("in/a.raw"), Ok(root.join("in/a.raw")));
        assert_eq!(place("alias/below/a.raw"), Ok(root.join("in/below/a.raw")));
        for outside in ["out/a.raw", "in/link/a.raw", "in/../out/a.raw"] {
            assert!(place(outside).unwrap_err().contains("--disk-dir"), "{outside}");
        }
        assert!(place("in/nowhere/a.raw").unwrap_err().contains("no folder"));
        let words = |path: &str| place(path).unwrap_err().replace(path, "PATH");
        assert_eq!(
            words("out/nowhere/a.raw"),
            words("out/a.raw"),
            "a peer is not told what is there"
        );
        assert!(place("in/..").is_err());
        assert!(folders.place(Path::new("/")).is_err());
        assert!(folders.place(Path::new("a.raw")).is_err());
        let none = DiskPlaces::default().place(&root.join("in/a.raw")).unwrap_err();
        assert!(none.contains("takes no disks"), "{none}");
    }

    #[test]
    fn disk_options_refuse_a_file_as_folder_and_a_folder_as_device() {
        let root = tempfile::tempdir().unwrap();
        let (folder, file) = (root.path().to_owned(), root.path().join("web.raw"));
        std::fs::write(&file, "").unwrap();
        let refused = |folders: &[_], devices: &[_]| {
            format!("{:#}", DiskPlaces::open(folders, devices).unwrap_err())
        };
        let complaint = refused(std::slice::from_ref(&file), &[]);
        assert!(
            complaint.contains("--disk-dir") && complaint.contains("not a folder"),
            "{complaint}"
        );
        for none in [&folder, &file] {
            let complaint = refused(&[], std::slice::from_ref(none));
            assert!(
                complaint.contains("--disk-device") && complaint.contains("not a block device"),
                "{complaint}"
            );
        }
        let comes_later = [root.path().join("sdz")];
        DiskPlaces::open(std::slice::from_ref(&folder), &comes_later).unwrap();
    }

    #[test]
    fn a_device_is_permitted_by_any_of_its_names_and_permits_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (device, other, link) =
            (root.path().join("sdb"), root.path().join("sda"), root.path().join("by-id"));
        for file in [&device, &other] {
            std::fs::write(file, "").unwrap();
        }
        std::os::unix::fs::symlink(&device, &link).unwrap();
        for (listed, named) in [(&device, &device), (&device, &link), (&link, &device)] {
            DiskPlaces::new(Vec::new(), vec![listed.clone()]).permit(named).unwrap();
        }
        let places = DiskPlaces::new(Vec::new(), vec![device.clone()]);
        let refused = places.permit(&other).unwrap_err();
        assert!(
            refused.contains("sdb and nowhere else") && refused.contains("--disk-device"),
            "{refused}"
        );
        assert!(places.place(&device).is_err(), "it is not made");
    }
}
