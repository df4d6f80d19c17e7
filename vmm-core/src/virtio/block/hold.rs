//! What keeps other writers away from a disk while its guest runs.
//!
//! A guest locks the file of its disk, or the node of its block device. It also claims a block
//! device that it writes, as mount(2) and the device mapper do (`O_EXCL`, open(2)): the kernel
//! refuses a second claim on the device, on its partitions or on their whole disk, and lets two
//! partitions of a disk be claimed, or two volumes on a device. The claim needs no right to the
//! whole disk, which has other guests' content. Nothing of that reaches what is behind a loop
//! device ([`super::behind`]), so a guest locks its bytes there as well. The backing files of an
//! image are locked against writers.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regular_file::opened::open_again;

use super::behind::{self, Behind, Span};
use super::config::Access;
use super::qcow2::Backing;
use super::store::Store;
use crate::sys::file::{self, Lock};
use crate::virtio::DeviceError;

/// A file or a block device, to be kept from others.
#[derive(Debug)]
pub(super) struct Hold {
    path: PathBuf,
    file: Arc<File>,
    lock: Lock,
    span: Span,
    /// The guest's disk, if it depends on this.
    disk: Option<PathBuf>,
    /// The open file that has the claim.
    claim: Option<Arc<File>>,
    /// What another process has claimed; `None` for a file that this process has opened.
    handed: Option<HandedClaim>,
}

/// The claim of the process that has opened a disk for this one, until the first release.
#[derive(Debug, Clone)]
pub(super) struct HandedClaim(pub(super) Option<Arc<File>>);

impl Hold {
    /// Returns what to hold for the guest's disk in `store`, found at `path`. If another
    /// process has opened it, that has made the `claim`.
    pub(super) fn of_disk(
        path: &Path,
        store: &Store,
        access: Access,
        claim: Option<&HandedClaim>,
    ) -> Vec<Self> {
        let lock = match access {
            Access::ReadWrite => Lock::Exclusive,
            Access::ReadOnly => Lock::Shared,
        };
        let (own, file) = (path.to_owned(), Arc::clone(store.file()));
        let backing = store.backing().iter().map(|backing| Self::backing(path, backing));
        let behind = device_of(&file).map(behind::of).unwrap_or_default();
        let behind = behind.into_iter().filter_map(|it| Self::behind(path, it, access));
        let handed = claim.cloned();
        let own =
            Self { path: own, file, lock, span: Span::WHOLE, disk: None, claim: None, handed };
        std::iter::once(own).chain(behind).chain(backing).collect()
    }

    /// Returns what to hold for a backing file of the image `disk`: a lock that keeps writers away.
    fn backing(disk: &Path, backing: &Backing) -> Self {
        Self {
            path: backing.path.clone(),
            file: Arc::clone(&backing.file),
            lock: Lock::Shared,
            span: Span::WHOLE,
            disk: Some(disk.to_owned()),
            claim: None,
            handed: None,
        }
    }

    /// Opens what is behind `disk`. `None` if that is not possible: the user may have rights to the
    /// loop device alone, and a guest that may use its disk is not kept from it for that.
    fn behind(disk: &Path, behind: Behind, access: Access) -> Option<Self> {
        // A volume has a part of this, and other guests may have others.
        let is_exclusive = access == Access::ReadWrite && !behind.has_volumes;
        let mut options = OpenOptions::new();
        options.read(true).write(is_exclusive);
        let opened = options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&behind.path);
        match opened {
            Ok(file) => Some(Self {
                path: behind.path,
                file: Arc::new(file),
                lock: if is_exclusive { Lock::Exclusive } else { Lock::Shared },
                span: behind.span,
                disk: Some(disk.to_owned()),
                claim: None,
                handed: None,
            }),
            // Removed, or out of this process's reach: no other guest can name it either.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                let (disk, path) = (disk.display(), behind.path.display());
                tracing::warn!(%error, "cannot lock {path} behind {disk}: another guest may use it at the same time");
                None
            }
        }
    }

    fn take(&mut self) -> Result<(), DeviceError> {
        self.set_lock(self.lock).map_err(|cause| self.refused(cause))?;
        let is_whole = self.span == Span::WHOLE && device_of(&self.file).is_some();
        if is_whole && self.lock == Lock::Exclusive {
            self.claim = match &self.handed {
                None => Some(Arc::new(claim(&self.file, &self.path)?)),
                Some(HandedClaim(Some(handed))) => Some(Arc::clone(handed)),
                Some(HandedClaim(None)) => claim_again(&self.file, &self.path)?.map(Arc::new),
            };
        }
        Ok(())
    }

    /// Returns whether only a part is held, which would have to grow with the disk.
    pub(super) fn is_of_a_part(&self) -> bool {
        self.span.end != Span::WHOLE.end
    }

    fn release(&mut self) {
        // In this order, so that a process that finds the claim finds the lock as well.
        self.claim = None;
        if let Err(error) = self.set_lock(Lock::None) {
            // The lock then ends with this process, which is about to exit.
            tracing::error!(path = %self.path.display(), %error, "cannot unlock a disk");
        }
    }

    fn set_lock(&self, lock: Lock) -> io::Result<()> {
        let Span { start, end } = self.span;
        let bytes = if end == u64::MAX { 0 } else { end - start };
        file::lock_part(&self.file, start, bytes, lock)
    }

    fn refused(&self, cause: io::Error) -> DeviceError {
        let path = self.path.clone();
        match (cause.kind(), &self.disk) {
            (ErrorKind::WouldBlock, None) => DeviceError::DiskInUse { path },
            (ErrorKind::WouldBlock, Some(disk)) => {
                DeviceError::BehindDiskInUse { path: disk.clone(), behind: path }
            }
            _ => DeviceError::Disk { path, cause },
        }
    }
}

