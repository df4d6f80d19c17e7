//! The state kept about one guest.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::demand::{Demand, unreported_bytes, used_bytes};
use super::pressure::{Counters, GuestPressure, PressureSign};
use super::standing::Standing;
use super::turns::Turns;
use crate::policy::{Actuator, BalloonPolicy, Policy};
use crate::situation::{Balloon, Guest, Statistics};
use crate::units::{MIB, Span};

/// Pressure that returns this soon after the last counts as the same.
const AGAIN_WITHIN: Duration = Duration::from_secs(3600);
/// Time from the appearance of a guest's balloon driver, early in its boot, until its services have
/// started: systemd gives each of them this long (`DefaultTimeoutStartSec`).
const SETTLING: Duration = Duration::from_secs(90);
/// A guest that began to boot longer ago does not count as booting, whenever its driver appeared:
/// it may have been loaded by hand.
const BOOT_MAX: Duration = Duration::from_secs(600);
/// A balloon that moves by less than this counts as still: a guest's driver moves 1 MiB at a time.
pub(crate) const STILL_BYTES: u64 = MIB;
/// Monitors report the age of statistics in whole seconds.
const AGE_ERROR: Duration = Duration::from_secs(1);

/// The state kept about one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestLedger {
    /// The process that this record is for; another process of the same name gets a new record.
    pub pid: u32,
    /// Host uptime when it was last seen.
    pub seen: Duration,
    /// Use of the memory that it sees, damped; absent until it reports statistics.
    pub demand: Option<Demand>,
    /// Bytes that the guest has but never sees: excluded by `mem=`, reserved for `crashkernel=`, or
    /// used by its kernel beyond a sixteenth of its RAM. Its balloon cannot take them, and the host
    /// is assumed to hold no memory for them.
    #[serde(default)]
    pub unseen_bytes: u64,
    /// The last memory pressure in the guest.
    pub pressure: Option<GuestPressure>,
    /// Changes of direction of its balloon.
    pub turns: Turns,
    /// Results of each actuator for this guest.
    pub standings: BTreeMap<Actuator, Standing>,
    /// The last balloon target set by a step, in bytes; any other target was set from outside.
    #[serde(default)]
    pub asked_bytes: Option<u64>,
    /// The balloon target that a step was about to set, in bytes; it is not known yet whether it
    /// did.
    #[serde(default)]
    pub intended_bytes: Option<u64>,
    /// Host uptime when it last began to boot, as far as known.
    #[serde(default)]
    booted: Option<Duration>,
    /// Host uptime when it was last seen without a driver for its balloon.
    #[serde(default)]
    without_driver: Duration,
    counters: Option<Counters>,
    /// Balloon target, actual size, and the uptime since which neither changed.
    still: Option<(u64, u64, Duration)>,
    /// Host uptime until which it is not judged: when it was first seen, or last had a hindrance.
    excused: Duration,
}

impl GuestLedger {
    pub(super) fn new(pid: u32, now: Duration) -> Self {
        Self {
            pid,
            seen: now,
            demand: None,
            unseen_bytes: 0,
            pressure: None,
            turns: Turns::default(),
            standings: BTreeMap::new(),
            asked_bytes: None,
            intended_bytes: None,
            booted: None,
            without_driver: Duration::ZERO,
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
            // Changes during that time were not caused by a balloon.
            self.counters = None;
            return;
        }
        if let Some(since_boot) = guest.since_boot {
            self.has_booted(now.saturating_sub(since_boot));
        }
        let Some(balloon) = &guest.balloon else { return };
        if !balloon.has_driver {
            self.without_driver = now;
        }
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

    /// Records statistics, new or old, and returns the pressure that they show.
    fn read(
        &mut self,
        guest: &Guest,
        balloon: &Balloon,
        statistics: &Statistics,
        now: Duration,
        policy: &Policy,
    ) -> Option<PressureSign> {
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
            Some(counters) => counters.next(statistics, at, &policy.pressure),
        }
    }

