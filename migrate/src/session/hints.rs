//! Asks a guest which of its pages are free, so that they are not sent.
//!
//! A hint holds only for the time at which the guest gave it: the guest may take the page back and
//! write it before the host reads the hint. So all of memory is re-armed *before* the guest is
//! asked. From then on, every written page is in the dirty log and stays there until it is
//! re-armed, right before it is copied. A hinted page that is not in the log when the first round
//! begins is omitted from that round; if it is written later, the collection after the round finds
//! it. See docs/adr/0015-free-page-hints.md.

use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::guest::{GuestError, HintProgress, SourceGuest};
use crate::memory::PageSet;

/// Chunks re-armed by one call: 256 MiB, the most that one `KVM_CLEAR_DIRTY_LOG` takes.
pub(super) const BLOCK_CHUNKS: usize = 1024;
/// Pause between two checks of the guest's progress.
const POLL_PAUSE: Duration = Duration::from_millis(2);
/// Longest time that a guest may report nothing new.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Longest time that reporting may take. The guest withholds its free memory meanwhile.
const TIME_MAX: Duration = Duration::from_secs(3);

/// Holds the hinted pages until the first round, whose sender owns it.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<PageSet>>);

impl Slot {
    fn put(&self, hinted: PageSet) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(hinted);
    }

    /// Takes the hinted pages out.
    pub(super) fn take(&self) -> Option<PageSet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Fills `slot` with the pages that `guest` reports as free; `chunks` is the number of all its
/// chunks, of which the first `memory_chunks` are memory. Blocks for some seconds at most, and only
/// while `slot` is in use. Call it after the dirty log was started and before the first round.
/// Without hints a migration is slower, but works: errors are only logged.
pub(super) fn gather(
    guest: &dyn SourceGuest,
    chunks: usize,
    memory_chunks: usize,
    slot: &Weak<Slot>,
) {
    if !guest.gives_hints() {
        return;
    }
    let gathered = arm(guest, chunks, memory_chunks).and_then(|()| ask(guest, memory_chunks, slot));
    match (gathered, slot.upgrade()) {
        (Ok(hinted), Some(slot)) => slot.put(hinted),
        (Ok(_), None) => {}
        (Err(error), _) => tracing::warn!(%error, "the guest's free pages are sent, too"),
    }
}

/// Re-arms every page of memory. All of them are still to be sent, so no change is lost.
fn arm(guest: &dyn SourceGuest, chunks: usize, memory_chunks: usize) -> Result<(), GuestError> {
    // The first read of a log may report every page, whatever was re-armed before it.
    guest.collect_dirty(PageSet::empty(chunks).words_mut())?;
    let all = PageSet::full(memory_chunks);
    let blocks = (0..).step_by(BLOCK_CHUNKS).zip(all.words().chunks(BLOCK_CHUNKS));
    blocks.into_iter().try_for_each(|(first, words)| guest.rearm_dirty(first, words))
}

fn ask(
    guest: &dyn SourceGuest,
    memory_chunks: usize,
    slot: &Weak<Slot>,
) -> Result<PageSet, GuestError> {
    let asked = guest.begin_hints().and_then(|()| wait(guest, slot));
    // Also after a failure: the guest must get its free memory back.
    let mut hinted = PageSet::empty(memory_chunks);
    guest.end_hints(hinted.words_mut())?;
    asked.map(|()| hinted)
}

/// Waits until the guest has reported everything, falls silent, or the hints are no longer wanted.
fn wait(guest: &dyn SourceGuest, slot: &Weak<Slot>) -> Result<(), GuestError> {
    let began = Instant::now();
    let (mut heard, mut known) = (began, 0);
    while slot.strong_count() > 0 {
        let HintProgress { pages, complete } = guest.hint_progress()?;
        if pages > known {
            (heard, known) = (Instant::now(), pages);
        }
        if complete || heard.elapsed() > SILENCE_MAX || began.elapsed() > TIME_MAX {
            break;
        }
        std::thread::sleep(POLL_PAUSE);
    }
    Ok(())
}
