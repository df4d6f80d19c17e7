//! A note on a disk whose content has gone to another host with its guest: what is left is old.
//!
//! The note is an extended attribute, so it stays with the file wherever that is moved. A file system without such attributes
//! keeps none.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// The attribute's name; its value is the other host's.
pub(crate) const ATTRIBUTE: &str = "user.lighter.moved-to";
/// Longest value that is read, in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// Notes on `file`, durably, that its content has gone to `host`.
///
/// # Errors
/// The system's answer: the file system may have no such attributes.
pub(super) fn note(file: &File, host: &str) -> io::Result<()> {
    let value = &host.as_bytes()[..host.len().min(VALUE_BYTES_MAX)];
    fsetxattr(file, ATTRIBUTE, value, XattrFlags::empty())?;
    file.sync_all()
}

/// Takes the note away, if there is one.
///
/// # Errors
/// The system's answer.
pub(super) fn forget(file: &File) -> io::Result<()> {
    match fremovexattr(file, ATTRIBUTE) {
        Ok(()) => file.sync_all(),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The host that the content of the file at `path` has gone to, by the note on it; `None` when it
/// has none, or cannot have one.
pub fn departed_to(path: &Path) -> Option<String> {
    host(&regular_file::open(path, OpenOptions::new().read(true)).ok()?)
}

/// The host that the content of `file` has gone to; `None` when it is here, or cannot be told.
pub(super) fn host(file: &File) -> Option<String> {
    let mut value = [0; VALUE_BYTES_MAX];
    let length = fgetxattr(file, ATTRIBUTE, &mut value).ok()?;
    let text = String::from_utf8_lossy(&value[..length.min(VALUE_BYTES_MAX)]).into_owned();
    Some(text.chars().filter(|c| !c.is_control()).collect())
}
