//! The chunks of a round, shared by several links: each takes what it has room for, and repeats
//! what another one has had for too long without an acknowledgement.
//!
//! Of several copies of a chunk in one round any will do: the log of its pages is re-armed before
//! the first, so whatever is written later is sent again in a later round.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep};

use super::stream_sender::{StreamContext, StreamSendError};
use crate::memory::PageSet;
use crate::progress::Transfer;

/// Shortest time after which a link that has nothing else to send repeats what another one has not
/// delivered.
pub(super) const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// The same in round trips: two for what the link holds, one for the acknowledgement, one to spare.
const REPEAT_ROUND_TRIPS: u32 = 4;
/// Most chunks that a link takes at once: 2 MiB.
const SHARE_MAX: usize = 8;
/// A link takes at most this fraction of what would be its equal part of what is left: when the
/// pool is empty, all links are done at about the same time.
const SHARE_DIVISOR: usize = 4;
/// Most chunks between the first and the last one of a share, as their log is re-armed in one call.
const SPAN_MAX: usize = 64;

/// What a link is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Send these chunks, of these pages each, in this round.
    Chunks(u32, Vec<(usize, u64)>),
    /// Wait until something changes, or for [`REPEAT_AFTER`].
    Nothing,
    /// End the stream, with this round.
    End(u32),
}

/// The round under way, and the links that send it.
pub(super) struct Pool {
    context: StreamContext,
    round: Mutex<Round>,
    changed: Notify,
    /// Time after which a chunk is repeated.
    patience: Duration,
}

/// Rounds are counted here: one of the migration's may be none, and each has a number of its own.
struct Round {
    number: u32,
    /// Pages that no link has taken.
    left: PageSet,
    /// Number of chunks with such pages, and where the next one may be.
    left_chunks: usize,
    next: usize,
    /// Chunks that were taken and not acknowledged.
    open: BTreeMap<usize, Open>,
    sent: Transfer,
    /// Links that still send.
    links: usize,
    is_ending: bool,
    /// Set once the stream of a link has ended in order.
    has_ended: bool,
    failed: Option<StreamSendError>,
}

/// A chunk that was sent.
struct Open {
    pages: u64,
    /// Links that have it, one bit each.
    links: u32,
    since: Instant,
}

impl Pool {
    /// Creates a pool without chunks for `links` links, at most 32, of which none has a longer
    /// round trip than this. Its rounds follow those of an earlier one.
    pub(super) fn new(
        context: StreamContext,
        (links, rounds): (usize, u32),
        round_trip: Duration,
    ) -> Self {
        let round = Round {
            number: rounds,
            left: PageSet::empty(0),
            left_chunks: 0,
            next: 0,
            open: BTreeMap::new(),
            sent: Transfer::default(),
            links,
            is_ending: false,
            has_ended: false,
            failed: None,
        };
        let patience = REPEAT_AFTER.max(REPEAT_ROUND_TRIPS * round_trip);
        Self { context, round: Mutex::new(round), changed: Notify::new(), patience }
    }

    /// Sends these pages in a round of their own; returns what was sent, and what was not because
    /// rounds were to end. All that was sent has then been applied at the destination.
    pub(super) async fn send(
        &self,
        dirty: PageSet,
    ) -> Result<(Transfer, PageSet), StreamSendError> {
        {
            let mut round = self.lock();
            round.number += 1;
            round.left_chunks = dirty.iter().count();
            (round.left, round.next, round.sent) = (dirty, 0, Transfer::default());
        }
        self.until(|round| {
            let is_over = round.left_chunks == 0 || self.context.is_ending.load(Relaxed);
            (is_over && round.open.is_empty()).then(|| (round.sent, round.left.take()))
        })
        .await
    }

    /// Ends the streams, with a round that holds nothing; returns once the first one has ended.
    pub(super) async fn end(&self) -> Result<(), StreamSendError> {
        {
            let mut round = self.lock();
            round.number += 1;
            round.is_ending = true;
        }
        self.until(|round| round.has_ended.then_some(())).await
    }

    /// Wakes all links, then waits until `done` returns something.
    async fn until<T>(
        &self,
        mut done: impl FnMut(&mut Round) -> Option<T>,
    ) -> Result<T, StreamSendError> {
        self.changed.notify_waiters();
        loop {
            let changed = self.changed.notified();
            {
                let mut round = self.lock();
                if let Some(error) = round.failed.take() {
                    return Err(error);
                }
                if let Some(done) = done(&mut round) {
                    return Ok(done);
                }
            }
            tokio::select! {
                () = changed => {}
                // Nothing tells when rounds are to end.
                () = sleep(REPEAT_AFTER) => {}
            }
        }
    }

