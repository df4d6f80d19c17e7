//! Guest memory of which pages are missing: a vCPU or a device's thread that accesses one of them,
//! or the kernel for either, waits until it has arrived. docs/adr/0029-post-copy.md gives the
//! reasons.

mod bell;
mod waits;

pub use waits::Waits;

use std::io::{ErrorKind, Result};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vm_memory::GuestMemoryBackend;

use self::bell::Bell;
use self::waits::WaitLog;
use super::{CHUNK_BYTES, CHUNK_PAGES, GuestRam, PAGE_BYTES, RamLayout, RamMap, runs};
use crate::sys::host_address;
use crate::sys::mapping::{self, Part};
use crate::sys::userfaultfd::missing::MissingPages;

/// Pages of one chunk: its number, and a mask in which the lowest bit is the first page.
pub type ChunkPages = (usize, u64);

/// Knows which pages of a guest's memory are missing, and places those that arrive: each once, even
/// if it comes twice. [`GuestRam::follow`] returns it. Dropping it, or [`Missing::end`], lets those
/// who wait continue with zeros.
///
/// It never accesses guest memory itself, so its user never waits for a page.
#[derive(Debug)]
pub struct Missing {
    /// Absent once accesses wait no longer: an attacker in this process should not find it open.
    faults: RwLock<Option<Arc<MissingPages>>>,
    memory: RamMap,
    layout: RamLayout,
    /// A page changes only while its chunk is locked: from absent to present, or back.
    chunks: Vec<Mutex<Pages>>,
    /// Number of missing pages.
    left: AtomicU64,
    /// Locked after a chunk, if both are.
    waits: Mutex<WaitLog>,
    /// Ends [`Missing::wait`].
    bell: Bell,
}

/// The missing pages of a chunk.
#[derive(Debug, Default)]
struct Pages {
    missing: u64,
    /// Those of them for which a thread waits, and that were returned as wanted.
    wanted: u64,
}

impl Missing {
    /// Begins with no page missing. Pages that are absent already, since they were never written,
    /// read as zeros as before, but only while another thread calls [`Missing::wanted`].
    ///
    /// # Errors
    /// `Unsupported` for memory of a pool, `EINVAL` for that of a template; otherwise the error
    /// from the kernel.
    pub(crate) fn begin(ram: &GuestRam, faults: MissingPages) -> Result<Self> {
        let memory = ram.memory().clone();
        memory.iter().try_for_each(|region| faults.register(Part::whole(region)))?;
        let layout = ram.layout().clone();
        let chunks = (0..layout.chunks()).map(|_| Mutex::default()).collect();
        let faults = RwLock::new(Some(Arc::new(faults)));
        let (left, waits, bell) = (AtomicU64::new(0), Mutex::default(), Bell::new()?);
        Ok(Self { faults, memory, layout, chunks, left, waits, bell })
    }

    /// Drops the pages in `words`, one word for each chunk: they are missing from now on. Neither
    /// guest nor devices may run, since a page to which the kernel holds a reference would be lost.
    ///
    /// # Errors
    /// `InvalidInput` unless there is a word for each chunk; otherwise the error from the kernel.
    pub fn clear(&self, words: &[u64]) -> Result<()> {
        if words.len() != self.chunks.len() {
            return Err(ErrorKind::InvalidInput.into());
        }
        for (region, place) in self.memory.iter().zip(self.layout.regions()) {
            // Whole runs: huge pages would be split if they were dropped chunk by chunk.
            let mut dropped: Vec<Range<usize>> = Vec::new();
            let words = words.iter().skip(place.first_chunk).take(place.chunks());
            for (index, mask) in words.enumerate() {
                let mut pages = self.pages(place.first_chunk + index)?;
                let added = u64::from((mask & !pages.missing).count_ones());
                self.left.fetch_add(added, Ordering::AcqRel);
                pages.missing |= mask;
                for run in runs::of_mask(*mask) {
                    let offset = |page: usize| index * CHUNK_BYTES + page * PAGE_BYTES;
                    runs::add(&mut dropped, offset(run.start)..offset(run.end));
                }
            }
            for run in dropped {
                mapping::drop_pages(Part::new(region, run.start, run.len())?)?;
            }
        }
        Ok(())
    }

