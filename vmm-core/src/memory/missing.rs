//! Guest memory of which pages are missing: a vCPU or a device's thread that accesses one of them,
//! or the kernel for either, waits until it has arrived. docs/adr/0029-post-copy.md gives the
//! reasons.

mod bell;
mod faults;
mod hugetlb;
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
use self::faults::{Faults, Place};
use self::waits::WaitLog;
use super::{CHUNK_BYTES, CHUNK_PAGES, GuestRam, PAGE_BYTES, RamLayout, RamMap, runs};
use crate::sys::host_address;
use crate::sys::mapping::Part;
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
    faults: RwLock<Option<Arc<Faults>>>,
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
    /// `EINVAL` for memory of a template, and for that of a pool before Linux 5.13; otherwise the
    /// error from the kernel.
    pub(crate) fn begin(ram: &GuestRam, faults: MissingPages) -> Result<Self> {
        let faults = RwLock::new(Some(Arc::new(Faults::begin(ram, faults)?)));
        let (memory, layout) = (ram.memory().clone(), ram.layout().clone());
        let chunks = (0..layout.chunks()).map(|_| Mutex::default()).collect();
        let (left, waits, bell) = (AtomicU64::new(0), Mutex::default(), Bell::new()?);
        Ok(Self { faults, memory, layout, chunks, left, waits, bell })
    }

    /// Drops the pages in `words`, one word for each chunk: they are missing from now on. Neither
    /// guest nor devices may run, since a page to which the kernel holds a reference would be lost.
    ///
    /// # Errors
    /// `InvalidInput` unless there is a word for each chunk; otherwise the error from the kernel:
    /// `EINVAL` for memory of a pool before Linux 5.18, `ENOENT` after [`Missing::end`].
    pub fn clear(&self, words: &[u64]) -> Result<()> {
        if words.len() != self.chunks.len() {
            return Err(ErrorKind::InvalidInput.into());
        }
        let faults = self.faults()?;
        for (number, (region, place)) in self.memory.iter().zip(self.layout.regions()).enumerate() {
            // Whole runs: huge pages would be split if they were dropped chunk by chunk.
            let mut dropped: Vec<Range<usize>> = Vec::new();
            let words = words.iter().skip(place.first_chunk).take(place.chunks());
            for (index, mask) in words.enumerate() {
                self.lose(&faults, place.first_chunk + index, *mask)?;
                for run in runs::of_mask(*mask) {
                    let offset = |page: usize| index * CHUNK_BYTES + page * PAGE_BYTES;
                    let all = faults.unmapped_with(offset(run.start)..offset(run.end));
                    let start = dropped.last().map_or(all.start, |last| all.start.max(last.end));
                    if start < all.end {
                        runs::add(&mut dropped, start..all.end);
                    }
                }
            }
            for run in dropped {
                faults.unmap(number, Part::new(region, run.start, run.len())?)?;
            }
        }
        Ok(())
    }

    /// Notes that the pages of `chunk` in `mask` are missing.
    fn lose(&self, faults: &Faults, chunk: usize, mask: u64) -> Result<()> {
        let mut pages = self.pages(chunk)?;
        let added = (mask & !pages.missing).count_ones();
        self.left.fetch_add(added.into(), Ordering::AcqRel);
        faults.lose(chunk, added);
        pages.missing |= mask;
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
        for address in faults.pages().waited_for()? {
            let (chunk, page) = self.locate(address).ok_or(ErrorKind::InvalidData)?;
            let (chunks, mask) = faults.needed(chunk, page);
            let mut is_missing = false;
            for chunk in chunks {
                let mut pages = self.pages(chunk)?;
                is_missing |= pages.missing & mask != 0;
                let new = pages.missing & mask & !pages.wanted;
                if new == 0 {
                    continue;
                }
                pages.wanted |= new;
                let (known_as, bit) = faults.wait_of(chunk, new);
                self.lock_waits().begin(known_as, bit.trailing_zeros(), Instant::now());
                match found.iter_mut().find(|(number, _)| *number == chunk) {
                    Some((_, mask)) => *mask |= new,
                    None => found.push((chunk, new)),
                }
            }
            if !is_missing {
                answer(&faults, address);
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
        self.arrive(chunk, mask_of(&(first_page..first_page + count)), |faults, place| {
            let bytes = |page: usize| (page - first_page) * PAGE_BYTES;
            faults.copy(place, &content[bytes(place.pages.start)..bytes(place.pages.end)])
        })
    }

    /// Places zeros as those pages of `chunk` that are in `mask` and missing. Returns how many it
    /// placed.
    ///
    /// # Errors
    /// As [`Missing::place`].
    pub fn place_zeros(&self, chunk: usize, mask: u64) -> Result<u32> {
        self.arrive(chunk, mask, Faults::zero)
    }

    fn arrive(
        &self,
        chunk: usize,
        mask: u64,
        give: impl Fn(&Faults, &Place) -> Result<()>,
    ) -> Result<u32> {
        let chunk_address = self.address(chunk)?;
        let mut pages = self.pages(chunk)?;
        let mut placed = 0;
        for run in runs::of_mask(mask & pages.missing) {
            let faults = self.faults()?;
            let place = Place { chunk, pages: run, chunk_address };
            give(&faults, &place)?;
            placed += self.settle(&faults, &place, &mut pages)?;
        }
        Ok(placed)
    }

    /// Drops whole pages of a region, at these offsets; all of them then read as zeros, and those
    /// that were missing need not arrive. Returns how many bytes the host got, or `None`, and has
    /// dropped nothing, after [`Missing::end`].
    ///
    /// # Errors
    /// `InvalidInput` or `EINVAL` if they are not whole pages of such a region; otherwise the error
    /// from the kernel.
    pub(crate) fn discard(&self, region: usize, offsets: &Range<usize>) -> Result<Option<u64>> {
        let Ok(faults) = self.faults() else { return Ok(None) };
        let (Some(place), Some(region)) =
            (self.layout.regions().get(region), self.memory.iter().nth(region))
        else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let mut given = 0;
        for part in Part::new(region, offsets.start, offsets.len())?.blocks(CHUNK_BYTES) {
            let Range { start, end } = part.range();
            let first = start % CHUNK_BYTES / PAGE_BYTES;
            let place = Place {
                chunk: place.first_chunk + start / CHUNK_BYTES,
                pages: first..first + (end - start) / PAGE_BYTES,
                chunk_address: part.addresses().start - (first * PAGE_BYTES) as u64,
            };
            let mut pages = self.pages(place.chunk)?;
            given += faults.discard(&place, part)?;
            let is_wanted = pages.wanted & mask_of(&place.pages) != 0;
            self.settle(&faults, &place, &mut pages)?;
            if is_wanted {
                // They report that they wait again, now for a page that is not missing.
                faults.wake(&part.addresses())?;
            }
        }
        Ok(Some(given))
    }

    /// Notes that these pages are missing no longer; returns how many of them were.
    ///
    /// # Errors
    /// The error from the kernel: then they are missing.
    fn settle(&self, faults: &Faults, place: &Place, pages: &mut Pages) -> Result<u32> {
        let mask = mask_of(&place.pages);
        let settled = (pages.missing & mask).count_ones();
        if settled == 0 {
            return Ok(0);
        }
        if faults.gain(place.chunk, settled, place.chunk_address)? {
            let (known_as, pages) = faults.wait_of(place.chunk, pages.wanted & mask);
            self.lock_waits().end(known_as, pages, Instant::now());
        }
        pages.missing &= !mask;
        pages.wanted &= !mask;
        let before = self.left.fetch_sub(settled.into(), Ordering::AcqRel);
        if before == u64::from(settled) {
            self.bell.ring();
        }
        Ok(settled)
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
    /// they read as zeros, or, in memory of a pool, as they were before.
    ///
    /// # Errors
    /// The error from the kernel.
    pub fn end(&self) -> Result<()> {
        let faults = self.faults.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(faults) = faults else { return Ok(()) };
        // A thread in `wait` keeps the userfaultfd open.
        self.bell.ring();
        faults.end(self.memory.iter().map(Part::whole))
    }

    /// Returns what reports accesses and places pages.
    ///
    /// # Errors
    /// `ENOENT` after [`Missing::end`], as from the kernel for memory that is not registered.
    fn faults(&self) -> Result<Arc<Faults>> {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.clone().ok_or_else(|| Errno::NOENT.into())
    }

    /// Returns whether accesses wait no longer, so that memory is as any other.
    pub(super) fn is_ended(&self) -> bool {
        self.faults().is_err()
    }

    /// Returns whether a page of the chunks with these guest-physical addresses, below the PCI
    /// hole, is missing.
    pub(super) fn is_in(&self, addresses: &Range<u64>) -> bool {
        let chunk = |gpa: u64| (gpa / CHUNK_BYTES as u64) as usize;
        let chunks = chunk(addresses.start)..=chunk(addresses.end.saturating_sub(1));
        self.chunks.get(chunks).unwrap_or_default().iter().any(|pages| lock(pages).missing != 0)
    }

    /// Waits until a thread waits for a page, so that [`Missing::wanted`] returns something; until
    /// the last missing page has arrived; or until [`Missing::end`] or [`Missing::interrupt`]. It
    /// waits for at most `patience`, if there is a limit. Only one thread may call it at a time.
    ///
    /// # Errors
    /// The error from the kernel.
    pub fn wait(&self, patience: Option<Duration>) -> Result<()> {
        let faults = self.faults().ok();
        let watched = faults.iter().map(|faults| faults.pages().as_fd()).chain([self.bell.as_fd()]);
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
fn answer(faults: &Faults, address: u64) {
    let answered = faults.answer(address).or_else(|error| {
        tracing::warn!(%error, "the host has no memory for a page of a guest: trying again");
        // They report that they wait again.
        faults.wake(&(address..address + PAGE_BYTES as u64))
    });
    if let Err(error) = answered {
        tracing::error!(%error, "a guest waits for a page for ever");
    }
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the mask of these pages of a chunk.
fn mask_of(pages: &Range<usize>) -> u64 {
    let ones = u64::MAX.checked_shr((CHUNK_PAGES - pages.len()) as u32).unwrap_or(0);
    ones << pages.start
}

#[cfg(test)]
mod tests;
