//! Copies of a guest's disks, made while the guest is paused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm_core::snapshot::PartialFile;
use vmm_core::virtio::block::{copy_content, date};

use crate::api::saving::SavedCopies;
use crate::api::types::{DiskFormat, DiskInfo, GuestInfo, StateAnswer};
use crate::clock::unix_ms;
use crate::output;
use crate::units::format_size;

/// Pause between two times that the guest is held and progress is printed.
const PACE: Duration = Duration::from_secs(5);

/// The copies of one guest's disks.
#[derive(Debug, Default)]
pub(super) struct Copies {
    disks: Vec<Copy>,
    modified_unix_s: i64,
}

#[derive(Debug)]
struct Copy {
    disk: DiskInfo,
    from: Arc<File>,
    path: PathBuf,
    to: PartialFile,
}

impl Copies {
    /// Creates unnamed files for copies of all disks that `guest` writes, beside the `file` to
    /// which it is saved.
    ///
    /// # Errors
    /// If a disk cannot be read, or a file exists already or cannot be created.
    pub(super) fn create(guest: &GuestInfo, file: &Path) -> Result<Self> {
        let mut disks = Vec::new();
        for (disk, path) in places(&guest.disks, file) {
            if disk.format == DiskFormat::Qcow2 {
                bail!(
                    "{}: qcow2 images cannot be copied with a saved guest; omit --disks, or convert the disk to raw",
                    cannot_copy(disk, &path)
                );
            }
            let from = File::open(&disk.path)
                .with_context(|| format!("cannot read disk {}", disk.path.display()))?;
            // An existing file is not replaced: another saved guest may need it, or run on it.
            if path.symlink_metadata().is_ok() {
                bail!("{}: {} is there already", cannot_copy(disk, &path), path.display());
            }
            let to = PartialFile::create(&path).with_context(|| cannot_copy(disk, &path))?;
            disks.push(Copy { disk: disk.clone(), from: Arc::new(from), path, to });
        }
        // An even second, which all file systems can store.
        let modified_unix_s = i64::try_from(unix_ms() / 2000 * 2)?;
        Ok(Self { disks, modified_unix_s })
    }

    /// Returns what the guest's process must know about the copies.
    pub(super) fn plan(&self) -> Option<SavedCopies> {
        let paths: BTreeMap<_, _> =
            self.disks.iter().map(|copy| (copy.disk.path.clone(), copy.path.clone())).collect();
        let modified_unix_s = self.modified_unix_s;
        (!paths.is_empty()).then_some(SavedCopies { paths, modified_unix_s })
    }

    /// Copies the disks of a guest that `hold` keeps paused.
    ///
    /// # Errors
    /// If a disk cannot be copied, or the guest was not paused all the time.
    pub(super) async fn fill<F>(&self, hold: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<StateAnswer>>,
    {
        for copy in &self.disks {
            copy.fill(&hold).await.with_context(|| cannot_copy(&copy.disk, &copy.path))?;
            date(copy.to.file(), self.modified_unix_s)?;
        }
        if !self.disks.is_empty() {
            // Confirms that the guest was paused until now.
            hold().await?;
        }
        Ok(())
    }

    /// Gives the copies their names, and tells `named` of each.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(super) fn publish(self, named: impl Fn(&Path)) -> Result<()> {
        for copy in self.disks {
            let (disk, path) = (copy.disk, copy.path);
            copy.to.publish(|| Ok(())).with_context(|| cannot_copy(&disk, &path))?;
            named(&path);
            output::note(format_args!("disk {} is in {}", disk.path.display(), path.display()));
        }
        Ok(())
    }
}

/// Ends the work of another thread when dropped.
struct EndsWith(Arc<AtomicBool>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Copy {
    async fn fill<F>(&self, hold: &impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<StateAnswer>>,
    {
        let (from, to) = (Arc::clone(&self.from), self.to.file().try_clone()?);
        let (bytes, copied) = (self.disk.bytes, Arc::new(AtomicU64::new(0)));
        let is_over = EndsWith(Arc::default());
        let (reached, ends) = (Arc::clone(&copied), Arc::clone(&is_over.0));
        let step = move |at| {
            reached.store(at, Ordering::Relaxed);
            match ends.load(Ordering::Relaxed) {
                true => Err(io::Error::from(ErrorKind::Interrupted)),
                false => Ok(()),
            }
        };
        let copy = move || {
            copy_content(&from, &to, bytes, step)?;
            // Flushed in this thread, where it may take long.
            to.sync_all()
        };
        let mut work = tokio::task::spawn_blocking(copy);
        loop {
            match tokio::time::timeout(PACE, &mut work).await {
                Ok(done) => return Ok(done??),
                Err(_) => hold().await?,
            };
            let (copied, path) = (copied.load(Ordering::Relaxed), self.disk.path.display());
            output::note(format_args!("{path}: {} of {}", format_size(copied), format_size(bytes)));
        }
    }
}

fn cannot_copy(disk: &DiskInfo, path: &Path) -> String {
    format!("cannot copy disk {} to {}", disk.path.display(), path.display())
}

/// Returns the disks that a guest writes, and where each is copied to: `FILE.NAME`, with a number
/// appended if that is taken.
fn places<'a>(disks: &'a [DiskInfo], file: &Path) -> Vec<(&'a DiskInfo, PathBuf)> {
    let mut places: Vec<(&DiskInfo, PathBuf)> = Vec::new();
    for disk in disks.iter().filter(|disk| !disk.read_only) {
        let name = disk.path.file_name().unwrap_or_default();
        let named = |more: &str| {
            let mut place = file.as_os_str().to_owned();
            place.push(".");
            place.push(name);
            place.push(more);
            PathBuf::from(place)
        };
        let numbered = (2..).map(|number| named(&format!(".{number}")));
        let mut free = std::iter::once(named("")).chain(numbered);
        let place = free.find(|place| places.iter().all(|(_, taken)| taken != place));
        places.extend(place.map(|place| (disk, place)));
    }
    places
}

#[cfg(test)]
mod tests {
    use vmm_core::virtio::block::{CacheMode, LockReach};

    use super::*;

    #[test]
    fn copies_are_beside_the_file_each_in_a_place_of_its_own() {
        let disk = |path: &str, read_only| DiskInfo {
            path: path.into(),
            format: DiskFormat::Raw,
            bytes: 512,
            read_only,
            cache: CacheMode::Writeback,
            lock_reach: LockReach::Host,
        };
        let disks = [
            disk("/a/root.raw", false),
            disk("/b/root.raw", false),
            disk("/c/cd.iso", true),
            disk("/dev/vg/data", false),
        ];
        let places = places(&disks, Path::new("/srv/web.lighter"));
        let places: Vec<_> = places.iter().map(|(_, place)| place.to_str().unwrap()).collect();
        let root = "/srv/web.lighter.root.raw";
        assert_eq!(places, [root, &format!("{root}.2"), "/srv/web.lighter.data"]);
    }
}