    /// Returns the missing pages for which threads have begun to wait since the last call: those
    /// that are to be fetched next. No page is returned twice; see [`Missing::waited_for`]. Pages
    /// that are absent without being missing get zeros. Returns at once.
    ///
    /// # Errors
    /// The error from the kernel.
    pub fn wanted(&self) -> Result<Vec<ChunkPages>> {
        let mut found: Vec<ChunkPages> = Vec::new();
        let Ok(faults) = self.faults() else { return Ok(found) };
        for address in faults.waited_for()? {
            let (chunk, page) = self.locate(address).ok_or(ErrorKind::InvalidData)?;
            let bit = 1 << page;
            let mut pages = self.pages(chunk)?;
            if pages.missing & bit == 0 {
                give_zeros(&faults, address);
            } else if pages.wanted & bit == 0 {
                pages.wanted |= bit;
                self.lock_waits().begin(chunk, page as u32, Instant::now());
                match found.iter_mut().find(|(number, _)| *number == chunk) {
                    Some((_, mask)) => *mask |= bit,
                    None => found.push((chunk, bit)),
                }
            }
        }
        Ok(found)
    }

    /// Places those of the pages from page `first_page` of `chunk` on that are missing; `content`
    /// is whole pages. Returns how many it placed.
    ///
    /// # Errors
    /// `InvalidInput` if they are not whole pages of the guest; otherwise the error from the
    /// kernel, `ENOENT` after [`Missing::end`]: what was placed by then is no longer missing, and
    /// the rest may be placed later.
    pub fn place(&self, chunk: usize, first_page: usize, content: &[u8]) -> Result<u32> {
        let count = content.len() / PAGE_BYTES;
        let fits = first_page < CHUNK_PAGES && count <= CHUNK_PAGES - first_page;
        if !fits || !content.len().is_multiple_of(PAGE_BYTES) {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.arrive(chunk, mask_of(first_page, count), |addresses, pages| {
            let bytes = |page: usize| (page - first_page) * PAGE_BYTES;
            let content = &content[bytes(pages.start)..bytes(pages.end)];
            self.faults()?.copy(addresses.start, content)
        })
    }

    /// Places zeros as those pages of `chunk` that are in `mask` and missing. Returns how many it
    /// placed.
    ///
    /// # Errors
    /// As [`Missing::place`].
    pub fn place_zeros(&self, chunk: usize, mask: u64) -> Result<u32> {
        self.arrive(chunk, mask, |addresses, _| self.faults()?.zero(addresses))
    }

    fn arrive(
        &self,
        chunk: usize,
        mask: u64,
        place: impl Fn(&Range<u64>, &Range<usize>) -> Result<()>,
    ) -> Result<u32> {
        let start = self.address(chunk)?;
        let mut pages = self.pages(chunk)?;
        let mut placed = 0;
        for run in runs::of_mask(mask & pages.missing) {
            let address = |page: usize| start + (page * PAGE_BYTES) as u64;
            place(&(address(run.start)..address(run.end)), &run)?;
            placed += self.settle(chunk, &mut pages, mask_of(run.start, run.len()));
        }
        Ok(placed)
    }

    /// Drops whole pages of a region, at these offsets; all of them then read as zeros, and those
    /// that were missing need not arrive.
    ///
    /// # Errors
    /// `InvalidInput` or `EINVAL` if they are not whole pages of such a region; otherwise the error
    /// from the kernel.
    pub(crate) fn discard(&self, region: usize, offsets: &Range<usize>) -> Result<()> {
        let (Some(place), Some(region)) =
            (self.layout.regions().get(region), self.memory.iter().nth(region))
        else {
            return Err(ErrorKind::InvalidInput.into());
        };
        for part in Part::new(region, offsets.start, offsets.len())?.blocks(CHUNK_BYTES) {
            let (start, bytes) = (part.range().start, part.range().len());
            let chunk = place.first_chunk + start / CHUNK_BYTES;
            let mut pages = self.pages(chunk)?;
            mapping::drop_pages(part)?;
            let mask = mask_of(start % CHUNK_BYTES / PAGE_BYTES, bytes / PAGE_BYTES);
            let is_wanted = pages.wanted & mask != 0;
            self.settle(chunk, &mut pages, mask);
            if is_wanted && let Ok(faults) = self.faults() {
                // They report that they wait again, now for a page that is not missing.
                faults.wake(&part.addresses())?;
            }
        }
        Ok(())
    }

    /// Notes that these pages of `chunk` are missing no longer; returns how many of them were.
    fn settle(&self, chunk: usize, pages: &mut Pages, mask: u64) -> u32 {
        let settled = (pages.missing & mask).count_ones();
        if pages.wanted & mask != 0 {
            self.lock_waits().end(chunk, pages.wanted & mask, Instant::now());
        }
        pages.missing &= !mask;
        pages.wanted &= !mask;
        let before = self.left.fetch_sub(settled.into(), Ordering::AcqRel);
        if settled != 0 && before == u64::from(settled) {
            self.bell.ring();
        }
        settled
    }

    /// Returns the number of pages that are missing.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Returns the pages that are missing, in order: what a source that has lost its connection
    /// must send.
    pub fn missing(&self) -> Vec<ChunkPages> {
        self.all(|pages| pages.missing)
    }

    /// Returns the missing pages that were returned as wanted and have not arrived: what must be
    /// requested again after a lost connection.
    pub fn waited_for(&self) -> Vec<ChunkPages> {
        self.all(|pages| pages.wanted)
    }

    /// Returns how long threads wait for missing pages: those waits that have ended only once.
    pub fn waits(&self) -> Waits {
        self.lock_waits().take(Instant::now())
    }

    fn lock_waits(&self) -> MutexGuard<'_, WaitLog> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self, of: impl Fn(&Pages) -> u64) -> Vec<ChunkPages> {
        let masks = self.chunks.iter().map(|pages| of(&lock(pages)));
        masks.enumerate().filter(|(_, mask)| *mask != 0).collect()
    }

