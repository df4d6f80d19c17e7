//! Merge domains of one host: whose pages the kernel may merge.
//!
//! The kernel knows no domains: it merges equal pages of all processes that let it. So guests of one domain at
//! most let it at a time. Those that do hold a lock together, with the domain's name in its file; a guest of another domain
//! finds it held and keeps its pages to itself. The lock ends with its holders.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use vmm_core::Vm;
use vmm_core::memory::MergeDomain;

/// The longest name that is read, in bytes; those of domains are shorter.
const NAME_BYTES_MAX: u64 = 256;

/// Whether a guest's pages may be merged.
#[derive(Debug)]
pub(crate) enum Merging {
    /// It has no domain.
    Off,
    /// With those of its domain, as long as this is held.
    On {
        /// Held together with the other guests of the domain.
        _lock: File,
    },
    /// Not now: guests of another domain are merged on this host.
    Held {
        /// The other domain.
        by: String,
    },
}

impl Merging {
    /// Lets the kernel merge the pages of `vm` if it has a domain and no other one is merged on this host, whose lock is at
    /// `path`.
    ///
    /// # Errors
    /// The lock cannot be taken, or the kernel does not merge pages.
    pub(crate) fn begin(vm: &Vm, path: &Path) -> Result<Self> {
        let Some(domain) = &vm.shape().memory.merge_domain else { return Ok(Self::Off) };
        let merging = join(path, domain).with_context(|| {
            format!("cannot join the merge domain {domain} ({})", path.display())
        })?;
        match &merging {
            Self::On { .. } => vm.ram().merge()?,
            Self::Held { by } => tracing::warn!(
                "pages of this guest are not merged: it is of the domain {domain}, and guests of {by} are merged on this host"
            ),
            Self::Off => {}
        }
        Ok(merging)
    }
}

fn join(path: &Path, domain: &MergeDomain) -> Result<Merging> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let mut file = regular_file::open(path, &mut options)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(domain.as_str().as_bytes())?;
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    // Changing a lock may let it go for a moment; what counts is what is there while it is shared, since nobody
    // writes then. Who has it alone is about to share it.
    file.lock_shared()?;
    let mut name = String::new();
    file.seek(SeekFrom::Start(0))?;
    (&file).take(NAME_BYTES_MAX).read_to_string(&mut name)?;
    if name == domain.as_str() {
        return Ok(Merging::On { _lock: file });
    }
    Ok(Merging::Held { by: name.chars().filter(|c| !c.is_control()).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_domain_at_a_time_until_its_last_guest_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merge-domain");
        let join = |domain: &str| join(&path, &domain.parse().unwrap()).unwrap();
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
                        scope.spawn(move || (domain, join(path, &domain.parse().unwrap()).unwrap()))
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
