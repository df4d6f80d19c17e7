//! A mark on a disk whose content has moved to another host with its guest: what remains is
//! outdated.
//!
//! The mark is an extended attribute, so it stays with the file when that is renamed or moved. On a
//! file system without such attributes there is no mark.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// Name of the attribute; its value names the destination.
pub(crate) const ATTRIBUTE: &str = "user.lighter.moved-to";
/// Longest value that is read, in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// Durably marks `file` as departed to `where_to`.
///
/// # Errors
/// If a system call fails: the file system may not support such attributes.
pub(super) fn note(file: &File, where_to: &str) -> io::Result<()> {
    fsetxattr(file, ATTRIBUTE, value(where_to), XattrFlags::empty())?;
    file.sync_all()
}

fn value(where_to: &str) -> &[u8] {
    &where_to.as_bytes()[..where_to.len().min(VALUE_BYTES_MAX)]
}

/// Removes the mark, if there is one.
///
/// # Errors
/// If a system call fails.
pub(super) fn forget(file: &File) -> io::Result<()> {
    match fremovexattr(file, ATTRIBUTE) {
        Ok(()) => file.sync_all(),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns where the content of the file at `path` has gone, according to its mark; `None` if it
/// has no mark, or cannot have one.
pub fn departed_to(path: &Path) -> Option<String> {
    where_to(&regular_file::open_untrusted(path).ok()?)
}

/// Removes the mark from the file at `path` if it names `where_to`.
///
/// # Errors
/// If a system call fails; [`ErrorKind::NotFound`] if there is no file.
pub fn take_off_departure(path: &Path, where_to: &str) -> io::Result<()> {
    let file = match regular_file::open_untrusted(path) {
        // A block device has no mark.
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(()),
        file => file?,
    };
    let is_it = read(&file)?.is_some_and(|found| found == value(where_to));
    if is_it { forget(&file) } else { Ok(()) }
}

/// Returns where the content of `file` has gone; `None` if it is here or that cannot be determined.
pub(super) fn where_to(file: &File) -> Option<String> {
    let text = String::from_utf8_lossy(&read(file).ok()??).into_owned();
    Some(text.chars().filter(|c| !c.is_control()).collect())
}

/// Returns the mark on `file`.
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