    /// Lets accesses wait no longer, and closes the userfaultfd. Pages that are missing are lost:
    /// they read as zeros.
    ///
    /// # Errors
    /// The error from the kernel.
    pub fn end(&self) -> Result<()> {
        let faults = self.faults.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(faults) = faults else { return Ok(()) };
        // A thread in `wait` keeps the userfaultfd open.
        self.bell.ring();
        self.memory.iter().try_for_each(|region| faults.unregister(Part::whole(region)))
    }

    /// Returns what reports accesses and places pages.
    ///
    /// # Errors
    /// `ENOENT` after [`Missing::end`], as from the kernel for memory that is not registered.
    fn faults(&self) -> Result<Arc<MissingPages>> {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.clone().ok_or_else(|| Errno::NOENT.into())
    }

    /// Returns whether accesses wait no longer, so that memory is as any other.
    pub(super) fn is_ended(&self) -> bool {
        self.faults().is_err()
    }

    /// Waits until a thread waits for a page, so that [`Missing::wanted`] returns something; until
    /// the last missing page has arrived; or until [`Missing::end`] or [`Missing::interrupt`]. It
    /// waits for at most `patience`, if there is a limit. Only one thread may call it at a time.
    ///
    /// # Errors
    /// The error from the kernel.
    pub fn wait(&self, patience: Option<Duration>) -> Result<()> {
        let faults = self.faults().ok();
        let watched = faults.iter().map(|faults| faults.as_fd()).chain([self.bell.as_fd()]);
        let mut watched: Vec<_> =
            watched.map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN)).collect();
        let patience = patience.map(|patience| Timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        });
        let polled = poll(&mut watched, patience.as_ref());
        self.bell.hear();
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the call of [`Missing::wait`] that is under way, or else the next one.
    pub fn interrupt(&self) {
        self.bell.ring();
    }

    fn pages(&self, chunk: usize) -> Result<MutexGuard<'_, Pages>> {
        self.chunks.get(chunk).map(lock).ok_or_else(|| ErrorKind::InvalidInput.into())
    }

    /// Returns the address of a chunk in this process.
    fn address(&self, chunk: usize) -> Result<u64> {
        let place = self.layout.locate(chunk);
        let found = place.and_then(|(region, offset)| {
            Some(host_address(self.memory.iter().nth(region)?) as u64 + offset as u64)
        });
        found.ok_or_else(|| ErrorKind::InvalidInput.into())
    }

    /// Returns the chunk of the page at this address of this process, and its number in the chunk.
    fn locate(&self, address: u64) -> Option<(usize, usize)> {
        let mut regions = self.memory.iter().zip(self.layout.regions());
        regions.find_map(|(region, place)| {
            let offset = address.checked_sub(host_address(region) as u64)?;
            let (chunk, rest) = (offset as usize / CHUNK_BYTES, offset as usize % CHUNK_BYTES);
            (offset < place.bytes).then_some((place.first_chunk + chunk, rest / PAGE_BYTES))
        })
    }
}

/// Places zeros at a page that never has to arrive, or wakes those who wait for it if it has
/// arrived meanwhile.
fn give_zeros(faults: &MissingPages, address: u64) {
    let page = address..address + PAGE_BYTES as u64;
    let given = faults.zero(&page).or_else(|error| {
        tracing::warn!(%error, "the host has no memory for a page of a guest: trying again");
        // They report that they wait again.
        faults.wake(&page)
    });
    if let Err(error) = given {
        tracing::error!(%error, "a guest waits for a page for ever");
    }
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the mask of `count` pages of a chunk from page `first` on.
fn mask_of(first: usize, count: usize) -> u64 {
    let ones = u64::MAX.checked_shr((CHUNK_PAGES - count) as u32).unwrap_or(0);
    ones << first
}

#[cfg(test)]
mod tests;
