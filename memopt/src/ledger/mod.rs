//! State kept between two samples of the host: damped demand, memory pressure, stuck balloons,
//! benched actuators, the merging window.
//!
//! [`Ledger::observe`] takes every sample, [`Ledger::acted`] the steps executed after it, and
//! [`Ledger::verified`] their outcomes. The ledger decides nothing: [`crate::plan`] reads it. It is
//! plain data, can be stored in a file, and its size depends only on the number of guests. Times
//! are the host's uptime, which cannot be set back. After a reboot of the host none of the content
//! is valid, and the ledger clears itself. Start reading at [`Ledger`].

mod demand;
mod guest;
mod ksm;
mod level;
mod pressure;
mod standing;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use demand::Demand;
pub use guest::GuestLedger;
pub(crate) use guest::STILL_BYTES;
pub use ksm::{KsmLedger, Window, WindowEnd};
pub use level::Level;
pub use pressure::{GuestPressure, PressureSign};
pub use standing::{Bench, Standing};
pub use turns::Turns;

use crate::policy::{Actuator, Policy};
use crate::situation::{Guest, Situation};
use crate::step::{Action, Step};
use crate::units::MIB;
use crate::verify::Outcome;

/// A guest not seen for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// More guests of other programs than any host has. Beyond this limit, those last by name are not
/// recorded: any user of the host can start processes that pass for guests.
const GUESTS_MAX: usize = 4096;

/// The state kept about a host and its guests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The host's uptime at the last sample.
    pub uptime: Duration,
    /// How short of memory the host is.
    pub level: Level,
    /// State of each guest, by its name.
    pub guests: BTreeMap<String, GuestLedger>,
    /// State of the kernel's merging.
    pub ksm: KsmLedger,
    /// Results of the actuators of the host itself.
    pub host: BTreeMap<Actuator, Standing>,
}

impl Ledger {
    /// Records a sample of the host. Must be called once per sample, before its plan is made.
    pub fn observe(&mut self, situation: &Situation, policy: &Policy) {
        let now = situation.uptime;
        if now < self.uptime {
            *self = Self::default();
        }
        self.uptime = now;
        self.level = self.level.next(&situation.host, &policy.host);
        self.ksm.observe(&situation.host, now, &policy.merge);
        // Rename all records before adding new ones: a guest's new name may have been another's.
        situation.guests.iter().for_each(|guest| self.follow(guest));
        for guest in &situation.guests {
            if !self.knows(&guest.name, guest.pid) {
                let is_full = self.guests.len() >= GUESTS_MAX && !guest.vmm.is_named_by_operator();
                if is_full && !self.guests.contains_key(&guest.name) {
                    continue;
                }
                self.guests.insert(guest.name.clone(), GuestLedger::new(guest.pid, now));
            }
            if let Some(record) = self.guests.get_mut(&guest.name) {
                record.observe(guest, now, policy);
            }
        }
        self.guests.retain(|_, record| now.saturating_sub(record.seen) < FORGET_AFTER);
    }

    fn knows(&self, name: &str, pid: u32) -> bool {
        self.guests.get(name).is_some_and(|record| record.pid == pid)
    }

    /// Renames the record of another program's guest when the name of the guest changes, which
    /// happens when another guest that claims the same name comes or goes
    /// ([`crate::foreign::make_names_unique`]).
    fn follow(&mut self, guest: &Guest) {
        if guest.vmm.is_named_by_operator() || self.knows(&guest.name, guest.pid) {
            return;
        }
        let claimed = guest.claimed_name();
        let names = [claimed.to_owned(), format!("{claimed}@{}", guest.pid)];
        let before = names.iter().find(|name| self.knows(name, guest.pid));
        if let Some(record) = before.and_then(|name| self.guests.remove(name)) {
            self.guests.insert(guest.name.clone(), record);
        }
    }

    /// Records that `step` is about to be executed. If this node ends before it can record the
    /// result, its successor still recognises the balloon target as set by a step.
    pub fn intends(&mut self, step: &Step) {
        let Action::SetBalloon { guest, from_bytes, to_bytes } = &step.action else { return };
        let is_ours = self.remembers(guest, *from_bytes);
        if let Some(record) = self.guests.get_mut(guest) {
            record.asked_bytes = is_ours.then_some(*from_bytes);
            record.intended_bytes = Some(*to_bytes);
        }
    }

    /// Records that `step` was not executed after all.
    pub fn desists(&mut self, step: &Step) {
        let record = step.action.guest().and_then(|guest| self.guests.get_mut(guest));
        if let (Some(record), Action::SetBalloon { .. }) = (record, &step.action) {
            record.intended_bytes = None;
        }
    }

    /// Records that `step` was executed.
    pub fn acted(&mut self, step: &Step) {
        match &step.action {
            Action::DriveKsm { domain, .. } => {
                self.ksm.promise(step.expected_bytes);
                self.ksm.open(domain, self.uptime);
            }
            Action::StopKsm { .. } => self.ksm.close(),
            Action::Merge { .. } => self.ksm.promise(step.expected_bytes),
            Action::SetBalloon { guest, to_bytes, .. } => {
                if let Some(record) = self.guests.get_mut(guest) {
                    (record.asked_bytes, record.intended_bytes) = (Some(*to_bytes), None);
                }
            }
            Action::Unmerge { .. }
            | Action::MakeHuge { .. }
            | Action::RemergeTemplate { .. }
            | Action::DropZeros { .. }
            | Action::ResizePool { .. } => {}
        }
    }

    /// Whether the balloon target of `guest` was set by a step and not changed since. If the
    /// guest's monitor reports this, its answer counts, which covers steps on the host that the
    /// guest came from, too. Otherwise the ledger's own record counts.
    #[must_use]
    pub fn has_asked(&self, guest: &Guest) -> bool {
        guest.balloon.as_ref().is_some_and(|balloon| {
            balloon
                .is_set_by_steps
                .unwrap_or_else(|| self.remembers(&guest.name, balloon.target_bytes))
        })
    }

    fn remembers(&self, guest: &str, target_bytes: u64) -> bool {
        let Some(record) = self.guests.get(guest) else { return false };
        // Where the monitor does not report the target, the guest's actual size stands for it,
        // hence the tolerance.
        let is_it = |asked: u64| asked.abs_diff(target_bytes) <= MIB;
        record.asked_bytes.is_some_and(is_it) || record.intended_bytes.is_some_and(is_it)
    }

    /// Records the outcome of a step; an actuator that has failed often enough is benched.
    pub fn verified(&mut self, outcome: &Outcome) {
        let now = self.uptime;
        let standings = match &outcome.guest {
            Some(name) => match self.guests.get_mut(name) {
                Some(record) => &mut record.standings,
                None => return,
            },
            None => &mut self.host,
        };
        let standing = standings.entry(outcome.actuator).or_default();
        standing.judge(outcome, now);
    }

    /// Returns why `actuator` is benched for `guest`, or for the host itself when `guest` is
    /// `None`. Returns `None` when it is not benched.
    #[must_use]
    pub fn bench(&self, guest: Option<&str>, actuator: Actuator) -> Option<&Bench> {
        let standings = match guest {
            Some(name) => &self.guests.get(name)?.standings,
            None => &self.host,
        };
        standings.get(&actuator)?.bench.as_ref().filter(|bench| bench.until > self.uptime)
    }
}
