//! The control law of one balloon: what a guest needs, what it must get at once, and what could be
//! taken from it.
//!
//! `want = demand + reserve`, between the guest's floor and its maximum. A balloon deflates in one
//! step and inflates in several. A guest under pressure gets everything at once, and keeps it for a
//! while. Targets are absolute, so executing a step twice, or not at all, does no harm.

use std::time::Duration;

use super::skip_reason::SkipReason;
use super::view::{Context, View};
use super::yields::Yield;
use crate::ledger::{GuestLedger, Level, STILL_BYTES};
use crate::policy::Actuator;
use crate::situation::{Backing, Balloon};
use crate::units::{MIB, Size, part};

/// Differences up to this share of a guest's memory are ignored.
const DEAD_BAND: f64 = 0.01;

/// A smaller change is not worth a step.
pub(super) const STEP_MIN_BYTES: u64 = 4 * MIB;

/// What a guest's balloon should do, judged from the guest alone.
#[derive(Debug)]
pub(super) enum BalloonDecision {
    /// Set this target, whatever the host has left.
    Must { to_bytes: u64, reason: String },
    /// Set this target, as far as the host has memory.
    Wants { to_bytes: u64, reason: String },
    /// The guest exceeds its limit, and is reduced to it in steps whatever the goal says.
    Shrinks { to_bytes: u64, reason: String },
    /// Memory could be taken from the guest.
    Spare(Spare),
    /// Leave the balloon alone.
    Leave(SkipReason),
}

/// Memory that could be taken from a guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spare {
    /// Memory that the guest is to keep in the end.
    pub(super) low_bytes: u64,
    /// Largest change in this round.
    pub(super) step_bytes: u64,
    /// Memory that the guest uses.
    pub(super) used_bytes: u64,
    /// Memory that the host gets back for what is taken.
    pub(super) yields: Yield,
}