    /// Learns from statistics taken at `at` how much memory the guest never sees. With an empty
    /// balloon it is exactly the unreported memory. With an inflated one it is at least that:
    /// drivers that do not adjust `MEMTOT` report the balloon, too. The balloon must not have moved
    /// since the statistics were taken, because its movement would count as unreported memory.
    fn learn_unseen(
        &mut self,
        guest: &Guest,
        balloon: &Balloon,
        statistics: &Statistics,
        at: Duration,
    ) {
        if self.counters.as_ref().is_some_and(|counters| counters.went_back(statistics)) {
            // The guest rebooted.
            self.has_booted(at);
            self.unseen_bytes = 0;
        }
        let Some(untold) = unreported_bytes(guest, balloon, statistics) else { return };
        let stands_since = self.still.map_or(at, |(_, _, since)| since);
        let is_empty = balloon.actual_bytes.saturating_add(STILL_BYTES) > guest.memory_bytes;
        if is_empty && (self.demand.is_none() || stands_since <= at) {
            self.unseen_bytes = untold;
        } else if stands_since + AGE_ERROR < at {
            self.unseen_bytes = self.unseen_bytes.max(untold);
        }
    }

    /// Records that the guest began to boot at `at`, or later.
    fn has_booted(&mut self, at: Duration) {
        self.booted = self.booted.max(Some(at));
    }

    /// Returns for how long no memory may be taken from the guest because it boots, or has just
    /// booted: not all of its services have started, so its statistics do not show what it needs.
    /// `None` for a guest that has settled, or was booted elsewhere.
    #[must_use]
    pub fn boots_for(&self, now: Duration) -> Option<Duration> {
        let booted = self.booted?;
        let settled = booted.max(self.without_driver).saturating_add(SETTLING);
        let settled = settled.min(booted.saturating_add(BOOT_MAX));
        settled.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Returns pressure if the guest has reported nothing since `at` for too long.
    fn silence(&self, at: Duration, now: Duration, policy: &Policy) -> Option<PressureSign> {
        let silent = now.saturating_sub(at.max(self.excused));
        (silent > policy.balloon.timeout).then_some(PressureSign::Silent(silent))
    }

    fn hurt(&mut self, cause: PressureSign, now: Duration, policy: &BalloonPolicy) {
        let again = match self.pressure {
            Some(pressure) if now < pressure.until => pressure.again,
            Some(pressure) if now.saturating_sub(pressure.until) < AGAIN_WITHIN => {
                pressure.again.saturating_add(1)
            }
            _ => 0,
        };
        let until = now + policy.cooldown.saturating_mul(1 << again.min(3));
        self.pressure = Some(GuestPressure { cause, at: now, until, again });
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
        // Keep the size at which it stopped, so that a slow creep adds up to a movement.
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

    /// Whether the balloon is asked to inflate and does not. A request to deflate never counts as
    /// stuck, because it takes no memory from the guest.
    #[must_use]
    pub fn is_stuck(&self, balloon: &Balloon, now: Duration, policy: &BalloonPolicy) -> bool {
        let is_asked = balloon.target_bytes.saturating_add(STILL_BYTES) < balloon.actual_bytes;
        let since = self.still.map_or(now, |(_, _, since)| since);
        balloon.has_driver && is_asked && now.saturating_sub(since) >= policy.timeout
    }

    /// Returns what the guest needs: its damped use plus what it never sees. `None` until it
    /// reports statistics.
    #[must_use]
    pub fn needs_bytes(&self) -> Option<u64> {
        Some(self.demand?.bytes().saturating_add(self.unseen_bytes))
    }

    /// Returns the pressure because of which the guest is spared now.
    #[must_use]
    pub fn spared(&self, now: Duration) -> Option<&GuestPressure> {
        self.pressure.as_ref().filter(|pressure| now < pressure.until)
    }
}
