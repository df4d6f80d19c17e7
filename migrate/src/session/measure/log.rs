//! Counts the distinct pages that the guest writes, for windows of growing length.

use std::thread;
use std::time::{Duration, Instant};

use crate::estimate::Written;
use crate::guest::{GuestError, SourceGuest};
use crate::memory::PageSet;

/// When the dirty log is read, counted from its start. It is not re-armed in between, so each
/// reading has the pages of the one before.
const READ_AT_MS: [u64; 5] = [30, 100, 300, 1000, 2000];
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
    let arming = Instant::now();
    for (index, words) in PageSet::full(chunks).words().chunks(ARMED_CHUNKS).enumerate() {
        guest.rearm_dirty(index * ARMED_CHUNKS, words)?;
        thread::sleep(ARMING_PAUSE);
    }
    // Pages armed first are watched for longer: this is the middle.
    let watched = arming + arming.elapsed() / 2;
    let mut dirty = PageSet::empty(chunks);
    let (mut written, mut collect) = (Vec::new(), Duration::MAX);
    for ms in READ_AT_MS {
        thread::sleep(Duration::from_millis(ms).saturating_sub(watched.elapsed()));
        let seconds = watched.elapsed().as_secs_f64();
        let reading = Instant::now();
        guest.collect_dirty(dirty.words_mut())?;
        collect = collect.min(reading.elapsed());
        written.push(Written { seconds, pages: dirty.count() });
    }
    Ok(Log { start, collect, written })
}
