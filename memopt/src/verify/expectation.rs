//! A step that was done, and what the host looked like before.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::outcome::{Outcome, Verdict};
use super::settle::settles_after;
use super::traces::{GuestTraces, Movement};
use crate::policy::Policy;
use crate::situation::{Guest, Situation};
use crate::step::{Action, ChunkRange, Step};
use crate::units::{MIB, Share, Size, signed};

/// Less than this cannot be told from what a process does by itself.
const VISIBLE_BYTES: i64 = 8 << 20;

/// By then ksmd runs, when it was told to.
const WINDOW_OPENS: Duration = Duration::from_secs(60);

/// A step that was done, and what the host looked like before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// What was done.
    pub step: Step,
    /// When, as the host's uptime.
    pub since: Duration,
    /// When it is looked at in any case.
    pub due: Duration,
    /// Of the guests whose memory shows what it brings, by name.
    before: BTreeMap<String, GuestTraces>,
}

/// What a check found: bounds of what came back, and the share of what was expected.
struct Found {
    returned_bytes: i64,
    share: Option<f64>,
    verdict: Verdict,
    reason: String,
}

impl Expectation {
    /// Of `step`, which is about to be done; `before` is the look that its plan was made from, or a
    /// newer one.
    #[must_use]
    pub fn of(step: &Step, before: &Situation, policy: &Policy) -> Self {
        let concerned = before.guests.iter().filter(|guest| concerns(step, guest, policy));
        Self {
            step: step.clone(),
            since: before.uptime,
            due: before.uptime + settles_after(step, policy),
            before: concerned.map(|it| (it.name.clone(), GuestTraces::of(it))).collect(),
        }
    }

    /// Whether it can be checked now: its time is over, or it is seen to be done.
    #[must_use]
    pub fn is_settled(&self, now: &Situation) -> bool {
        if now.uptime >= self.due || now.uptime < self.since {
            return true;
        }
        let (guest, to_bytes) = match &self.step.action {
            Action::SetBalloon { guest, to_bytes, .. } => (guest, to_bytes),
            Action::Merge { .. } | Action::DriveKsm { .. } => return self.window_is_over(now),
            _ => return false,
        };
        let after = GuestTraces::find(guest, now);
        let arrived = |it: GuestTraces| it.actual.is_some_and(|has| has.abs_diff(*to_bytes) <= MIB);
        now.uptime > self.since && after.is_none_or(arrived)
    }

    /// Whether the window has been closed before its time. At first it may not have been opened
    /// yet.
    fn window_is_over(&self, now: &Situation) -> bool {
        let runs = now.host.ksm.is_some_and(|ksm| ksm.run == 1);
        !runs && now.uptime >= self.since + WINDOW_OPENS
    }

    /// What came of it.
    #[must_use]
    pub fn check(&self, after: &Situation) -> Outcome {
        let found = match self.step.action.guest() {
            Some(name) => self.check_guest(name, after),
            None => self.check_host(after),
        };
        Outcome {
            guest: self.step.action.guest().map(str::to_owned),
            actuator: self.step.action.actuator(),
            action: self.step.action.clone(),
            expected_bytes: self.step.expected_bytes,
            returned_bytes: found.returned_bytes,
            share: found.share.filter(|_| found.verdict != Verdict::Unclear),
            verdict: found.verdict,
            reason: found.reason,
        }
    }

    fn check_guest(&self, name: &str, after: &Situation) -> Found {
        let Some(now) = GuestTraces::find(name, after) else {
            return unclear(0, "the guest is gone");
        };
        let before = self.before.get(name).copied();
        let Some(before) = before.filter(|before| before.pid == now.pid) else {
            return unclear(0, "the guest is another one now");
        };
        let moved = before.movement(&now);
        if now.is_hindered {
            return unclear(moved.process, "the guest is hindered now");
        }
        match &self.step.action {
            Action::SetBalloon { to_bytes, .. } => {
                self.check_balloon(*to_bytes, &before, &now, moved)
            }
            Action::Merge { .. } => {
                let (low, high) = moved.without(&[moved.balloon, moved.reported, moved.swapped]);
                let profit = moved.profit.unwrap_or(low);
                self.by_bytes(low.min(profit), high.max(profit))
            }
            Action::RemergeTemplate { .. } | Action::DropZeros { .. } => {
                let others = [moved.balloon, moved.reported, moved.swapped, moved.merged];
                let (low, high) = moved.without(&others);
                self.by_bytes(low, high)
            }
            Action::MakeHuge { chunks, .. } => {
                by_share(moved.process, now.huge.saturating_sub(before.huge), bytes_of(chunks))
            }
            Action::Unmerge { chunks: None, .. } => {
                by_share(moved.process, i64::from(!now.is_mergeable), 1)
            }
            // What else came back of the guest meanwhile is counted with the steps that it is due
            // to.
            _ => unclear(0, "what was taken apart is not counted"),
        }
    }

