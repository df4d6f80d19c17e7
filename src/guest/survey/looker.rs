//! The thread that looks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use memopt::survey::{Pace, Page, Scan, Watch};
use nix::time::{ClockId, clock_gettime};
use vmm_core::memory::{GuestRam, MemoryError, OwnPages, PageMap};

use super::{CHUNK_BYTES, Found, Mapped, Progress, State};
use crate::guest::machine::SharedMachine;
use crate::guest::process::{GuestProcess, Occupation};
use crate::units::PAGE_BYTES;

/// Pages that are copied out at once: they fit a second-level cache.
const COPIED_PAGES: u64 = 32;

/// Between the two looks at what is written, at least.
const LOOKS_APART: Duration = Duration::from_secs(1);

/// What a look at the tables of a chunk costs, in pages that are read meanwhile.
const TABLE_PAGES: usize = 4;

/// The lowest priority but for idle work (setpriority(2)).
const NICE: i32 = 19;

/// Why a look ends early.
enum Ended {
    /// Something else is to be done with the guest, or it is gone.
    CalledOff,
    /// The kernel does not let it go on.
    Failed(MemoryError),
}

impl From<MemoryError> for Ended {
    fn from(error: MemoryError) -> Self {
        Self::Failed(error)
    }
}

/// Which of the two looks at what is written.
#[derive(Clone, Copy)]
enum Look {
    First,
    Second,
}

/// Somebody who looks.
pub(super) struct Looker {
    process: Weak<GuestProcess>,
    progress: Arc<Progress>,
    pace: Pace,
    /// Pages since the last rest.
    batch: usize,
    /// CPU time of this thread at the last rest.
    cpu: Duration,
    own: Vec<u8>,
    theirs: Vec<u8>,
}

impl Looker {
    /// Looks at the guest of `process` with a share of a CPU.
    pub(super) fn new(process: &Arc<GuestProcess>, progress: &Arc<Progress>, share: f64) -> Self {
        let buffer = vec![0; (COPIED_PAGES * PAGE_BYTES) as usize];
        Self {
            process: Arc::downgrade(process),
            progress: Arc::clone(progress),
            pace: Pace::new(share),
            batch: 0,
            cpu: Duration::ZERO,
            own: buffer.clone(),
            theirs: buffer,
        }
    }

