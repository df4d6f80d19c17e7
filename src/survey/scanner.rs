//! The thread that scans memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use memopt::policy::Activity;
use memopt::survey::{Pace, Page, Scan, Watch, Written};
use nix::time::{ClockId, clock_gettime};
use vmm_core::memory::{MemoryError, OwnPages};

use super::scan_result::{Mapped, ScanResult};
use super::{CHUNK_BYTES, Ended, Memory, Progress};
use crate::units::PAGE_BYTES;

/// Pages that are copied at once: they fit in a second-level cache.
const COPIED_PAGES: u64 = 32;

/// Shortest time between the two samples of what is written.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Cost of reading the page tables of a chunk, in pages that could be read meanwhile.
const TABLE_PAGES: usize = 4;

/// The lowest priority except idle scheduling (setpriority(2)).
const NICE: i32 = 19;

/// The first or the second sample of what is written.
#[derive(Clone, Copy)]
enum Pass {
    First,
    Second,
}

/// Reads a guest's pages for a survey, within a share of a CPU.
pub(crate) struct Scanner<M> {
    memory: M,
    progress: Arc<Progress>,
    pace: Pace,
    /// Pages read since the last pause.
    batch: usize,
    /// CPU time of this thread at the last pause.
    cpu: Duration,
    own: Vec<u8>,
    theirs: Vec<u8>,
}

impl<M: Memory> Scanner<M> {
    /// Prepares to scan `memory` with a share of a CPU.
    pub(crate) fn new(memory: M, progress: Arc<Progress>, share: f64) -> Self {
        let buffer = vec![0; (COPIED_PAGES * PAGE_BYTES) as usize];
        Self {
            memory,
            progress,
            pace: Pace::new(share),
            batch: 0,
            cpu: Duration::ZERO,
            own: buffer.clone(),
            theirs: buffer,
        }
    }

    /// Scans at the lowest priority for this thread, which should have no other work.
    ///
    /// # Errors
    /// If the scan is cancelled, or cannot continue.
    pub(crate) fn run(
        mut self,
        mut scan: Scan,
        watch: Watch,
        activity: Activity,
    ) -> Result<ScanResult, Ended> {
        // If this is refused, the scan runs at normal priority, within its share.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "the survey of the guest's pages has an ordinary priority");
        }
        self.cpu = thread_cpu();
        let mut mapped = BTreeMap::<u32, Mapped>::new();
        self.each_chunk(|scanner, index, found| {
            scanner.contents(&found, &mut scan, mapped.entry(index).or_default())
        })?;
        let written = self.written(watch, activity)?;
        let view = self.memory.view();
        Ok(ScanResult { scanned: scan.finish(), written, mapped, view, ended: Instant::now() })
    }

    /// Watches for a short time which pages are written: by the dirty log if that is requested and
    /// available, otherwise by samples.
    fn written(&mut self, mut watch: Watch, activity: Activity) -> Result<Written, Ended> {
        if activity == Activity::DirtyLog
            && let Some(logged) = self.memory.log_writes(SAMPLE_INTERVAL)?
        {
            self.rest();
            return Ok(Written::Logged(logged));
        }
        self.each_chunk(|scanner, _, found| scanner.samples(&found, &mut watch, Pass::First))?;
        std::thread::sleep(SAMPLE_INTERVAL);
        self.each_chunk(|scanner, _, found| scanner.samples(&found, &mut watch, Pass::Second))?;
        Ok(Written::Sampled(watch))
    }

    /// Calls `body` with the present pages of each chunk of 2 MiB; it returns how many pages it
    /// read. Pauses in between as the CPU share requires.
    fn each_chunk(
        &mut self,
        mut body: impl FnMut(&mut Self, u32, Vec<OwnPages>) -> Result<usize, MemoryError>,
    ) -> Result<(), Ended> {
        for area in self.memory.areas()? {
            let mut start = area.start;
            while start < area.end {
                let index = start / CHUNK_BYTES;
                let end = area.end.min((index + 1) * CHUNK_BYTES);
                let found = self.memory.own_pages(&(start..end))?;
                if !found.is_empty() {
                    self.batch += body(self, index as u32, found)?;
                }
                self.memory.let_go();
                self.batch += TABLE_PAGES;
                if self.batch >= self.pace.pages() {
                    self.rest();
                }
                start = end;
            }
        }
        self.rest();
        Ok(())
    }

    /// Digests the pages of a chunk. Returns how many were read.
    fn contents(
        &mut self,
        found: &[OwnPages],
        scan: &mut Scan,
        mapped: &mut Mapped,
    ) -> Result<usize, MemoryError> {
        let mut read = 0;
        mapped.has_twins |= self.memory.has_twins(found)?;
        for pages in found {
            mapped.huge_pages += if pages.is_huge { pages.count as u16 } else { 0 };
            for part in parts(pages) {
                let bytes = ((part.end - part.start) as usize) * PAGE_BYTES as usize;
                let address = part.start * PAGE_BYTES;
                let own = &mut self.own[..bytes];
                self.memory.read(address, own)?;
                let (own, _) = self.own[..bytes].as_chunks();
                scan.feed(part.clone().zip(own));
                read += own.len();
                let theirs = &mut self.theirs[..bytes];
                if self.memory.read_template(address, theirs)? {
                    let (theirs, _): (&[Page], _) = theirs.as_chunks();
                    let equal = own.iter().zip(theirs).filter(|(own, theirs)| own == theirs);
                    mapped.template_pages += equal.count() as u16;
                }
            }
        }
        self.progress.pages.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }

    /// Samples the few pages of a chunk that show whether it is written. Returns how many were
    /// read.
    fn samples(
        &self,
        found: &[OwnPages],
        watch: &mut Watch,
        pass: Pass,
    ) -> Result<usize, MemoryError> {
        let mut read = 0;
        let mut page: Page = [0; PAGE_BYTES as usize];
        for pages in found {
            let first = pages.start / PAGE_BYTES;
            for index in first..first + pages.count {
                if !watch.wants(index) {
                    continue;
                }
                self.memory.read(index * PAGE_BYTES, &mut page)?;
                read += 1;
                match pass {
                    Pass::First => watch.first(index, &page),
                    Pass::Second => watch.second(index, &page),
                }
            }
        }
        Ok(read)
    }

    /// Pauses as the CPU share requires.
    fn rest(&mut self) {
        self.batch = 0;
        let worked = thread_cpu().saturating_sub(self.cpu);
        std::thread::sleep(self.pace.rest(worked));
        self.cpu = thread_cpu();
        let worked = u64::try_from(worked.as_nanos()).unwrap_or(u64::MAX);
        self.progress.cpu_ns.fetch_add(worked, Ordering::Relaxed);
    }
}

/// Splits `pages` into ranges of page numbers that are copied at once.
fn parts(pages: &OwnPages) -> impl Iterator<Item = Range<u64>> {
    let first = pages.start / PAGE_BYTES;
    let end = first + pages.count;
    (first..end).step_by(COPIED_PAGES as usize).map(move |at| at..end.min(at + COPIED_PAGES))
}

/// Returns the CPU time of this thread.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