impl Context<'_> {
    /// Decides about the balloon of a guest without a hindrance.
    pub(super) fn decide_balloon(&self, view: &View<'_>) -> BalloonDecision {
        let Some(balloon) = &view.guest.balloon else {
            return BalloonDecision::Leave(SkipReason::NoBalloon);
        };
        if !view.limits.actuators.contains(&Actuator::Balloon) {
            return BalloonDecision::Leave(SkipReason::NotAllowed);
        }
        if !balloon.has_driver {
            return BalloonDecision::Leave(SkipReason::NoDriver);
        }
        if view.guest.backing == Backing::HugePool {
            let backing = view.guest.backing;
            return BalloonDecision::Leave(SkipReason::WrongBacking { backing });
        }
        self.spared(view, balloon)
            .or_else(|| self.given_up(view, balloon))
            .or_else(|| self.below_floor(view, balloon))
            .unwrap_or_else(|| self.by_demand(view, balloon))
    }

    /// A guest under pressure, now or recently, gets all that it may have.
    fn spared(&self, view: &View<'_>, balloon: &Balloon) -> Option<BalloonDecision> {
        let now = self.ledger.uptime;
        let pressure = view.record?.spared(now)?;
        let to_bytes = view.limits.max_bytes;
        let (pressure, left) = (pressure.cause.to_string(), pressure.until - now);
        if balloon.target_bytes < to_bytes {
            let reason = format!("under memory pressure: {pressure}");
            return Some(BalloonDecision::Must { to_bytes, reason });
        }
        Some(BalloonDecision::Leave(SkipReason::Spared { pressure, left }))
    }

    /// A balloon that does not inflate is given up: with a target out of reach, the guest's driver
    /// would retry for ever.
    fn given_up(&self, view: &View<'_>, balloon: &Balloon) -> Option<BalloonDecision> {
        let policy = &self.policy.balloon;
        if !view.record?.is_stuck(balloon, self.ledger.uptime, policy) {
            return None;
        }
        let to_bytes = balloon.actual_bytes.clamp(view.limits.floor_bytes, view.limits.max_bytes);
        (to_bytes > balloon.target_bytes).then(|| BalloonDecision::Must {
            to_bytes,
            reason: "its balloon does not inflate further: the rest is given up".to_owned(),
        })
    }

    fn below_floor(&self, view: &View<'_>, balloon: &Balloon) -> Option<BalloonDecision> {
        let floor = view.limits.floor_bytes;
        let needs = view.record.and_then(GuestLedger::needs_bytes).unwrap_or(0);
        // A guest that needs more than its floor gets it from `by_demand`.
        (balloon.target_bytes < floor && needs < floor).then(|| BalloonDecision::Must {
            to_bytes: floor,
            reason: format!("its floor is {}", Size::of(floor)),
        })
    }

    fn by_demand(&self, view: &View<'_>, balloon: &Balloon) -> BalloonDecision {
        let (limits, policy) = (&view.limits, &self.policy.balloon);
        let used = match view.record.and_then(|record| record.demand) {
            Some(demand) if balloon.statistics.is_some() => demand.bytes(),
            _ => return BalloonDecision::Leave(SkipReason::NoStatistics),
        };
        let needs = used.saturating_add(view.unseen_bytes());
        let reserve = part(used, policy.reserve).max(policy.reserve_min_bytes);
        let keeps = |reserve: u64| {
            needs.saturating_add(reserve).clamp(limits.floor_bytes, limits.max_bytes)
        };
        // A host that took reserves while short returns them only when it is no longer short.
        // Otherwise it would be short again at once.
        let (owed, low) = match self.ledger.level {
            Level::Green => (reserve, keeps(reserve)),
            Level::Amber => (reserve / 2, keeps(reserve)),
            Level::Red => (0, keeps(0)),
        };
        let (want, target) = (keeps(owed), balloon.target_bytes);
        if want > target && (want - target > self.dead_band(view) || target < limits.floor_bytes) {
            let (needs, reserve) = (Size::of(needs), Size::of(owed));
            let reason = format!("it needs {needs} and a reserve of {reserve}");
            return BalloonDecision::Wants { to_bytes: want, reason };
        }
        if let Some(skip_reason) = self.rests(view, balloon) {
            return BalloonDecision::Leave(skip_reason);
        }
        if target > limits.max_bytes && limits.max_bytes < balloon.actual_bytes {
            let step = self.step(view, balloon);
            let to_bytes = balloon.actual_bytes.saturating_sub(step).max(limits.max_bytes);
            if to_bytes >= target {
                // A smaller movement would not be detected.
                let is_on_its_way = balloon.actual_bytes > target.saturating_add(STILL_BYTES);
                let arrived = SkipReason::WithinDeadBand;
                return BalloonDecision::Leave(if is_on_its_way {
                    SkipReason::Settling
                } else {
                    arrived
                });
            }
            let reason = format!("its limit is {}", Size::of(limits.max_bytes));
            return BalloonDecision::Shrinks { to_bytes, reason };
        }
        self.spare(view, balloon, low, used)
    }

    /// Returns why the balloon must not shrink the guest now.
    fn rests(&self, view: &View<'_>, balloon: &Balloon) -> Option<SkipReason> {
        if !view.limits.take {
            return Some(SkipReason::NotTaken);
        }
        if let Some(skip_reason) = self.forbidden(view, Actuator::Balloon) {
            return Some(skip_reason);
        }
        if balloon.actual_bytes.saturating_sub(balloon.target_bytes) > self.dead_band(view) {
            return Some(SkipReason::Settling);
        }
        if let Some(left) = view.record?.boots_for(self.ledger.uptime) {
            return Some(SkipReason::Booting { left });
        }
        let turns = &view.record?.turns;
        let pause = self.policy.balloon.cooldown.saturating_mul(turns.damping());
        let left = (turns.last()? + pause).checked_sub(self.ledger.uptime)?;
        let is_resting = turns.damping() > 1 && !left.is_zero();
        is_resting.then_some(SkipReason::Oscillating { left })
    }

    fn spare(
        &self,
        view: &View<'_>,
        balloon: &Balloon,
        low_bytes: u64,
        used_bytes: u64,
    ) -> BalloonDecision {
        let surplus = balloon.actual_bytes.saturating_sub(low_bytes);
        let damping = view.record.map_or(1, |record| record.turns.damping());
        if surplus <= self.dead_band(view).saturating_mul(u64::from(damping)) {
            let is_floor = low_bytes == view.limits.floor_bytes;
            return BalloonDecision::Leave(if is_floor {
                SkipReason::AtFloor
            } else {
                SkipReason::WithinDeadBand
            });
        }
        let yields = Yield::of(view, balloon);
        if yields.gain(surplus) < self.policy.balloon.dead_band_min_bytes.max(STEP_MIN_BYTES) {
            return BalloonDecision::Leave(SkipReason::NothingToGain);
        }
        let step_bytes = self.step(view, balloon).min(surplus);
        BalloonDecision::Spare(Spare { low_bytes, step_bytes, used_bytes, yields })
    }

    /// Returns the difference up to which a balloon is left alone. It is never smaller than the
    /// smallest movement that can be detected.
    pub(super) fn dead_band(&self, view: &View<'_>) -> u64 {
        let share = part(view.guest.memory_bytes, DEAD_BAND);
        share.max(self.policy.balloon.dead_band_min_bytes).max(STILL_BYTES)
    }

    /// Returns the largest change of a balloon in one round.
    pub(super) fn step(&self, view: &View<'_>, balloon: &Balloon) -> u64 {
        let policy = &self.policy.balloon;
        let step = part(balloon.actual_bytes, policy.step).min(policy.step_max_bytes);
        let factor = if self.ledger.level == Level::Red { policy.red_factor } else { 1 };
        let damping = view.record.map_or(1, |record| record.turns.damping());
        step.saturating_mul(u64::from(factor)) / u64::from(damping)
    }
}

/// Returns the CPU time for moving `bytes`: a balloon of 4 KiB pages moves 0.95 GiB/s
/// (hyperalloc-bench).
pub(super) fn cpu_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes)
}
