//! What is remembered of one guest.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::demand::{Demand, untold_bytes, used_bytes};
use super::pain::{Counters, Pain, PainCause};
use super::standing::Standing;
use super::turns::Turns;
use crate::policy::{Actuator, BalloonPolicy, Policy};
use crate::situation::{Balloon, Guest, Statistics};
use crate::units::{MIB, Span};

/// Pain that comes back so soon after the last counts as the same.
const AGAIN_WITHIN: Duration = Duration::from_secs(3600);
/// A balloon that moves by less than this does not move: a guest's driver takes 1 MiB at a time.
pub(crate) const STILL_BYTES: u64 = MIB;
/// Monitors tell the age of statistics in whole seconds.
const AGE_ERROR: Duration = Duration::from_secs(1);

/// What is remembered of one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestLedger {
    /// The process that this is about: another one of the same name begins anew.
    pub pid: u32,
    /// When it was last there, as the host's uptime.
    pub seen: Duration,
    /// What it uses of what it sees, damped; absent while it has not said.
    pub demand: Option<Demand>,
    /// What it has and never sees, in bytes: behind `mem=`, for `crashkernel=`, or its kernel's
    /// beyond a sixteenth. Its balloon cannot take it, and it is taken to hold nothing of the host.
    #[serde(default)]
    pub unseen_bytes: u64,
    /// Its last pain.
    pub pain: Option<Pain>,
    /// Which way its balloon went.
    pub turns: Turns,
    /// How the actuators do.
    pub standings: BTreeMap<Actuator, Standing>,
    /// What a step asked it to keep last, in bytes: a target of another size is somebody else's.
    #[serde(default)]
    pub asked_bytes: Option<u64>,
    /// What a step was about to ask it to keep, in bytes; nobody knows yet whether it did.
    #[serde(default)]
    pub intended_bytes: Option<u64>,
    counters: Option<Counters>,
    /// What it was asked for, what it had, and since when neither changed.
    still: Option<(u64, u64, Duration)>,
    /// When it was last not to be judged: before its first look, or while something hindered it.
    excused: Duration,
}

impl GuestLedger {
    pub(super) fn new(pid: u32, now: Duration) -> Self {
        Self {
            pid,
            seen: now,
            demand: None,
            unseen_bytes: 0,
            pain: None,
            turns: Turns::default(),
            standings: BTreeMap::new(),
            asked_bytes: None,
            intended_bytes: None,
            counters: None,
            still: None,
            excused: now,
        }
    }

    pub(super) fn observe(&mut self, guest: &Guest, now: Duration, policy: &Policy) {
        self.seen = now;
        if guest.hindrance.is_some() {
            self.excused = now;
            self.still = None;
            // What happened meanwhile is not what a balloon did.
            self.counters = None;
            return;
        }
        let Some(balloon) = &guest.balloon else { return };
        self.turns.observe(balloon.target_bytes, now);
        self.watch_movement(balloon, now, policy);
        let cause = match &balloon.statistics {
            Some(statistics) => self.read(guest, balloon, statistics, now, policy),
            None => {
                self.counters.as_ref().and_then(|counters| self.silence(counters.at(), now, policy))
            }
        };
        if let Some(cause) = cause {
            self.hurt(cause, now, &policy.balloon);
        }
    }

    /// Takes in statistics, new or old.
    fn read(
        &mut self,
        guest: &Guest,
        balloon: &Balloon,
        statistics: &Statistics,
        now: Duration,
        policy: &Policy,
    ) -> Option<PainCause> {
        let at = now.saturating_sub(statistics.age);
        if let Some(cause) = self.silence(at, now, policy) {
            return Some(cause);
        }
        self.learn_unseen(guest, balloon, statistics, at);
        if let Some(used) = used_bytes(guest, balloon, statistics, self.unseen_bytes) {
            let next = |demand: Demand| demand.next(used, at, policy.balloon.slow);
            self.demand = Some(self.demand.map_or_else(|| Demand::new(used, at), next));
        }
        match &mut self.counters {
            None => {
                self.counters = Some(Counters::new(statistics, at));
                None
            }
            Some(counters) => counters.next(statistics, at, &policy.pain),
        }
    }

