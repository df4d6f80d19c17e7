//! The host's measurements of a guest, in which the effects of steps show.

use serde::{Deserialize, Serialize};

use crate::situation::{Guest, Situation};
use crate::units::signed;

/// The measurements of one guest at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GuestTraces {
    pub(super) pid: u32,
    proportional: i64,
    swapped: i64,
    merged: Option<i64>,
    merge_profit: Option<i64>,
    reported: i64,
    pub(super) huge: i64,
    pub(super) actual: Option<u64>,
    pub(super) target: Option<u64>,
    /// Memory that the guest itself reports as used; only ever counted in its favour.
    used: Option<i64>,
    pub(super) is_mergeable: bool,
    pub(super) is_hindered: bool,
}

/// Differences between two samples. Positive values are memory that the host got back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Movement {
    /// Memory of the guest's process.
    pub(super) process: i64,
    /// Memory returned by its balloon.
    pub(super) balloon: i64,
    /// Memory returned through free page reporting.
    pub(super) reported: i64,
    /// Memory returned by swapping.
    pub(super) swapped: i64,
    /// Memory returned by merging.
    pub(super) merged: i64,
    /// Change of the kernel's merge profit for the process; absent when not reported.
    pub(super) profit: Option<i64>,
    /// Additional memory that the guest itself reports as used.
    pub(super) grown: i64,
}

impl GuestTraces {
    pub(super) fn of(guest: &Guest) -> Self {
        let balloon = guest.balloon.as_ref();
        let used = balloon.and_then(|balloon| {
            let available = balloon.statistics.as_ref()?.available_bytes?;
            Some(signed(balloon.actual_bytes).saturating_sub(signed(available)))
        });
        Self {
            pid: guest.pid,
            proportional: signed(guest.cost.proportional_bytes),
            swapped: signed(guest.cost.swapped_bytes),
            merged: guest.cost.merged_bytes.map(signed),
            merge_profit: guest.cost.merge_profit_bytes,
            reported: balloon.map_or(0, |it| signed(it.reported_bytes_total)),
            huge: signed(guest.cost.huge_bytes),
            actual: balloon.map(|it| it.actual_bytes),
            target: balloon.map(|it| it.target_bytes),
            used,
            is_mergeable: guest.is_mergeable,
            is_hindered: guest.hindrance.is_some(),
        }
    }

    pub(super) fn find(name: &str, situation: &Situation) -> Option<Self> {
        situation.guests.iter().find(|guest| guest.name == name).map(Self::of)
    }

    pub(super) fn movement(&self, after: &Self) -> Movement {
        let both = |a: Option<i64>, b: Option<i64>| Some(b?.saturating_sub(a?));
        let actual = |it: &Self| it.actual.map(signed);
        Movement {
            process: self.proportional.saturating_sub(after.proportional),
            balloon: both(actual(after), actual(self)).unwrap_or(0),
            reported: after.reported.saturating_sub(self.reported).max(0),
            swapped: after.swapped.saturating_sub(self.swapped),
            merged: both(self.merged, after.merged).unwrap_or(0),
            profit: both(self.merge_profit, after.merge_profit),
            grown: both(self.used, after.used).unwrap_or(0).max(0),
        }
    }
}

impl Movement {
    /// Returns a lower and an upper bound of the bytes returned, excluding the amounts in `others`:
    /// either all of those were pages of the process, or none were.
    pub(super) fn without(&self, others: &[i64]) -> (i64, i64) {
        let (mut low, mut high) = (self.process, self.process);
        for other in others {
            if *other > 0 {
                low = low.saturating_sub(*other);
            } else {
                high = high.saturating_sub(*other);
            }
        }
        (low, high.saturating_add(self.grown))
    }
}