/// Takes all of `holds`, or none.
///
/// # Errors
/// [`DeviceError::DiskInUse`]; [`DeviceError::BehindDiskInUse`]; [`DeviceError::DiskOfHost`]; or if
/// a system call fails.
pub(super) fn take_all(holds: &mut [Hold]) -> Result<(), DeviceError> {
    let taken = holds.iter_mut().try_for_each(Hold::take);
    if taken.is_err() {
        release_all(holds);
    }
    taken
}

/// Releases all of `holds`; those that are not taken do not change.
pub(super) fn release_all(holds: &mut [Hold]) {
    holds.iter_mut().rev().for_each(Hold::release);
}

/// Checks that the host does not use the block device `file`, found at `path`. A guest may use it:
/// that shows when it is taken over.
///
/// # Errors
/// [`DeviceError::DiskOfHost`]; or if a system call fails.
pub(super) fn expect_unclaimed(file: &File, path: &Path) -> Result<(), DeviceError> {
    match claim(file, path) {
        Err(DeviceError::DiskOfHost { .. }) if file::is_locked(file).is_ok_and(|it| it) => Ok(()),
        claimed => claimed.map(drop),
    }
}

/// As [`claim`], for a device that was handed over; `None` if this process may not open it.
fn claim_again(file: &File, path: &Path) -> Result<Option<File>, DeviceError> {
    match claim(file, path) {
        Err(DeviceError::Disk { cause, .. }) if cause.kind() == ErrorKind::PermissionDenied => {
            let path = path.display();
            tracing::warn!("cannot claim {path} again: do not mount it while the guest runs");
            Ok(None)
        }
        claimed => claimed.map(Some),
    }
}

/// Claims the block device `file`, found at `path`, until the returned file is closed.
///
/// # Errors
/// [`DeviceError::DiskOfHost`] if it, its whole disk or a partition of it is claimed; or if a
/// system call fails.
pub(super) fn claim(file: &File, path: &Path) -> Result<File, DeviceError> {
    let path = path.to_path_buf();
    open_again(file, libc::O_EXCL).map_err(|cause| match cause.raw_os_error() {
        Some(libc::EBUSY) => DeviceError::DiskOfHost { path },
        _ => DeviceError::Disk { path, cause },
    })
}

/// Returns the number of the block device `file`; `None` for anything else.
fn device_of(file: &File) -> Option<u64> {
    let found = file.metadata().ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(file: &Path, span: Span, has_volumes: bool) -> Behind {
        Behind { path: file.to_owned(), span, has_volumes }
    }

    /// What a guest that writes the disk `/dev/loop0` holds on `file` behind it.
    fn writer(file: &tempfile::NamedTempFile, span: Span, has_volumes: bool) -> Hold {
        let behind = behind(file.path(), span, has_volumes);
        Hold::behind(Path::new("/dev/loop0"), behind, Access::ReadWrite).unwrap()
    }

    #[test]
    fn guests_share_what_is_behind_their_disks_by_parts_or_as_volumes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let direct = |access| {
            let opened = OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
            let store = Store::open(file.path(), &Arc::new(opened), &[]).unwrap();
            Hold::of_disk(file.path(), &store, access, None)
        };
        let part = |start, end| vec![writer(&file, Span { start, end }, false)];
        let whole = || vec![writer(&file, Span::WHOLE, false)];
        let volume = || vec![writer(&file, Span::WHOLE, true)];
        assert!(part(512, 1024)[0].is_of_a_part() && !whole()[0].is_of_a_part());
        let reader = || {
            let behind = behind(file.path(), Span::WHOLE, false);
            vec![Hold::behind(Path::new("/dev/loop1"), behind, Access::ReadOnly).unwrap()]
        };
        for (mut one, mut other, go_together) in [
            (part(512, 1024), part(1024, 2048), true),
            (part(512, 1024), part(1023, 2048), false),
            (part(512, 1024), whole(), false),
            (part(512, 1024), volume(), false),
            (part(512, 1024), direct(Access::ReadOnly), false),
            (volume(), volume(), true),
            (volume(), whole(), false),
            (volume(), direct(Access::ReadWrite), false),
            (whole(), whole(), false),
            (whole(), direct(Access::ReadWrite), false),
            (whole(), direct(Access::ReadOnly), false),
            (reader(), reader(), true),
            (reader(), direct(Access::ReadOnly), true),
            (reader(), direct(Access::ReadWrite), false),
        ] {
            take_all(&mut one).unwrap();
            let second = take_all(&mut other);
            assert_eq!(second.is_ok(), go_together, "{one:?} {other:?}");
            release_all(&mut one);
            take_all(&mut other).unwrap();
            release_all(&mut other);
        }
    }

    #[test]
    fn what_cannot_be_taken_leaves_nothing_locked_and_names_the_disk() {
        let [own, other] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        let mut holder = [writer(&other, Span::WHOLE, false)];
        take_all(&mut holder).unwrap();
        let mut both = [&own, &other].map(|file| writer(file, Span::WHOLE, false));
        let refused = take_all(&mut both).unwrap_err();
        let DeviceError::BehindDiskInUse { path, behind } = &refused else { panic!("{refused}") };
        assert_eq!((path.as_path(), behind.as_path()), (Path::new("/dev/loop0"), other.path()));
        assert!(!file::is_locked(&own.reopen().unwrap()).unwrap());
    }

    #[test]
    fn a_disk_is_used_although_what_is_behind_it_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        for place in [folder.path().join("gone.raw"), folder.path().to_owned()] {
            let behind = behind(&place, Span::WHOLE, false);
            assert!(Hold::behind(Path::new("/dev/loop0"), behind, Access::ReadWrite).is_none());
        }
    }
}
