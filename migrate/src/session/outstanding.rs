//! The pages that a destination still lacks, and in which order one connection carries them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::heat::Heat;
use crate::memory::PageSet;

/// Most pages that are sent with those that were requested: a guest that reads in sequence then
/// waits for every ninth page only.
const NEIGHBOURS_MAX: u32 = 8;

/// The pages to send on one connection, each once, shared by its streams.
#[derive(Debug)]
pub(super) struct Outstanding {
    queue: Mutex<Queue>,
    requested: Notify,
    background: watch::Sender<Background>,
}

/// What the pages that are not requested wait for.
#[derive(Debug, Clone, Copy, Default)]
struct Background {
    is_released: bool,
    /// Whether there are requests that have not been answered.
    has_requests: bool,
}

impl Background {
    fn may_send(self) -> bool {
        self.is_released && !self.has_requests
    }
}

#[derive(Debug)]
struct Queue {
    /// Pages that have not been handed to the transport.
    left: PageSet,
    /// Requested pages among them: as many requests as there are pages take no more memory.
    requested: BTreeMap<usize, u64>,
    /// Chunks in the order in which the background sends them, once it may, and where it continues.
    order: Vec<u32>,
    next: usize,
    /// The chunk of the last request, of which the guest will probably want more.
    near: Option<usize>,
}

/// The answer to requests: pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) chunk: usize,
    pub(super) pages: u64,
    /// Pages near them, which will probably be requested next.
    pub(super) neighbours: u64,
}

impl Outstanding {
    /// The pages in `left`, to be sent on request.
    pub(super) fn new(left: PageSet) -> Self {
        Self {
            queue: Mutex::new(Queue::new(left)),
            requested: Notify::new(),
            background: watch::Sender::default(),
        }
    }

    /// Lets the pages follow that are not requested, the hottest chunks first.
    pub(super) fn release_rest(&self, heat: &Heat) {
        let mut chunks = self.lock().chunks_left();
        // Not under the lock: the guest's first requests need it.
        heat.order(&mut chunks);
        self.lock().begin(chunks);
        self.background.send_modify(|background| background.is_released = true);
    }

    /// Waits until the rest may follow.
    pub(super) async fn released(&self) {
        // The sender is a part of this.
        let _ = self.background.subscribe().wait_for(|background| background.is_released).await;
    }

    fn set_requests(&self, has_requests: bool) {
        self.background.send_modify(|background| background.has_requests = has_requests);
    }

    /// Puts pages first. Those that are under way, or were never missing, are ignored.
    pub(super) fn request(&self, chunk: usize, pages: u64) {
        let mut queue = self.lock();
        if queue.request(chunk, pages) {
            self.set_requests(true);
            self.requested.notify_one();
        }
    }

    /// Waits for requests; returns what answers one of them.
    pub(super) async fn next_answer(&self) -> Answer {
        loop {
            let requested = self.requested.notified();
            if let Some(answer) = self.take_answer() {
                return answer;
            }
            requested.await;
        }
    }

    fn take_answer(&self) -> Option<Answer> {
        let mut queue = self.lock();
        let answer = queue.answer();
        if answer.is_none() {
            self.set_requests(false);
        }
        answer
    }

    /// Waits until the rest may follow and no request is unanswered; returns the next unrequested
    /// pages, all of one chunk. None once nothing is left.
    pub(super) async fn next_unasked(&self) -> Option<(usize, u64)> {
        // The sender is a part of this.
        let _ = self.background.subscribe().wait_for(|background| background.may_send()).await;
        self.lock().unasked()
    }

