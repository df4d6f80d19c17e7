//! The marks that steps leave in what the host measures.

use serde::{Deserialize, Serialize};

use crate::situation::{Guest, Situation};
use crate::units::signed;

/// What is measured of a guest.
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
    /// What it uses, by its own words: only ever speaks for it.
    used: Option<i64>,
    pub(super) is_mergeable: bool,
    pub(super) is_hindered: bool,
}

/// What moved between two looks. Positive is what the host got back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Movement {
    /// The memory of its process.
    pub(super) process: i64,
    /// By its balloon.
    pub(super) balloon: i64,
    /// By pages that it reported.
    pub(super) reported: i64,
    /// By being swapped out.
    pub(super) swapped: i64,
    /// By being merged.
    pub(super) merged: i64,
    /// By the kernel's profit of it, when it tells.
    pub(super) profit: Option<i64>,
    /// What it needs more than before, by its own words.
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
    /// Two bounds of what came back when what moved by `others` is set against it: all of those
    /// were pages of the process, or none were.
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
