//! Tracks which pages of guest memory have changed.
//!
//! Start reading at [`Tracker`]. Its backend asks KVM which pages the guest wrote. KVM does not see
//! the VMM's own writes, which vm-memory's bitmap records, nor those of the host's kernel for a
//! device (vhost), which has a log of its own; the tracker adds both to every result. Bitmaps are
//! dense words over the guest's chunks.

mod bitmap;
mod ring;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use bitmap::BitmapLog;
pub use bitmap::REARMED_CHUNKS_MAX;
pub(crate) use ring::Rings;

use crate::error::{Error, KvmContext, Result};
use crate::memory::{GuestRam, RamLayout, WriteLog};
use crate::sys::kvm;

/// Fewest entries of a ring: KVM reserves some 600 of them.
const RING_ENTRIES_MIN: u32 = 1024;
/// Most entries of a ring (`KVM_DIRTY_RING_MAX_ENTRIES` of `linux/kvm_host.h`).
const RING_ENTRIES_MAX: u32 = 65_536;
/// Default number of entries of a ring.
const RING_ENTRIES: u32 = 16_384;

/// How KVM logs the pages that the guest writes. The choice does not move with the guest: after a
/// migration the destination may use another log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DirtyLog {
    /// The best log on this host: currently always the bitmap, see docs/adr/0010-dirty-ring.md.
    #[default]
    Auto,
    /// A bitmap with one bit for each page.
    Bitmap,
    /// A ring for each vCPU.
    Ring {
        /// Entries of a ring, one for each written page: a power of two.
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
    /// Enables the dirty rings of `vm` if this log uses them; `vm` must not have vCPUs yet.
    ///
    /// # Errors
    /// `MissingCapability` if the host's KVM has no rings, `DirtyRing` if they are shorter; the
    /// error of a KVM call.
    pub(crate) fn rings(self, vm: &Arc<VmFd>, layout: &RamLayout) -> Result<Option<Arc<Rings>>> {
        match self {
            Self::Auto | Self::Bitmap => Ok(None),
            Self::Ring { entries } => {
                Rings::enable(Arc::clone(vm), layout.clone(), entries).map(Some)
            }
        }
    }
}

/// Tracks which pages the guest or the VMM wrote.
///
/// After a start, every page counts as dirty once. [`Tracker::collect`] reports a page every time
/// until the page is re-armed, and again once it is written after that. So a page must be re-armed
/// *before* it is copied, or a write in between would be lost.
#[derive(Debug)]
pub(crate) struct Tracker {
    ram: Arc<GuestRam>,
    running: bool,
    backend: Box<dyn DirtyBackend>,
}

impl Tracker {
    /// Creates a tracker for `ram`, whose regions are the slots of `vm`. It uses `rings`, or the
    /// bitmap without them.
    pub(crate) fn new(rings: Option<Arc<Rings>>, vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Self {
        match rings {
            Some(rings) => Self::by(Box::new(rings), ram),
            None => Self::by(Box::new(BitmapLog::new(vm)), ram),
        }
    }

    /// As `new`, with this backend.
    pub(crate) fn by(backend: Box<dyn DirtyBackend>, ram: Arc<GuestRam>) -> Self {
        Self { ram, running: false, backend }
    }

    /// Starts tracking.
    ///
    /// # Errors
    /// [`Error::DirtyTracking`] if it is running already; the error of a KVM call.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.running {
            return Err(Error::DirtyTracking("running already"));
        }
        self.ram.mappings().for_each(|region| (**region).bitmap().reset());
        self.ram.write_log_in_use().into_iter().for_each(WriteLog::clear);
        self.backend.start(&self.ram)?;
        self.running = true;
        Ok(())
    }

    /// Stops tracking, so that KVM can map the guest with huge pages again.
    ///
    /// # Errors
    /// The error of a KVM call. A slot may then keep logging, which costs only speed: the next
    /// start sets the flags of every slot.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if std::mem::take(&mut self.running) { self.backend.stop(&self.ram) } else { Ok(()) }
    }

    /// Sets the bits of pages that have been written. Clears no bit.
    ///
    /// # Errors
    /// [`Error::DirtyTracking`] if it is not running; [`Error::DirtyRange`] if `words` is not as
    /// long as guest memory; the error of a KVM call.
    pub(crate) fn collect(&mut self, words: &mut [u64]) -> Result<()> {
        self.check_running()?;
        let (end, chunks) = (words.len(), self.ram.chunks());
        if end != chunks {
            return Err(Error::DirtyRange { first: 0, end, chunks });
        }
        self.backend.collect(&self.ram, words)?;
        add_unseen_writes(&self.ram, words);
        Ok(())
    }

    /// Clears the log of the pages whose bits are set in `words`, which start at chunk
    /// `first_chunk`, and has KVM log their next writes.
    ///
    /// # Errors
    /// As [`Tracker::collect`], except that `words` must lie within guest memory.
    pub(crate) fn rearm(&mut self, first_chunk: usize, words: &[u64]) -> Result<()> {
        self.check_running()?;
        let (first, chunks) = (first_chunk, self.ram.chunks());
        match first.checked_add(words.len()) {
            Some(end) if end <= chunks => self.backend.rearm(&self.ram, first, words),
            end => Err(Error::DirtyRange { first, end: end.unwrap_or(usize::MAX), chunks }),
        }
    }

    fn check_running(&self) -> Result<()> {
        if self.running { Ok(()) } else { Err(Error::DirtyTracking("not running: start it first")) }
    }
}

/// A way to ask KVM which pages the guest wrote. [`Tracker`] calls it in the right order and with
/// ranges that lie in `ram`.
pub(crate) trait DirtyBackend: Send + fmt::Debug {
    /// Starts KVM's log. Every page counts as written.
    fn start(&mut self, ram: &GuestRam) -> Result<()>;
    /// Stops KVM's log.
    fn stop(&mut self, ram: &GuestRam) -> Result<()>;
    /// Sets the bits of pages that have been written; see [`Tracker::collect`].
    fn collect(&mut self, ram: &GuestRam, words: &mut [u64]) -> Result<()>;
    /// Has KVM log the next writes of the pages in `words`; see [`Tracker::rearm`].
    fn rearm(&mut self, ram: &GuestRam, first_chunk: usize, words: &[u64]) -> Result<()>;
}

/// Sets the flags of the memory slots of `vm`, which are the regions of `ram`.
fn set_logging(vm: &VmFd, ram: &GuestRam, flags: u32) -> Result<()> {
    for (slot, region) in (0..).zip(ram.mappings()) {
        kvm::set_memory_region(vm, slot, flags, region).call("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}

/// Adds what KVM does not see, and clears that record: what was written through `ram`, and what the
/// host's kernel wrote for devices.
fn add_unseen_writes(ram: &GuestRam, words: &mut [u64]) {
    for (region, place) in ram.mappings().zip(ram.layout().regions()) {
        let words = &mut words[place.first_chunk..][..place.chunks()];
        let own = (**region).bitmap().get_and_reset();
        words.iter_mut().zip(own).for_each(|(word, own)| *word |= own);
        if let Some(log) = ram.write_log_in_use() {
            log.take(place, words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_parse_and_display_alike() {
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
