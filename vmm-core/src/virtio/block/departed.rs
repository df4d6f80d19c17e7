//! A note on a disk whose content has gone to another host with its guest: what is left is old.
//!
//! The note is an extended attribute, so it stays with the file wherever that is moved. A file
//! system without such attributes keeps none.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// The attribute's name; its value says where to.
pub(crate) const ATTRIBUTE: &str = "user.lighter.moved-to";
/// Longest value that is read, in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// Notes on `file`, durably, that its content has gone, and `where_to`.
///
/// # Errors
/// The system's answer: the file system may have no such attributes.
pub(super) fn note(file: &File, where_to: &str) -> io::Result<()> {
    fsetxattr(file, ATTRIBUTE, value(where_to), XattrFlags::empty())?;
    file.sync_all()
}

fn value(where_to: &str) -> &[u8] {
    &where_to.as_bytes()[..where_to.len().min(VALUE_BYTES_MAX)]
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

/// Where the content of the file at `path` has gone, by the note on it; `None` when it has none, or
/// cannot have one.
pub fn departed_to(path: &Path) -> Option<String> {
    where_to(&regular_file::open_untrusted(path).ok()?)
}

/// Takes the note off the file at `path` if it says `where_to`.
///
/// # Errors
/// The system's answer; [`ErrorKind::NotFound`] when there is no file.
pub fn take_off_departure(path: &Path, where_to: &str) -> io::Result<()> {
    let file = match regular_file::open_untrusted(path) {
        // A device has no note.
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(()),
        file => file?,
    };
    let is_it = read(&file)?.is_some_and(|found| found == value(where_to));
    if is_it { forget(&file) } else { Ok(()) }
}

/// Where the content of `file` has gone; `None` when it is here, or that cannot be told.
pub(super) fn where_to(file: &File) -> Option<String> {
    let text = String::from_utf8_lossy(&read(file).ok()??).into_owned();
    Some(text.chars().filter(|c| !c.is_control()).collect())
}

/// The note on `file`.
fn read(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; VALUE_BYTES_MAX];
    match fgetxattr(file, ATTRIBUTE, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
