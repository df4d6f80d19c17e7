//! Counts the distinct pages that the guest writes in windows of growing length, and those that it
//! writes again and again.

use std::thread;
use std::time::{Duration, Instant};

use crate::estimate::{ChunkCounts, Written};
use crate::guest::{GuestError, SourceGuest};
use crate::memory::PageSet;

/// How long the guest is watched before what it has written is re-armed: the first write to a page
/// takes longer than those in the later rounds of a migration, since KVM maps it by itself then.
const FIRST: Duration = Duration::from_secs(1);
/// When the dirty log is read after that. It is not re-armed in between, so each reading has the
/// pages of the one before.
const READ_AT_MS: [u64; 4] = [30, 100, 300, 1000];
/// Chunks re-armed at once, and the pause after that: the guest's vCPUs wait for each piece.
const ARMED_CHUNKS: usize = 1024;
const ARMING_PAUSE: Duration = Duration::from_micros(50);

/// The readings of the log.
#[derive(Debug)]
pub(super) struct Log {
    /// Time to start it.
    pub(super) start: Duration,
    /// Time to read it once, the shortest.
    pub(super) collect: Duration,
    pub(super) written: Vec<Written>,
}

/// Logs what a guest writes; dropping this stops the log.
struct Logging<'a>(&'a dyn SourceGuest);

impl Drop for Logging<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.stop_dirty_log() {
            tracing::warn!(%error, "the dirty log stays on after an estimate, which makes the guest slower");
        }
    }
}

/// Logs the writes to the `chunks` chunks of memory and copied disks for two seconds.
///
/// # Errors
/// If the log cannot be started or read; it is off afterwards.
pub(super) fn sample(guest: &dyn SourceGuest, chunks: usize) -> Result<Log, GuestError> {
    let began = Instant::now();
    // Before the start, which may fail half-way.
    let _logging = Logging(guest);
    guest.start_dirty_log()?;
    let start = began.elapsed();
    // The first reading may have every page.
    guest.collect_dirty(PageSet::empty(chunks).words_mut())?;
    let began = arm(guest, &PageSet::full(chunks))?;
    thread::sleep(FIRST.saturating_sub(began.elapsed()));
    let mut first = PageSet::empty(chunks);
    guest.collect_dirty(first.words_mut())?;
    let again = arm(guest, &first)?;
    let mut later = PageSet::empty(chunks);
    let (mut counts, mut collect) = (ChunkCounts::new(chunks), Duration::MAX);
    for ms in READ_AT_MS {
        thread::sleep(Duration::from_millis(ms).saturating_sub(again.elapsed()));
        let seconds = again.elapsed().as_secs_f64();
        let reading = Instant::now();
        guest.collect_dirty(later.words_mut())?;
        collect = collect.min(reading.elapsed());
        counts.add(seconds, &later);
    }
    let mut all = first.clone();
    all.union(&later);
    counts.add(began.elapsed().as_secs_f64(), &all);
    Ok(Log { start, collect, written: counts.windows(&first, &later) })
}

/// Arms the log for these pages; returns since when they are watched. Those that are armed first
/// are watched for longer: it is the middle.
fn arm(guest: &dyn SourceGuest, pages: &PageSet) -> Result<Instant, GuestError> {
    let arming = Instant::now();
    for (index, words) in pages.words().chunks(ARMED_CHUNKS).enumerate() {
        if words.iter().any(|word| *word != 0) {
            guest.rearm_dirty(index * ARMED_CHUNKS, words)?;
            thread::sleep(ARMING_PAUSE);
        }
    }
    Ok(arming + arming.elapsed() / 2)
}