    /// Returns the pages of the round that are not known to be applied, and its number: all links
    /// are lost.
    pub(super) fn unfinished(&self) -> (PageSet, u32) {
        let mut round = self.lock();
        let mut pages = round.left.take();
        for (chunk, open) in &round.open {
            if let Some(word) = pages.words_mut().get_mut(*chunk) {
                *word |= open.pages;
            }
        }
        (pages, round.number)
    }

    /// Returns what completes when there may be more to do. To be called before [`Pool::take`].
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Takes chunks for this link. The log of those that it is the first to take is re-armed.
    pub(super) fn take(&self, link: usize) -> Result<Share, StreamSendError> {
        let mut round = self.lock();
        if round.is_ending {
            return Ok(Share::End(round.number));
        }
        let now = Instant::now();
        let chunks = if self.context.is_ending.load(Relaxed) {
            Vec::new()
        } else {
            // With the lock held: no other link may send a chunk before its log is re-armed.
            let taken = round.take(link, now);
            self.rearm(&taken)?;
            taken
        };
        let chunks =
            if chunks.is_empty() { round.repeat(link, (now, self.patience)) } else { chunks };
        let nothing = chunks.is_empty();
        Ok(if nothing { Share::Nothing } else { Share::Chunks(round.number, chunks) })
    }

    fn rearm(&self, taken: &[(usize, u64)]) -> Result<(), StreamSendError> {
        let (Some(first), Some(last)) = (taken.first(), taken.last()) else { return Ok(()) };
        let mut words = vec![0; last.0 - first.0 + 1];
        for (chunk, pages) in taken {
            words[chunk - first.0] = *pages;
        }
        self.context.guest.rearm_dirty(first.0, &words).map_err(StreamSendError::Guest)
    }

    /// Counts what was sent.
    pub(super) fn count(&self, sent: Transfer) {
        self.lock().sent += sent;
    }

    /// Notes that a chunk is applied at the destination.
    pub(super) fn acknowledged(&self, number: u32, chunk: u64) {
        let mut round = self.lock();
        let chunk = usize::try_from(chunk).unwrap_or(usize::MAX);
        if round.number == number && round.open.remove(&chunk).is_some() && round.open.is_empty() {
            drop(round);
            self.changed.notify_waiters();
        }
    }

    /// Notes that a link sends no longer: its stream has ended, or is lost. What is lost with it is
    /// repeated on the others; without any other, or with a guest that cannot be read, all fails.
    pub(super) fn finished(&self, outcome: Result<(), StreamSendError>) {
        let mut round = self.lock();
        round.links -= 1;
        match outcome {
            Ok(()) => round.has_ended = true,
            Err(error @ StreamSendError::Guest(_)) => round.failed = Some(error),
            Err(error) if round.links == 0 && !round.has_ended => {
                round.failed.get_or_insert(error);
            }
            Err(_) => {}
        }
        drop(round);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    /// Takes chunks that no link has taken.
    fn take(&mut self, link: usize, now: Instant) -> Vec<(usize, u64)> {
        let share = self.left_chunks / (SHARE_DIVISOR * self.links.max(1));
        let share = share.clamp(1, SHARE_MAX);
        let mut taken: Vec<(usize, u64)> = Vec::new();
        while let Some(word) = self.left.words_mut().get_mut(self.next)
            && taken.len() < share
            && taken.first().is_none_or(|(first, _)| self.next - first < SPAN_MAX)
        {
            let pages = std::mem::take(word);
            if pages != 0 {
                taken.push((self.next, pages));
                self.open.insert(self.next, Open { pages, links: 1 << link, since: now });
            }
            self.next += 1;
        }
        self.left_chunks -= taken.len();
        taken
    }

    /// Takes chunks that other links have had for too long, and this one has not sent.
    fn repeat(&mut self, link: usize, (now, patience): (Instant, Duration)) -> Vec<(usize, u64)> {
        let is_late = |open: &Open| {
            open.links & (1 << link) == 0 && now.duration_since(open.since) >= patience
        };
        let late = self.open.iter_mut().filter(|(_, open)| is_late(open)).take(SHARE_MAX);
        late.map(|(chunk, open)| {
            (open.links, open.since) = (open.links | 1 << link, now);
            (*chunk, open.pages)
        })
        .collect()
    }
}