    fn check_balloon(
        &self,
        to_bytes: u64,
        before: &GuestTraces,
        now: &GuestTraces,
        moved: Movement,
    ) -> Found {
        let (Some(had), Some(has)) = (before.actual, now.actual) else {
            return unclear(moved.process, "its balloon is gone");
        };
        if now.target != Some(to_bytes) {
            return unclear(moved.process, "its balloon was asked for something else meanwhile");
        }
        if to_bytes >= had {
            // Memory that is given shows when it is used; that the balloon let go of it shows at
            // once.
            let given = signed(has).saturating_sub(signed(had));
            return by_share(moved.process, given, signed(to_bytes - had));
        }
        let (low, high) = moved.without(&[moved.reported, moved.swapped, moved.merged]);
        let mut found = self.by_bytes(low, high);
        let missing = has.saturating_sub(to_bytes);
        if missing > MIB {
            let missing = Size::of(missing);
            found.reason = format!("{}, and the balloon lacks {missing}", found.reason);
        }
        found
    }

    fn check_host(&self, after: &Situation) -> Found {
        match &self.step.action {
            Action::DriveKsm { window_bytes, .. } => self.check_window(*window_bytes, after),
            Action::ResizePool { page_bytes, from_pages, to_pages } => {
                let pool = after.host.pools.iter().find(|pool| pool.page_bytes == *page_bytes);
                let Some(pool) = pool else { return unclear(0, "there is no such pool any more") };
                let bytes = |pages: u64| {
                    signed(from_pages.abs_diff(pages).saturating_mul(*page_bytes))
                        * if pages > *from_pages { -1 } else { 1 }
                };
                let (asked, moved) = (bytes(*to_pages), bytes(pool.pages));
                by_share(moved, if asked < 0 { -moved } else { moved }, asked.saturating_abs())
            }
            _ => match after.host.ksm {
                Some(ksm) if ksm.run == 1 => {
                    unclear(0, "ksmd runs: as it did before, or for others")
                }
                _ => by_share(0, 1, 1),
            },
        }
    }

    /// By the memory of the domain's guests: ksmd's own profit still counts the pages of processes
    /// that are gone.
    fn check_window(&self, window_bytes: i64, after: &Situation) -> Found {
        let (mut low, mut high, mut are_any_left) = (0_i64, 0_i64, false);
        for (name, before) in &self.before {
            let now = GuestTraces::find(name, after).filter(|now| now.pid == before.pid);
            let Some(now) = now.filter(|now| !now.is_hindered) else { continue };
            let moved = before.movement(&now);
            let (least, most) = moved.without(&[moved.balloon, moved.reported, moved.swapped]);
            low = low.saturating_add(least);
            high = high.saturating_add(most);
            are_any_left = true;
        }
        if !are_any_left {
            return unclear(0, "none of its guests is there, or all are hindered now");
        }
        let mut found = bounded(low, high, window_bytes);
        // What was marked for this window is counted with the steps that marked it.
        let own = self.step.expected_bytes as f64 / window_bytes.max(1) as f64;
        found.returned_bytes = (low as f64 * own) as i64;
        found
    }

    fn by_bytes(&self, low: i64, high: i64) -> Found {
        bounded(low, high, self.step.expected_bytes)
    }
}

/// Whether the memory of `guest` shows what `step` brings: for a window of ksmd that of its
/// domain's guests does, otherwise that of the guest that it is done to.
#[must_use]
pub fn concerns(step: &Step, guest: &Guest, policy: &Policy) -> bool {
    match &step.action {
        Action::DriveKsm { domain, .. } => {
            policy.limits(guest).merge_domain.as_ref() == Some(domain)
        }
        action => action.guest() == Some(guest.name.as_str()),
    }
}

/// By what came back, which lies between two bounds: when they disagree, nothing is said.
fn bounded(low: i64, high: i64, expected: i64) -> Found {
    if expected < VISIBLE_BYTES {
        return unclear(low, "too little was expected to be seen");
    }
    let share = |bytes: i64| bytes as f64 / expected as f64;
    if Verdict::of(share(low)) != Verdict::of(share(high)) {
        return unclear(low, "too much else moved in the meantime");
    }
    by_share(low, low, expected)
}

/// By how much of something was done.
fn by_share(returned_bytes: i64, done: i64, asked: i64) -> Found {
    if asked <= 0 {
        return unclear(returned_bytes, "nothing was expected of it");
    }
    let share = done as f64 / asked as f64;
    let verdict = Verdict::of(share);
    let reason = match verdict {
        Verdict::Delivered => "as expected".to_owned(),
        Verdict::Nothing => "nothing came of it".to_owned(),
        _ => format!("only {} of what was expected", Share(share)),
    };
    Found { returned_bytes, share: Some(share), verdict, reason }
}

fn unclear(returned_bytes: i64, reason: &str) -> Found {
    Found { returned_bytes, share: None, verdict: Verdict::Unclear, reason: reason.to_owned() }
}

fn bytes_of(chunks: &[ChunkRange]) -> i64 {
    signed(chunks.iter().map(|range| u64::from(range.count) << 21).sum())
}
