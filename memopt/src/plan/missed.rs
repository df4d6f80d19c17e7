//! How much of what is wanted a plan misses, and why.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::balloon::STEP_MIN_BYTES;
use super::sheet::Skipped;
use super::skip_reason::SkipReason;
use crate::policy::Actuator;

/// The largest number of reasons that are listed.
const REASONS_MAX: usize = 3;

/// The part of the wanted bytes that neither this plan's steps nor later rounds return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    /// Bytes that are missing.
    pub bytes: u64,
    /// Why guests give no more, with the number of guests for each reason.
    pub reason: String,
}

impl Missed {
    /// Returns what is missing of `wanted_bytes` when `returned_bytes` come back. `None` if it is
    /// less than the smallest step of a balloon, or if as much as possible is wanted.
    pub(super) fn of(
        wanted_bytes: Option<u64>,
        returned_bytes: i64,
        skipped: &[Skipped],
    ) -> Option<Self> {
        let returned_bytes = u64::try_from(returned_bytes).unwrap_or(0);
        let bytes = wanted_bytes?.saturating_sub(returned_bytes);
        (bytes >= STEP_MIN_BYTES).then(|| Self { bytes, reason: reason(skipped) })
    }
}

/// Returns the reasons why guests keep memory, the most frequent first. Balloons return most of
/// what a host gets back, so the reasons of other actuators are omitted.
fn reason(skipped: &[Skipped]) -> String {
    let mut guests: BTreeMap<String, usize> = BTreeMap::new();
    for skipped in skipped.iter().filter(|skipped| keeps_memory(skipped)) {
        *guests.entry(skipped.skip_reason.to_string()).or_default() += 1;
    }
    if guests.is_empty() {
        return "every guest keeps only what it needs".to_owned();
    }
    let mut reasons: Vec<(String, usize)> = guests.into_iter().collect();
    reasons.sort_by_key(|(_, count)| Reverse(*count));
    let others: usize = reasons.iter().skip(REASONS_MAX).map(|(_, count)| count).sum();
    reasons.truncate(REASONS_MAX);
    let mut parts: Vec<String> =
        reasons.iter().map(|(why, count)| format!("{}: {why}", counted(*count))).collect();
    if others > 0 {
        parts.push(format!("{}: other reasons", counted(others)));
    }
    parts.join("; ")
}

fn keeps_memory(skipped: &Skipped) -> bool {
    matches!(skipped.actuator, None | Some(Actuator::Balloon))
        && skipped.skip_reason != SkipReason::HostHasEnough
}

fn counted(guests: usize) -> String {
    format!("{guests} guest{}", if guests == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::situation::Hindrance;

    fn skipped(actuator: Option<Actuator>, skip_reason: SkipReason) -> Skipped {
        Skipped { guest: "a".to_owned(), actuator, skip_reason }
    }

    #[test]
    fn frequent_reasons_come_first_and_those_of_balloons_only() {
        let balloon = Some(Actuator::Balloon);
        let mut all = vec![
            skipped(None, SkipReason::Hindered { by: Hindrance::Paused }),
            skipped(balloon, SkipReason::NoDriver),
            skipped(balloon, SkipReason::NoDriver),
            skipped(balloon, SkipReason::HostHasEnough),
            skipped(Some(Actuator::Merge), SkipReason::NoDomain),
        ];
        let missed = Missed::of(Some(10 << 30), 4 << 30, &all).unwrap();
        let why = "2 guests: no driver in the guest serves the balloon; 1 guest: it is paused";
        assert_eq!((missed.bytes, missed.reason.as_str()), (6 << 30, why));

        let more = [SkipReason::AtFloor, SkipReason::NoBalloon, SkipReason::NoStatistics];
        all.extend(more.map(|skip_reason| skipped(balloon, skip_reason)));
        let missed = Missed::of(Some(10 << 30), 0, &all).unwrap();
        assert!(missed.reason.ends_with("; 2 guests: other reasons"), "{missed:?}");
    }

    #[test]
    fn nothing_is_missed_if_all_comes_back_or_as_much_as_possible_is_wanted() {
        assert_eq!(Missed::of(Some(1 << 30), 1 << 30, &[]), None);
        assert_eq!(Missed::of(Some(STEP_MIN_BYTES - 1), -1, &[]), None);
        assert_eq!(Missed::of(None, 0, &[]), None);
        let missed = Missed::of(Some(1 << 30), -1, &[]).unwrap();
        assert_eq!((missed.bytes, missed.reason.contains("needs")), (1 << 30, true));
    }
}
