//! The current round: the pages it has to send, and how many of them have been sent.

use std::time::Duration;

use super::RoundSent;
use crate::guest::GuestDescription;
use crate::memory::PAGE_BYTES;
use crate::progress::Transfer;

/// The current round, or the pages to be sent in the next one.
#[derive(Debug)]
pub(super) struct Current {
    /// Number of the round, from 1; 0 before the first.
    pub(super) number: u32,
    began: Duration,
    /// Pages to send, of memory and of disks.
    pub(super) pages: u64,
    /// Pages of disks among them.
    pub(super) disk_pages: u64,
    /// Totals when the round began.
    sent_before: Transfer,
}

impl Current {
    /// Returns the state before the first round: all pages of `guest` are to be sent.
    pub(super) fn new(guest: &GuestDescription, now: Duration) -> Self {
        let disk_pages = guest.disk_bytes().div_ceil(PAGE_BYTES as u64);
        Self {
            number: 0,
            began: now,
            pages: guest.layout.pages().saturating_add(disk_pages),
            disk_pages,
            sent_before: Transfer::default(),
        }
    }

    /// Begins the next round, when `sent` was sent before it.
    pub(super) fn begin(&mut self, sent: Transfer, now: Duration) {
        self.number = self.number.saturating_add(1);
        (self.began, self.sent_before) = (now, sent);
    }

    /// Ends the round; the pages dirty now are those of the next one.
    pub(super) fn end(&mut self, sent: &RoundSent, transfer: Transfer) {
        (self.pages, self.disk_pages) = (sent.dirty_pages, sent.dirty_disk_pages);
        self.sent_before = transfer;
    }

    /// Interrupts the round, when `sent` has been sent: the rest is left for the next one.
    pub(super) fn interrupt(&mut self, sent: &Transfer) {
        let [memory, disks] = self.remaining_pages(sent);
        (self.pages, self.disk_pages, self.sent_before) = (memory + disks, disks, *sent);
    }

    /// Begins what follows the guest: `pages` of memory, when `sent` was sent before.
    pub(super) fn follow(&mut self, pages: u64, sent: Transfer) {
        (self.pages, self.disk_pages, self.sent_before) = (pages, 0, sent);
    }

    /// Returns how long the round has taken.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began)
    }

    /// Returns the pages still to be sent, of memory and of disks, when the totals are `now`.
    pub(super) fn remaining_pages(&self, now: &Transfer) -> [u64; 2] {
        let before = &self.sent_before;
        let sent_disk = now.all_disk_pages().saturating_sub(before.all_disk_pages());
        let done = |transfer: &Transfer| transfer.pages().saturating_add(transfer.hinted_pages);
        let sent = done(now).saturating_sub(done(before)).saturating_sub(sent_disk);
        let memory = self.pages.saturating_sub(self.disk_pages);
        [memory.saturating_sub(sent), self.disk_pages.saturating_sub(sent_disk)]
    }
}
