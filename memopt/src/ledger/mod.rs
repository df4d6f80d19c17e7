//! What has to be remembered between two looks at the host: damped demand, pain, stuck balloons,
//! benched actuators, the merging window.
//!
//! [`Ledger::observe`] is told of every look, [`Ledger::acted`] of what was then done,
//! [`Ledger::verified`] of what came of it. The ledger decides nothing: [`crate::plan`] reads it.
//! It is plain data, can be kept in a file, and grows with the number of guests alone. Times are
//! the host's uptime, which no one sets back; after a reboot of the host nothing in it means
//! anything, and it forgets all. Start reading at [`Ledger`].

mod demand;
mod guest;
mod ksm;
mod level;
mod pain;
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
pub use pain::{Pain, PainCause};
pub use standing::{Bench, Standing};
pub use turns::Turns;

use crate::policy::{Actuator, Policy};
use crate::situation::{Guest, Situation};
use crate::step::{Action, Step};
use crate::units::MIB;
use crate::verify::Outcome;

/// A guest that has not been seen for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// More guests of other programs than any host has; beyond it those of the last names are not
/// remembered. Any user of the host can start processes that pass for some.
const GUESTS_MAX: usize = 4096;

/// What is remembered of a host and its guests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The uptime at the last look.
    pub uptime: Duration,
    /// How short of memory the host is.
    pub level: Level,
    /// What is remembered of each guest, by its name.
    pub guests: BTreeMap<String, GuestLedger>,
    /// What is remembered of the kernel's merging.
    pub ksm: KsmLedger,
    /// How the actuators of the host itself do.
    pub host: BTreeMap<Actuator, Standing>,
}

impl Ledger {
    /// Takes in a look at the host. To be called once for each, before its plan is made.
    pub fn observe(&mut self, situation: &Situation, policy: &Policy) {
        let now = situation.uptime;
        if now < self.uptime {
            *self = Self::default();
        }
        self.uptime = now;
        self.level = self.level.next(&situation.host, &policy.host);
        self.ksm.observe(&situation.host, now, &policy.merge);
        // All of them before anything new is remembered: one's new name may have been another's.
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

    /// What is remembered of a guest of another program goes with its process when it is called
    /// otherwise, because another one has come or gone that claims the same name
    /// ([`crate::foreign::name_apart`]).
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

    /// Takes in that `step` is about to be done: a balloon that it has set is known for ours also
    /// by a node that follows on one which ended before it could say so.
    pub fn intends(&mut self, step: &Step) {
        let Action::SetBalloon { guest, from_bytes, to_bytes } = &step.action else { return };
        let is_ours = self.remembers(guest, *from_bytes);
        if let Some(record) = self.guests.get_mut(guest) {
            record.asked_bytes = is_ours.then_some(*from_bytes);
            record.intended_bytes = Some(*to_bytes);
        }
    }

    /// Takes in that `step` is not done after all.
    pub fn desists(&mut self, step: &Step) {
        let record = step.action.guest().and_then(|guest| self.guests.get_mut(guest));
        if let (Some(record), Action::SetBalloon { .. }) = (record, &step.action) {
            record.intended_bytes = None;
        }
    }

    /// Takes in that `step` was done.
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

    /// Whether what `guest` is asked to keep was set by a step, and not by somebody else since: as
    /// its monitor tells, which is true also of a step on the host that it came from, or as
    /// remembered here.
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
        // What a guest has stands for what it was asked for where its monitor does not tell.
        let is_it = |asked: u64| asked.abs_diff(target_bytes) <= MIB;
        record.asked_bytes.is_some_and(is_it) || record.intended_bytes.is_some_and(is_it)
    }

    /// Takes in what came of a step; an actuator that has failed often enough is benched.
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

    /// Why `actuator` is benched for `guest`, or for the host itself when that is `None`; absent
    /// when it is not.
    #[must_use]
    pub fn bench(&self, guest: Option<&str>, actuator: Actuator) -> Option<&Bench> {
        let standings = match guest {
            Some(name) => &self.guests.get(name)?.standings,
            None => &self.host,
        };
        standings.get(&actuator)?.bench.as_ref().filter(|bench| bench.until > self.uptime)
    }
}
