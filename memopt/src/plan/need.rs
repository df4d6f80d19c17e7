//! How much memory is wanted, and how much may be given away.

use crate::ledger::Level;
use crate::policy::{Goal, Policy};
use crate::situation::Host;
use crate::units::part;

/// How much memory is wanted, and how much may be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Bytes still to be taken; absent when as much as possible is wanted.
    pub(super) bytes: Option<u64>,
    /// Bytes that guests that *need* memory may get: the host stays above the red line.
    pub(super) growth_bytes: u64,
    /// Bytes that guests that could use memory may get back, and that huge pages may cost: goal and
    /// level stay reached.
    pub(super) spare_bytes: u64,
}

impl Need {
    pub(super) fn of(goal: Goal, level: Level, host: &Host, policy: &Policy) -> Self {
        let limits = &policy.host;
        let share = |share: f64| part(host.total_bytes, share);
        let merged = host.ksm.map_or(0, |ksm| u64::try_from(ksm.profit_bytes).unwrap_or(0));
        // A merged page can be written at any time, and then takes a page of its own.
        let cow_reserve = part(merged, limits.cow_reserve);
        // Beyond the bound at which amber ends, which would otherwise hardly ever be passed.
        let margin = 2.0 * limits.hysteresis;
        let calm = share(limits.amber_below + margin);
        let wanted = if level == Level::Green { cow_reserve } else { calm.max(cow_reserve) };
        let by_level = wanted.saturating_sub(host.available_bytes);
        let kept = match goal {
            Goal::Keep(kept) => share(kept + margin),
            Goal::Free(_) | Goal::MaxDensity => 0,
        };
        let above = |line: u64| host.available_bytes.saturating_sub(line);
        Self {
            bytes: goal.lacking_bytes(host).map(|lacking| lacking.max(by_level)),
            growth_bytes: above(share(limits.red_below)),
            spare_bytes: match level {
                Level::Green => above(kept.max(calm).max(cow_reserve)),
                Level::Amber | Level::Red => 0,
            },
        }
    }

    /// Whether nothing more is wanted.
    pub(super) fn is_met(&self) -> bool {
        self.bytes == Some(0)
    }

    /// Returns the part of `bytes` that is wanted.
    pub(super) fn at_most(&self, bytes: u64) -> u64 {
        self.bytes.map_or(bytes, |left| left.min(bytes))
    }

    /// Records that `expected_bytes` are expected from steps already in the plan.
    pub(super) fn met_by(&mut self, expected_bytes: i64) {
        let expected = u64::try_from(expected_bytes).unwrap_or(0);
        self.bytes = self.bytes.map(|left| left.saturating_sub(expected));
    }

    /// Takes `bytes` from what may be given away. Returns false and takes nothing if there is not
    /// enough.
    pub(super) fn spend(&mut self, bytes: u64) -> bool {
        let left = self.spare_bytes.checked_sub(bytes);
        self.spare_bytes = left.unwrap_or(self.spare_bytes);
        left.is_some()
    }
}