    /// Returns more unrequested pages, unless a request is unanswered.
    pub(super) fn more_unasked(&self) -> Option<(usize, u64)> {
        if !self.background.borrow().may_send() {
            return None;
        }
        self.lock().unasked()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn new(left: PageSet) -> Self {
        Self { left, requested: BTreeMap::new(), order: Vec::new(), next: 0, near: None }
    }

    /// Returns the chunks that have pages left, ascending.
    fn chunks_left(&self) -> Vec<u32> {
        // A guest has at most 2^26 chunks.
        self.left.iter().map(|(chunk, _)| chunk as u32).collect()
    }

    fn begin(&mut self, order: Vec<u32>) {
        (self.order, self.next) = (order, 0);
    }

    fn request(&mut self, chunk: usize, pages: u64) -> bool {
        let left = self.left.words().get(chunk).copied().unwrap_or(0);
        if left & pages == 0 {
            return false;
        }
        *self.requested.entry(chunk).or_default() |= left & pages;
        true
    }

    fn answer(&mut self) -> Option<Answer> {
        while let Some((chunk, requested)) = self.requested.pop_first() {
            let left = self.left.words_mut().get_mut(chunk)?;
            // The background may have sent some meanwhile.
            let pages = requested & *left;
            if pages == 0 {
                continue;
            }
            let neighbours = neighbours(*left & !pages, pages);
            *left &= !(pages | neighbours);
            self.near = Some(chunk);
            return Some(Answer { chunk, pages, neighbours });
        }
        None
    }

    fn unasked(&mut self) -> Option<(usize, u64)> {
        loop {
            let chunk = match self.near.take() {
                Some(chunk) => chunk,
                None => {
                    let chunk = *self.order.get(self.next)? as usize;
                    self.next += 1;
                    chunk
                }
            };
            let pages = std::mem::take(self.left.words_mut().get_mut(chunk)?);
            if pages != 0 {
                return Some((chunk, pages));
            }
        }
    }
}

/// Returns those of the pages `left` that follow the highest of `pages`, then those that precede
/// it, the nearest first, until there are enough.
fn neighbours(left: u64, pages: u64) -> u64 {
    let top = 63 - pages.leading_zeros().min(63);
    let above = u64::MAX.checked_shl(top + 1).unwrap_or(0);
    let (mut after, mut before) = (left & above, left & !above);
    let mut found = 0_u64;
    while found.count_ones() < NEIGHBOURS_MAX {
        let page = match (after, before) {
            (0, 0) => break,
            (0, _) => 1 << (63 - before.leading_zeros()),
            _ => after & after.wrapping_neg(),
        };
        found |= page;
        after &= !page;
        before &= !page;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(words: &[u64]) -> Queue {
        let mut left = PageSet::empty(words.len());
        left.words_mut().copy_from_slice(words);
        let mut queue = Queue::new(left);
        queue.begin(queue.chunks_left());
        queue
    }

    #[test]
    fn each_page_is_sent_once_whoever_wants_it() {
        let mut queue = queue(&[0b11, 0, u64::MAX]);
        assert!(queue.request(0, 0b10));
        assert_eq!(queue.answer(), Some(Answer { chunk: 0, pages: 0b10, neighbours: 1 }));
        assert!(!queue.request(0, 0b11), "both are under way");
        assert!(!queue.request(1, 1) && !queue.request(3, 1), "they are not missing");
        assert_eq!(queue.answer(), None);
        assert_eq!([queue.unasked(), queue.unasked()], [Some((2, u64::MAX)), None]);
    }

    #[test]
    fn what_was_written_lately_comes_first() {
        let outstanding = Outstanding::new(PageSet::full(4));
        let mut heat = Heat::default();
        heat.begin_round(&[1, 0, 1, 0]);
        heat.begin_round(&[0, 1, 0, 1]);
        outstanding.release_rest(&heat);
        let next = || outstanding.more_unasked().map(|(chunk, _)| chunk);
        assert_eq!([next(), next()], [Some(1), Some(3)]);
        outstanding.release_rest(&Heat::default());
        assert_eq!([next(), next(), next()], [Some(0), Some(2), None], "it may come repeatedly");
    }

    #[test]
    fn the_background_goes_where_the_guest_is_and_comes_back() {
        let mut queue = queue(&[1, 1, !0, 1]);
        assert_eq!(queue.unasked(), Some((0, 1)));
        queue.request(2, 1);
        let answer = queue.answer().unwrap();
        assert_eq!(answer.neighbours, 0b1_1111_1110);
        assert_eq!(queue.unasked(), Some((2, !0b1_1111_1111)));
        assert_eq!([queue.unasked(), queue.unasked()], [Some((1, 1)), Some((3, 1))]);
        assert_eq!(queue.unasked(), None);
    }

    #[test]
    fn neighbours_follow_first_and_are_few() {
        assert_eq!(neighbours(!1, 1), 0b1_1111_1110);
        assert_eq!(neighbours(0, 1), 0);
        assert_eq!(neighbours(0b111, 1 << 63), 0b111);
        assert_eq!(neighbours(!(1 << 62), 1 << 62), 1 << 63 | 0b111_1111 << 55);
    }

    #[test]
    fn a_request_that_the_background_has_overtaken_is_answered_by_that() {
        let mut queue = queue(&[1, 0b10]);
        queue.request(0, 1);
        queue.request(1, 0b10);
        assert_eq!(queue.unasked(), Some((0, 1)));
        assert_eq!(queue.answer(), Some(Answer { chunk: 1, pages: 0b10, neighbours: 0 }));
    }

    #[tokio::test]
    async fn the_background_waits_while_requests_are_unanswered() {
        let outstanding = Outstanding::new(PageSet::full(2));
        assert_eq!(outstanding.more_unasked(), None, "the guest is still paused");
        outstanding.request(1, 1);
        outstanding.release_rest(&Heat::default());
        assert_eq!(outstanding.more_unasked(), None);
        let background = outstanding.next_unasked();
        tokio::pin!(background);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), &mut background);
        assert!(waits.await.is_err());
        assert_eq!(outstanding.next_answer().await.chunk, 1);
        assert_eq!(outstanding.take_answer(), None);
        assert_eq!(background.await, Some((1, !0b1_1111_1111)));
        assert_eq!(outstanding.more_unasked(), Some((0, u64::MAX)));
    }
}
