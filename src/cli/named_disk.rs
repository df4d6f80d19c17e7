//! A disk that a guest has, by its place among them (`vda` for the first) or by its path here.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedDisk {
    /// Its number among the guest's disks, from 0 on.
    Number(usize),
    /// Its path on this host.
    Path(PathBuf),
}

impl NamedDisk {
    /// Reads `vda` to `vdz`, or a path.
    ///
    /// # Errors
    /// If it can be no path.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let number = match text.as_bytes() {
            [b'v', b'd', letter @ b'a'..=b'z'] => Some(usize::from(letter - b'a')),
            _ => None,
        };
        number.map_or_else(|| disk_here(text).map(Self::Path), |number| Ok(Self::Number(number)))
    }
}

impl fmt::Display for NamedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "vd{}", char::from(b'a' + *number as u8)),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Returns the path of a disk here as the guest has it: without links.
pub(super) fn disk_here(text: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    let found = path.canonicalize().or_else(|_| std::path::absolute(path));
    found.with_context(|| format!("`{text}` names no disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_by_its_place_or_its_path() {
        assert_eq!(NamedDisk::parse("vda").unwrap(), NamedDisk::Number(0));
        assert_eq!(NamedDisk::parse("vdz").unwrap(), NamedDisk::Number(25));
        assert_eq!(NamedDisk::Number(25).to_string(), "vdz");
        for path in ["/no/vda", "/no/vd1"] {
            let expected = NamedDisk::Path(Path::new(path).to_owned());
            assert_eq!(NamedDisk::parse(path).unwrap(), expected);
        }
        for path in ["vdaa", "vd", "sda"] {
            assert!(matches!(NamedDisk::parse(path).unwrap(), NamedDisk::Path(_)), "{path}");
        }
    }
}