    /// Learns what the guest never sees, from statistics of `at`. That is plain while its balloon
    /// is empty. While it holds memory and stands still, it is at least what is not told: drivers
    /// that leave `MEMTOT` alone tell of the balloon, too. What a balloon has moved by since the
    /// statistics were taken is not told either.
    fn learn_unseen(
        &mut self,
        guest: &Guest,
        balloon: &Balloon,
        statistics: &Statistics,
        at: Duration,
    ) {
        if self.counters.as_ref().is_some_and(|counters| counters.went_back(statistics)) {
            // It began anew.
            self.unseen_bytes = 0;
        }
        let Some(untold) = untold_bytes(guest, balloon, statistics) else { return };
        let stands_since = self.still.map_or(at, |(_, _, since)| since);
        let is_empty = balloon.actual_bytes.saturating_add(STILL_BYTES) > guest.memory_bytes;
        if is_empty && (self.demand.is_none() || stands_since <= at) {
            self.unseen_bytes = untold;
        } else if stands_since + AGE_ERROR < at {
            self.unseen_bytes = self.unseen_bytes.max(untold);
        }
    }

    /// Pain when nothing was said since `at` for too long.
    fn silence(&self, at: Duration, now: Duration, policy: &Policy) -> Option<PainCause> {
        let silent = now.saturating_sub(at.max(self.excused));
        (silent > policy.balloon.timeout).then_some(PainCause::Silent(silent))
    }

    fn hurt(&mut self, cause: PainCause, now: Duration, policy: &BalloonPolicy) {
        let again = match self.pain {
            Some(pain) if now < pain.until => pain.again,
            Some(pain) if now.saturating_sub(pain.until) < AGAIN_WITHIN => {
                pain.again.saturating_add(1)
            }
            _ => 0,
        };
        let until = now + policy.cooldown.saturating_mul(1 << again.min(3));
        self.pain = Some(Pain { cause, at: now, until, again });
    }

    fn watch_movement(&mut self, balloon: &Balloon, now: Duration, policy: &Policy) {
        let (target, actual) = (balloon.target_bytes, balloon.actual_bytes);
        let since = match self.still {
            Some((last_target, last_actual, since))
                if last_target == target && actual.abs_diff(last_actual) < STILL_BYTES =>
            {
                since
            }
            _ => now,
        };
        // What it had when it stopped, so that one that creeps is seen to move.
        let kept =
            self.still.map_or(actual, |(_, kept, _)| if since == now { actual } else { kept });
        self.still = Some((target, kept, since));
        if self.is_stuck(balloon, now, &policy.balloon) && self.free_of_bench(now) {
            let time = Span(policy.balloon.timeout);
            let reason = format!("the balloon did not move for {time} when asked to inflate");
            let standing = self.standings.entry(Actuator::Balloon).or_default();
            standing.bench(reason, now);
        }
    }

    fn free_of_bench(&self, now: Duration) -> bool {
        let bench = self.standings.get(&Actuator::Balloon).and_then(|it| it.bench.as_ref());
        bench.is_none_or(|bench| bench.until <= now)
    }

    /// Whether the balloon is asked to inflate and does not. A request to deflate is never given
    /// up: it takes nothing from anybody.
    #[must_use]
    pub fn is_stuck(&self, balloon: &Balloon, now: Duration, policy: &BalloonPolicy) -> bool {
        let is_asked = balloon.target_bytes.saturating_add(STILL_BYTES) < balloon.actual_bytes;
        let since = self.still.map_or(now, |(_, _, since)| since);
        balloon.has_driver && is_asked && now.saturating_sub(since) >= policy.timeout
    }

    /// What it needs: what it uses, damped, and what it never sees. Absent while it has not said.
    #[must_use]
    pub fn needs_bytes(&self) -> Option<u64> {
        Some(self.demand?.bytes().saturating_add(self.unseen_bytes))
    }

    /// The pain for which the guest is spared now.
    #[must_use]
    pub fn spared(&self, now: Duration) -> Option<&Pain> {
        self.pain.as_ref().filter(|pain| now < pain.until)
    }
}
