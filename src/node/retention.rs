//! Which settled records may be removed, so that the folder of migrations stays small.

use std::time::Duration;

use migrate::record::{DestinationState, Record, Side, SourceState};

use crate::whereabouts::last_of;

/// Settled records beyond this many may go, the oldest first.
const RECORDS_MAX: usize = 250;

/// No settled record goes before this age: its report is what an operator reads the next day, and a source that was cut off
/// may still ask about it.
const AGE_MIN: Duration = Duration::from_secs(24 * 3600);

/// Every settled record goes at this age.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether nothing more can follow: the record is history.
pub(crate) fn is_settled(record: &Record) -> bool {
    match &record.side {
        Side::Source { state, .. } => matches!(state, SourceState::Done | SourceState::Aborted),
        Side::Destination { state, .. } => {
            !matches!(state, DestinationState::Loading | DestinationState::Ready)
        }
    }
}

/// The records to remove at `now_unix_ms`. One that is not settled is never among them, nor one whose process lives, nor the last
/// one of a guest that is defined here: that says where it is.
pub(crate) fn outdated(
    records: &[Record],
    now_unix_ms: u64,
    is_defined: impl Fn(&str) -> bool,
    is_dead: impl Fn(&Record) -> bool,
) -> Vec<&Record> {
    let mut settled: Vec<&Record> = records.iter().filter(|record| is_settled(record)).collect();
    settled.sort_by_key(|record| std::cmp::Reverse(record.updated_unix_ms));
    let age =
        |record: &Record| Duration::from_millis(now_unix_ms.saturating_sub(record.updated_unix_ms));
    let is_outdated = |rank: usize, record: &Record| {
        age(record) > AGE_MAX || (rank >= RECORDS_MAX && age(record) > AGE_MIN)
    };
    let old = settled.into_iter().enumerate().filter(|(rank, record)| is_outdated(*rank, record));
    let is_needed = |record: &Record| {
        is_defined(&record.guest)
            && last_of(records, &record.guest).is_some_and(|last| std::ptr::eq(last, record))
    };
    old.map(|(_, record)| record).filter(|record| is_dead(record) && !is_needed(record)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::liveness::tests::{destination_record, source_record};
    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn aged(mut record: Record, updated_unix_ms: u64) -> Record {
        record.updated_unix_ms = updated_unix_ms;
        record
    }

    #[test]
    fn an_open_record_stays_however_old() {
        let records = [
            aged(source_record(SourceState::Undecided, 1), 0),
            aged(source_record(SourceState::Committed, 1), 0),
            aged(destination_record(DestinationState::Ready, 1), 0),
            aged(destination_record(DestinationState::Loading, 1), 0),
        ];
        assert!(outdated(&records, 1000 * DAY_MS, |_| false, |_| true).is_empty());
    }

    #[test]
    fn settled_records_go_after_thirty_days_unless_their_process_lives() {
        let records = [
            aged(source_record(SourceState::Done, 1), 0),
            aged(destination_record(DestinationState::Running, 2), 0),
            aged(source_record(SourceState::Aborted, 1), 40 * DAY_MS),
        ];
        let old = outdated(&records, 41 * DAY_MS, |_| false, |record| record.pid != 2);
        assert_eq!(old.len(), 1);
        assert_eq!(old[0].migration, records[0].migration);
    }

    #[test]
    fn beyond_the_limit_the_oldest_go_but_none_of_the_last_day() {
        let count = RECORDS_MAX as u64 + 10;
        let records: Vec<Record> = (0..count)
            .map(|at| aged(destination_record(DestinationState::Discarded, 1), at))
            .collect();
        assert_eq!(outdated(&records, 2 * DAY_MS, |_| false, |_| true).len(), 10);
        assert!(outdated(&records, DAY_MS / 2, |_| false, |_| true).is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_removes_nothing() {
        let records = [aged(source_record(SourceState::Done, 1), 100 * DAY_MS)];
        assert!(outdated(&records, 0, |_| false, |_| true).is_empty());
    }

    #[test]
    fn where_a_defined_guest_is_stays_known() {
        let left = aged(source_record(SourceState::Done, 1), 0);
        let mut earlier = aged(source_record(SourceState::Aborted, 1), 0);
        earlier.started_unix_ms -= 1;
        let records = [earlier.clone(), left.clone()];
        let outdated = |is_defined: bool| {
            let old =
                outdated(&records, 1000 * DAY_MS, |guest| guest == "web" && is_defined, |_| true);
            old.into_iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(outdated(true), [earlier]);
        assert_eq!(outdated(false).len(), 2);
    }
}
