//! An executed step, and the state of its guests before it.

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

/// Less than this is indistinguishable from a process's ordinary fluctuation.
const VISIBLE_BYTES: i64 = 8 << 20;

/// Time within which ksmd starts once it is told to run.
const WINDOW_OPENS: Duration = Duration::from_secs(60);

/// An executed step, and the state of its guests before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// The step that was executed.
    pub step: Step,
    /// Host uptime when it was executed.
    pub since: Duration,
    /// Host uptime at which it is checked in any case.
    pub due: Duration,
    /// State of the guests whose memory shows the effect of the step, by name.
    before: BTreeMap<String, GuestTraces>,
}

/// The result of a check: the bytes returned, and the share of what was expected.
struct Check {
    returned_bytes: i64,
    share: Option<f64>,
    verdict: Verdict,
    reason: String,
}

impl Expectation {
    /// Records what a later check of `step` needs. The step is about to be executed, and `before`
    /// is the sample that its plan was made from, or a newer one.
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

    /// Whether the step can be checked now: its time is over, or its effect is already visible.
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

    /// Whether the window was closed early. Just after the step, it may not have been opened yet.
    fn window_is_over(&self, now: &Situation) -> bool {
        let runs = now.host.ksm.is_some_and(|ksm| ksm.run == 1);
        !runs && now.uptime >= self.since + WINDOW_OPENS
    }

    /// Returns the outcome of the step, measured against the sample `after`.
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

    fn check_guest(&self, name: &str, after: &Situation) -> Check {
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
            // Whatever else the guest returned meanwhile is credited to the steps that caused it.
            _ => unclear(0, "unmerged pages are not counted"),
        }
    }

    fn check_balloon(
        &self,
        to_bytes: u64,
        before: &GuestTraces,
        now: &GuestTraces,
        moved: Movement,
    ) -> Check {
        let (Some(had), Some(has)) = (before.actual, now.actual) else {
            return unclear(moved.process, "its balloon is gone");
        };
        if now.target != Some(to_bytes) {
            return unclear(moved.process, "its balloon was asked for something else meanwhile");
        }
        if to_bytes >= had {
            // The host loses the memory only when the guest uses it, but the balloon deflates at
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

    fn check_host(&self, after: &Situation) -> Check {
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

    /// Judges a window by the memory of the domain's guests: ksmd's own profit still counts the
    /// pages of processes that have exited.
    fn check_window(&self, window_bytes: i64, after: &Situation) -> Check {
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
        // The part expected of memory marked for this window is credited to the steps that marked
        // it.
        let own = self.step.expected_bytes as f64 / window_bytes.max(1) as f64;
        found.returned_bytes = (low as f64 * own) as i64;
        found
    }

    fn by_bytes(&self, low: i64, high: i64) -> Check {
        bounded(low, high, self.step.expected_bytes)
    }
}

/// Whether the memory of `guest` shows the effect of `step`: for a ksmd window, this holds for the
/// guests of its domain, otherwise for the guest that the step acts on.
#[must_use]
pub fn concerns(step: &Step, guest: &Guest, policy: &Policy) -> bool {
    match &step.action {
        Action::DriveKsm { domain, .. } => {
            policy.limits(guest).merge_domain.as_ref() == Some(domain)
        }
        action => action.guest() == Some(guest.name.as_str()),
    }
}

/// Judges by the bytes returned, which lie between two bounds. If the bounds lead to different
/// verdicts, the result is unclear.
fn bounded(low: i64, high: i64, expected: i64) -> Check {
    if expected < VISIBLE_BYTES {
        return unclear(low, "too little was expected to be seen");
    }
    let share = |bytes: i64| bytes as f64 / expected as f64;
    if Verdict::of(share(low)) != Verdict::of(share(high)) {
        return unclear(low, "too much else moved in the meantime");
    }
    by_share(low, low, expected)
}

/// Judges by the share of the requested amount that was done.
fn by_share(returned_bytes: i64, done: i64, asked: i64) -> Check {
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
    Check { returned_bytes, share: Some(share), verdict, reason }
}

fn unclear(returned_bytes: i64, reason: &str) -> Check {
    Check { returned_bytes, share: None, verdict: Verdict::Unclear, reason: reason.to_owned() }
}

fn bytes_of(chunks: &[ChunkRange]) -> i64 {
    signed(chunks.iter().map(|range| u64::from(range.count) << 21).sum())
}
