//! Which pages of guest memory have changed.
//!
//! A backend asks KVM what the guest wrote; what the VMM itself wrote is in vm-memory's bitmap, since
//! KVM does not see it, and is added to every answer. Bits are dense words over the guest's chunks.

mod bitmap;
mod ring;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kvm_ioctls::VmFd;

pub(crate) use bitmap::BitmapLog;
pub(crate) use ring::{RingLog, Rings};

use crate::error::Result;
use crate::memory::{GuestRam, RamLayout};

/// Fewest entries of a ring: KVM keeps some 600 of them back.
const RING_ENTRIES_MIN: u32 = 1024;
/// Most entries of a ring (`KVM_DIRTY_RING_MAX_ENTRIES` of `linux/kvm_host.h`).
const RING_ENTRIES_MAX: u32 = 65_536;
/// Entries of a ring when no number was given.
const RING_ENTRIES: u32 = 16_384;

/// How KVM tells which pages the guest wrote. A matter of this host alone: wherever a guest arrives, it may
/// be another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DirtyLog {
    /// What is best on this host: at present always the bitmap, see docs/adr/0010-dirty-ring.md.
    #[default]
    Auto,
    /// A bit for each page.
    Bitmap,
    /// A list for each vCPU.
    Ring {
        /// Pages that a list holds: a power of two.
        entries: u32,
    },
}

impl fmt::Display for DirtyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bitmap => f.write_str("bitmap"),
            Self::Ring { entries } => write!(f, "ring:{entries}"),
        }
    }
}

impl FromStr for DirtyLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text {
            "auto" => return Ok(Self::Auto),
            "bitmap" => return Ok(Self::Bitmap),
            "ring" => return Ok(Self::Ring { entries: RING_ENTRIES }),
            other => other.strip_prefix("ring:"),
        };
        let entries: Option<u32> = number.and_then(|number| number.parse().ok());
        let fits = |entries: &u32| {
            entries.is_power_of_two() && (RING_ENTRIES_MIN..=RING_ENTRIES_MAX).contains(entries)
        };
        match entries.filter(fits) {
            Some(entries) => Ok(Self::Ring { entries }),
            None => Err(format!(
                "`{text}` is not possible: give auto, bitmap, ring or ring:ENTRIES, a power of two from {RING_ENTRIES_MIN} to \
                 {RING_ENTRIES_MAX}"
            )),
        }
    }
}

impl DirtyLog {
    /// The rings of `vm`, which has no vCPUs yet, if it shall have some.
    ///
    /// # Errors
    /// The host has none.
    pub(crate) fn rings(self, vm: &Arc<VmFd>, layout: &RamLayout) -> Result<Option<Arc<Rings>>> {
        match self {
            Self::Auto | Self::Bitmap => Ok(None),
            Self::Ring { entries } => {
                Rings::enable(Arc::clone(vm), layout.clone(), entries).map(Some)
            }
        }
    }
}

/// The log of a VM with these rings, or with none.
pub(crate) fn tracker(
    rings: Option<Arc<Rings>>,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
) -> Box<dyn DirtyTracking> {
    match rings {
        Some(rings) => Box::new(RingLog::new(rings, ram)),
        None => Box::new(BitmapLog::new(vm, ram)),
    }
}

/// A way to learn which pages the guest wrote.
///
/// After `start`, every page counts as dirty once. A page is reported by every `collect` until it is
/// re-armed, and again once it is written after that; so a page must be re-armed *before* it is
/// copied, or a write in between would be lost.
pub(crate) trait DirtyTracking: Send + std::fmt::Debug {
    /// Starts to track.
    fn start(&mut self) -> Result<()>;
    /// Stops to track, which gives the guest its huge pages back.
    fn stop(&mut self) -> Result<()>;
    /// Sets the bits of pages that have been written, and clears none.
    fn collect(&mut self, words: &mut [u64]) -> Result<()>;
    /// Forgets the bits set in `words`, which start at chunk `first_chunk`, and watches these pages
    /// for writes again.
    fn rearm(&mut self, first_chunk: usize, words: &[u64]) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_typed_as_they_are_told() {
        for text in ["auto", "bitmap", "ring:1024", "ring:65536"] {
            assert_eq!(text.parse::<DirtyLog>().unwrap().to_string(), text);
        }
        assert_eq!("ring".parse(), Ok(DirtyLog::Ring { entries: RING_ENTRIES }));
        for text in ["", "rings", "ring:", "ring:1000", "ring:512", "ring:131072", "ring:-1"] {
            let error = text.parse::<DirtyLog>().unwrap_err();
            assert!(error.contains("power of two"), "{error}");
        }
    }
}
