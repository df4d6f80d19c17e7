//! Merge domains of one host: which guests' pages the kernel may merge.
//!
//! The kernel has no notion of domains: it merges equal pages of all processes that allow it. So
//! only guests of one domain allow it at a time. They share a lock on a file that contains the
//! domain's name; a guest of another domain finds the lock taken and keeps its pages unmerged. The
//! lock ends with its holders.
//!
//! A guest's process opens that file only if its guest has a domain, and before it is confined
//! ([`super::opener`] does it for an incoming guest). From then on it has a read-only descriptor: a
//! compromised process can hold the lock (others wait for 5 s at most), but cannot write the name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmm_core::Vm;
use vmm_core::memory::MergeDomain;

/// The longest name that is read, in bytes; names of domains are shorter.
const NAME_BYTES_MAX: u64 = 256;

/// How long a guest waits for an exclusive lock. Its owner is about to make it shared, which takes
/// two calls.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two attempts to share the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Whether a guest's pages may be merged.
#[derive(Debug)]
pub(crate) enum Merging {
    /// No: the guest has no domain.
    Off,
    /// Yes: with pages of its domain, as long as this is held.
    On {
        /// A lock shared with the other guests of the domain. The file is read-only.
        _lock: File,
    },
    /// Not now: this host merges guests of another domain.
    Held {
        /// The other domain.
        by: String,
    },
}

impl Merging {
    /// Joins `domain`, if there is one and this host merges no other. The lock is at `path`.
    ///
    /// # Errors
    /// If the lock's file cannot be used.
    pub(crate) fn join(domain: Option<&MergeDomain>, path: &Path) -> Result<Self> {
        let Some(domain) = domain else { return Ok(Self::Off) };
        let merging = join(path, domain, LOCK_PATIENCE).with_context(|| {
            format!("cannot join the merge domain {domain} ({})", path.display())
        })?;
        if let Self::Held { by } = &merging {
            tracing::warn!(
                "pages of this guest are not merged: it is of the domain {domain}, and guests of {by} are merged on this host"
            );
        }
        Ok(merging)
    }

    /// Lets the kernel merge the pages of `vm` if the guest has joined its domain.
    ///
    /// # Errors
    /// If the kernel does not merge pages.
    pub(crate) fn begin(self, vm: &Vm) -> Result<Self> {
        if let Self::On { .. } = &self {
            vm.ram().merge()?;
        }
        Ok(self)
    }
}

fn join(path: &Path, domain: &MergeDomain, patience: Duration) -> Result<Merging> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let mut writer = regular_file::open(path, &mut options)?;
    match writer.try_lock() {
        Ok(()) => {
            writer.set_len(0)?;
            writer.write_all(domain.as_str().as_bytes())?;
            // Converting a flock is not atomic: another domain may take it in between.
            if let Err(error) = share(&writer, patience) {
                return Ok(held_alone(path, &error));
            }
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let mut lock = regular_file::open(path, OpenOptions::new().read(true))?;
    if let Err(error) = share(&lock, patience) {
        return Ok(held_alone(path, &error));
    }
    drop(writer);
    // The name counts as read under the shared lock, because no process writes it then.
    let mut name = String::new();
    Read::by_ref(&mut lock).take(NAME_BYTES_MAX).read_to_string(&mut name)?;
    if name == domain.as_str() {
        return Ok(Merging::On { _lock: lock });
    }
    Ok(Merging::Held { by: name.chars().filter(|c| !c.is_control()).collect() })
}

/// The result if another process holds the lock exclusively for too long. That process breaks the
/// rules above, and must not keep guests from running.
fn held_alone(path: &Path, error: &io::Error) -> Merging {
    let path = path.display();
    tracing::error!(
        "another process holds the lock of this host's merge domains, {path}, exclusively ({error}): \
         pages of this guest are not merged; `fuser {path}` names the process"
    );
    Merging::Held { by: "an unknown domain".to_owned() }
}

/// Takes the shared lock; fails if the lock is held exclusively for longer than `patience`.
fn share(lock: &File, patience: Duration) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match lock.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= patience => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_guest_of_a_domain_cannot_claim_another_is_merged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merge-domain");
        let merging = join(&path, &"shop".parse().unwrap(), PATIENCE).unwrap();
        let Merging::On { mut _lock } = merging else { panic!("{merging:?}") };
        let error = _lock.write_all(b"bank").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "shop");
    }

    #[test]
    fn a_long_exclusive_lock_stops_no_guest_from_running() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merge-domain");
        let alone = File::create(&path).unwrap();
        alone.lock().unwrap();
        let merging = join(&path, &"shop".parse().unwrap(), LOCK_PAUSE).unwrap();
        assert!(
            matches!(&merging, Merging::Held { by } if by == "an unknown domain"),
            "{merging:?}"
        );
        drop(alone);
        assert!(matches!(join(&path, &"shop".parse().unwrap(), PATIENCE), Ok(Merging::On { .. })));
    }

    #[test]
    fn one_domain_at_a_time_until_its_last_guest_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merge-domain");
        let join = |domain: &str| join(&path, &domain.parse().unwrap(), PATIENCE).unwrap();
        let (one, two) = (join("shop"), join("shop"));
        assert!(matches!((&one, &two), (Merging::On { .. }, Merging::On { .. })));
        assert!(matches!(join("bank"), Merging::Held { by } if by == "shop"));
        drop(one);
        assert!(matches!(join("bank"), Merging::Held { .. }), "one of the shop's is left");
        drop(two);
        let bank = join("bank");
        assert!(matches!(bank, Merging::On { .. }));
        assert!(matches!(join("shop"), Merging::Held { by } if by == "bank"));
    }

    #[test]
    fn two_domains_that_come_at_once_are_never_both_merged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merge-domain");
        for _ in 0..50 {
            let merged = std::thread::scope(|scope| {
                let joiners: Vec<_> = ["a", "b", "a", "b"]
                    .map(|domain| {
                        let path = &path;
                        scope.spawn(move || {
                            let joined = join(path, &domain.parse().unwrap(), PATIENCE);
                            (domain, joined.unwrap())
                        })
                    })
                    .into();
                joiners.into_iter().map(|joiner| joiner.join().unwrap()).collect::<Vec<_>>()
            });
            let on = |wanted: &str| {
                merged.iter().any(|(domain, merging)| {
                    *domain == wanted && matches!(merging, Merging::On { .. })
                })
            };
            assert!(on("a") != on("b"), "{merged:?}");
        }
    }
}
