//! `--disk PATH[,ro][,serial=TEXT]`.

use std::path::PathBuf;
use std::str::FromStr;

/// What the guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskAccess {
    /// Read and write.
    ReadWrite,
    /// Read.
    ReadOnly,
}

/// A disk as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    /// The file or block device.
    pub(crate) path: PathBuf,
    /// What the guest may do with it.
    pub(crate) access: DiskAccess,
    /// Serial number; empty when none was given.
    pub(crate) serial: String,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = PathBuf::from(parts.next().unwrap_or_default());
        if path.as_os_str().is_empty() {
            return Err("a disk needs a path".to_owned());
        }
        let mut disk = Self { path, access: DiskAccess::ReadWrite, serial: String::new() };
        for option in parts {
            match option.split_once('=') {
                None if option == "ro" => disk.access = DiskAccess::ReadOnly,
                Some(("serial", serial)) => disk.serial = serial.to_owned(),
                _ => return Err(format!("`{option}` is no option of a disk: ro, serial=TEXT")),
            }
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_with_options() {
        let disk: DiskArg = "/d/a.raw,ro,serial=a-1".parse().unwrap();
        assert_eq!((disk.access, disk.serial.as_str()), (DiskAccess::ReadOnly, "a-1"));
        let plain: DiskArg = "a.raw".parse().unwrap();
        assert_eq!((plain.path, plain.access), (PathBuf::from("a.raw"), DiskAccess::ReadWrite));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!("".parse::<DiskArg>().unwrap_err().contains("path"));
        assert!("a.raw,rw".parse::<DiskArg>().unwrap_err().contains("`rw`"));
        assert!("a.raw,serial".parse::<DiskArg>().is_err());
    }
}
