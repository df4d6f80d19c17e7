//! The order of the frames that come over several links: rounds one after the other, and each chunk
//! once in a round.
//!
//! A link may bring a frame late. One of an earlier round is then out of date, and one of a chunk
//! that another link has brought in the same round is not needed.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{RwLock, RwLockReadGuard};

/// The round whose frames are applied.
#[derive(Debug)]
pub(super) struct Turns {
    turn: RwLock<Turn>,
    chunks: usize,
}

/// One round. While a frame of it is applied, no other round begins.
#[derive(Debug, Default)]
pub(super) struct Turn {
    round: u32,
    /// Chunks that have come, one bit each.
    seen: Vec<AtomicU64>,
    /// It was the last one: no frame is applied any more.
    has_ended: bool,
}

impl Turns {
    /// Creates the turns of a guest of `chunks` chunks.
    pub(super) fn new(chunks: usize) -> Self {
        Self { turn: RwLock::default(), chunks }
    }

    /// Returns what is held while a frame is applied; none if the frame is not to be applied. The
    /// first frame of a round waits for those of the one before.
    pub(super) async fn enter(
        &self,
        round: u32,
        chunk: usize,
    ) -> Option<RwLockReadGuard<'_, Turn>> {
        loop {
            let turn = self.turn.read().await;
            if turn.has_ended {
                return None;
            }
            if round <= turn.round {
                return (round == turn.round && turn.is_first(chunk)).then_some(turn);
            }
            drop(turn);
            self.begin(round).await;
        }
    }

    /// Ends the last round once all frames that are being applied are; returns true the first time.
    /// Later ones are not: the source has sent none, or only copies of what another link brought.
    pub(super) async fn end(&self) -> bool {
        let mut turn = self.turn.write().await;
        !std::mem::replace(&mut turn.has_ended, true)
    }

    async fn begin(&self, round: u32) {
        let mut turn = self.turn.write().await;
        if round > turn.round {
            let words = self.chunks.div_ceil(64);
            let seen = std::iter::repeat_with(AtomicU64::default).take(words).collect();
            (turn.round, turn.seen) = (round, seen);
        }
    }
}

impl Turn {
    fn is_first(&self, chunk: usize) -> bool {
        let Some(word) = self.seen.get(chunk / 64) else { return false };
        let bit = 1 << (chunk % 64);
        word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_chunk_is_applied_once_in_a_round_and_never_in_an_earlier_one() {
        let turns = Turns::new(100);
        assert!(turns.enter(1, 99).await.is_some());
        assert!(turns.enter(1, 99).await.is_none());
        assert!(turns.enter(1, 3).await.is_some());
        assert!(turns.enter(2, 99).await.is_some());
        assert!(turns.enter(1, 4).await.is_none());
        assert!(turns.enter(2, 100 << 6).await.is_none(), "there is no such chunk");
    }

    #[tokio::test]
    async fn a_round_begins_once_the_frames_of_the_last_one_are_applied() {
        let turns = Turns::new(1);
        let applied = turns.enter(1, 0).await.unwrap();
        let next = turns.enter(2, 0);
        tokio::pin!(next);
        assert!(timeout(Duration::from_millis(20), &mut next).await.is_err());
        drop(applied);
        assert!(next.await.is_some());
    }

    #[tokio::test]
    async fn the_end_is_reported_once() {
        let turns = Turns::new(1);
        assert!(turns.enter(4, 0).await.is_some());
        assert!(turns.end().await);
        assert!(!turns.end().await);
    }

    #[tokio::test]
    async fn no_frame_is_applied_after_the_end() {
        let turns = Turns::new(2);
        assert!(turns.enter(4, 0).await.is_some());
        turns.end().await;
        assert!(turns.enter(3, 0).await.is_none());
        assert!(turns.enter(4, 1).await.is_none());
        assert!(turns.enter(5, 0).await.is_none());
    }
}
