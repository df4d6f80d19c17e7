//! How long threads wait for missing pages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The waits for missing pages, each from when its page was returned as wanted until it arrived, or
/// need not arrive any more. If several threads wait for a page, that is one wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits {
    /// How long those took that have ended since the last call.
    pub ended: Vec<Duration>,
    /// How long the oldest of those that go on has lasted.
    pub oldest: Option<Duration>,
}

/// The waits that go on, of which there are no more than threads, and those that ended since the
/// last [`WaitLog::take`].
#[derive(Debug, Default)]
pub(super) struct WaitLog {
    /// When each began: the number of its chunk and of its page in that.
    began: BTreeMap<(usize, u32), Instant>,
    ended: Vec<Duration>,
}

impl WaitLog {
    /// Notes that a page is waited for from `now` on.
    pub(super) fn begin(&mut self, chunk: usize, page: u32, now: Instant) {
        self.began.entry((chunk, page)).or_insert(now);
    }

    /// Notes that the pages of `chunk` in `mask` are waited for no longer.
    pub(super) fn end(&mut self, chunk: usize, mut mask: u64, now: Instant) {
        while mask != 0 {
            let began = self.began.remove(&(chunk, mask.trailing_zeros()));
            self.ended.extend(began.map(|began| now.saturating_duration_since(began)));
            mask &= mask - 1;
        }
    }

    /// Returns the waits as of `now`; those that have ended are returned once.
    pub(super) fn take(&mut self, now: Instant) -> Waits {
        let oldest = self.began.values().min();
        let oldest = oldest.map(|began| now.saturating_duration_since(*began));
        Waits { ended: std::mem::take(&mut self.ended), oldest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_returned_once_with_its_length() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut log = WaitLog::default();
        log.begin(3, 63, start);
        log.begin(3, 0, start + ms(1));
        log.begin(7, 0, start + ms(2));
        assert_eq!(log.take(start + ms(5)), Waits { ended: Vec::new(), oldest: Some(ms(5)) });

        log.end(3, 1 << 63 | 0b11, start + ms(7));

        let expected = Waits { ended: vec![ms(6), ms(7)], oldest: Some(ms(6)) };
        assert_eq!(log.take(start + ms(8)), expected);
        log.end(7, u64::MAX, start + ms(9));
        assert_eq!(log.take(start + ms(9)), Waits { ended: vec![ms(7)], oldest: None });
        assert_eq!(log.take(start + ms(9)), Waits::default());
    }
}