    /// Looks, and leaves what was found with the process.
    pub(super) fn finish(mut self, scan: Scan, watch: Watch) {
        // Refused, it looks with the priority that it has, within its share.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "a look at the guest's pages has an ordinary priority");
        }
        self.cpu = thread_cpu();
        let progress = Arc::clone(&self.progress);
        let state = match self.look(scan, watch) {
            Ok(found) => State::Done(progress, Arc::new(found)),
            Err(Ended::CalledOff) => {
                let text = "called off: the guest is migrated, saved, or ended";
                State::Failed(progress, text.to_owned())
            }
            Err(Ended::Failed(error)) => State::Failed(progress, error.to_string()),
        };
        if let Some(process) = self.process.upgrade() {
            *process.surveys().state() = state;
        }
    }

    fn look(&mut self, mut scan: Scan, mut watch: Watch) -> Result<Found, Ended> {
        let mut map = PageMap::open()?;
        let mut mapped = BTreeMap::new();
        self.each_chunk(|looker, ram, range| {
            let index = (range.start / CHUNK_BYTES) as u32;
            let (found, pages) = looker.contents(&mut map, ram, &range, &mut scan)?;
            mapped.insert(index, found);
            Ok(pages)
        })?;
        self.each_chunk(|looker, ram, range| {
            looker.samples(&mut map, ram, &range, &mut watch, Look::First)
        })?;
        std::thread::sleep(LOOKS_APART);
        self.each_chunk(|looker, ram, range| {
            looker.samples(&mut map, ram, &range, &mut watch, Look::Second)
        })?;
        let view = map.view();
        Ok(Found { scanned: scan.finish(), watch, mapped, view, ended: Instant::now() })
    }

    /// Does something with each chunk of 2 MiB that tells how many pages it took, and rests in between as its share asks for.
    fn each_chunk(
        &mut self,
        mut body: impl FnMut(&mut Self, &GuestRam, Range<u64>) -> Result<usize, MemoryError>,
    ) -> Result<(), Ended> {
        let regions = self.machine()?.vm().ram().layout().regions().to_vec();
        for region in regions {
            let end = region.gpa + region.bytes;
            for gpa in (region.gpa..end).step_by(CHUNK_BYTES as usize) {
                // Held no longer than for this: a process that ends waits for nobody who rests.
                let machine = self.machine()?;
                let pages = body(self, machine.vm().ram(), gpa..end.min(gpa + CHUNK_BYTES))?;
                drop(machine);
                self.batch += pages + TABLE_PAGES;
                if self.batch >= self.pace.pages() {
                    self.rest();
                }
            }
        }
        self.rest();
        Ok(())
    }

    /// Digests the pages of a chunk that are the guest's own. Returns how it is mapped, and the pages that were read.
    fn contents(
        &mut self,
        map: &mut PageMap,
        ram: &GuestRam,
        range: &Range<u64>,
        scan: &mut Scan,
    ) -> Result<(Mapped, usize), MemoryError> {
        let mut mapped = Mapped::default();
        let mut read = 0;
        for pages in map.own_pages(ram, range)? {
            mapped.huge_pages += if pages.is_huge { pages.count as u16 } else { 0 };
            for part in parts(&pages) {
                let bytes = ((part.end - part.start) as usize) * PAGE_BYTES as usize;
                let gpa = part.start * PAGE_BYTES;
                let own = &mut self.own[..bytes];
                ram.read(gpa, own)?;
                let (own, _) = self.own[..bytes].as_chunks();
                scan.feed(part.clone().zip(own));
                read += own.len();
                let theirs = &mut self.theirs[..bytes];
                if ram.is_from_template() && ram.read_template(gpa, theirs)? {
                    let (theirs, _): (&[Page], _) = theirs.as_chunks();
                    let equal = own.iter().zip(theirs).filter(|(own, theirs)| own == theirs);
                    mapped.template_pages += equal.count() as u16;
                }
            }
        }
        self.progress.pages.fetch_add(read as u64, Ordering::Relaxed);
        Ok((mapped, read))
    }

    /// Looks at the few pages of a chunk that tell whether it is written.
    fn samples(
        &mut self,
        map: &mut PageMap,
        ram: &GuestRam,
        range: &Range<u64>,
        watch: &mut Watch,
        look: Look,
    ) -> Result<usize, MemoryError> {
        let mut read = 0;
        let mut page: Page = [0; PAGE_BYTES as usize];
        for pages in map.own_pages(ram, range)? {
            let first = pages.gpa / PAGE_BYTES;
            for index in first..first + pages.count {
                if !watch.wants(index) {
                    continue;
                }
                ram.read(index * PAGE_BYTES, &mut page)?;
                read += 1;
                match look {
                    Look::First => watch.first(index, &page),
                    Look::Second => watch.second(index, &page),
                }
            }
        }
        Ok(read)
    }

    /// Rests as its share asks for.
    fn rest(&mut self) {
        self.batch = 0;
        let worked = thread_cpu().saturating_sub(self.cpu);
        std::thread::sleep(self.pace.rest(worked));
        self.cpu = thread_cpu();
        let worked = u64::try_from(worked.as_nanos()).unwrap_or(u64::MAX);
        self.progress.cpu_ns.fetch_add(worked, Ordering::Relaxed);
    }

    /// The machine, as long as nothing else is to be done with it.
    fn machine(&self) -> Result<SharedMachine, Ended> {
        let process = self.process.upgrade().ok_or(Ended::CalledOff)?;
        let is_free = match &*process.occupation() {
            Occupation::None => true,
            Occupation::Arriving(arrival) => arrival.has_arrived(),
            Occupation::Saving(_) | Occupation::Leaving(_) => false,
        };
        let machine = process.machine().filter(|_| is_free && !process.is_ending());
        machine.cloned().ok_or(Ended::CalledOff)
    }
}

/// Numbers of pages that are copied out at once.
fn parts(pages: &OwnPages) -> impl Iterator<Item = Range<u64>> {
    let first = pages.gpa / PAGE_BYTES;
    let end = first + pages.count;
    (first..end).step_by(COPIED_PAGES as usize).map(move |at| at..end.min(at + COPIED_PAGES))
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
