//! Decides which settled records to remove and which to archive, so that every pass reads few.
//! Where a guest has gone stays known.

use std::collections::BTreeMap;
use std::time::Duration;

use migrate::record::Record;
use uuid::Uuid;

use crate::whereabouts::last_of;

/// Beyond this many, settled records may be removed or archived, the oldest first.
const RECORDS_MAX: usize = 250;

/// Settled records younger than this are kept: operators read their reports the next day, and a
/// source that was cut off may still ask.
const AGE_MIN: Duration = Duration::from_secs(24 * 3600);

/// Settled records older than this are removed or archived, however few there are.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What happens to an outdated record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is removed: a later record says where the guest is.
    Removed,
    /// It is archived: without it, this host would deny that it ever had the guest.
    Retired,
}

/// Returns the records to remove or archive at `now_unix_ms`, the oldest first. Never among them
/// are records that are not settled, records whose process is alive, and the last record of a guest
/// that is defined here, which says where the guest is.
pub(crate) fn outdated(
    records: &[Record],
    now_unix_ms: u64,
    is_defined: impl Fn(&str) -> bool,
    is_dead: impl Fn(&Record) -> bool,
) -> Vec<(&Record, Fate)> {
    let mut settled: Vec<&Record> = records.iter().filter(|record| record.is_settled()).collect();
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
    let old = old.map(|(_, record)| record);
    let old = old.filter(|record| is_dead(record) && !is_needed(record));
    let fate_of = fates(records);
    let mut old: Vec<_> = old.map(|record| (record, fate_of(record))).collect();
    old.reverse();
    old
}

/// Returns what to do with an outdated record. The last record of each guest is archived, and so is
/// the last one that says that this host had it.
fn fates(records: &[Record]) -> impl Fn(&Record) -> Fate {
    let mut last: BTreeMap<Uuid, [u64; 2]> = BTreeMap::new();
    for record in records {
        let [of_all, of_having] = last.entry(record.guest_uuid).or_default();
        *of_all = record.started_unix_ms.max(*of_all);
        if record.had_guest() {
            *of_having = record.started_unix_ms.max(*of_having);
        }
    }
    move |record| {
        let [of_all, of_having] = last.get(&record.guest_uuid).copied().unwrap_or_default();
        let at = record.started_unix_ms;
        if at == of_all || (record.had_guest() && at == of_having) {
            Fate::Retired
        } else {
            Fate::Removed
        }
    }
}

#[cfg(test)]
mod tests {
    use migrate::record::{DestinationState, SourceState};

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
            aged(destination_record(DestinationState::Taking, 1), 0),
            aged(destination_record(DestinationState::Failed, 1), 0),
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
        assert_eq!(old[0].0.migration, records[0].migration);
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
    fn the_location_of_a_defined_guest_is_retained() {
        let left = aged(source_record(SourceState::Done, 1), 0);
        let mut earlier = aged(source_record(SourceState::Aborted, 1), 0);
        earlier.started_unix_ms -= 1;
        let records = [earlier.clone(), left.clone()];
        let outdated = |is_defined: bool| {
            let old =
                outdated(&records, 1000 * DAY_MS, |guest| guest == "web" && is_defined, |_| true);
            old.into_iter().map(|(record, fate)| (record.clone(), fate)).collect::<Vec<_>>()
        };
        assert_eq!(outdated(true), [(earlier.clone(), Fate::Removed)]);
        let both = [(earlier, Fate::Removed), (left, Fate::Retired)];
        assert_eq!(sorted(outdated(false)), both);
    }

    fn sorted(mut old: Vec<(Record, Fate)>) -> Vec<(Record, Fate)> {
        old.sort_by_key(|(record, _)| record.started_unix_ms);
        old
    }

    #[test]
    fn the_destination_of_an_undefined_guest_is_retained() {
        let at = |record: Record, started_unix_ms| Record {
            started_unix_ms,
            updated_unix_ms: started_unix_ms,
            ..record
        };
        let records = [
            at(destination_record(DestinationState::Running, 1), 1),
            at(source_record(SourceState::Done, 1), 2),
            at(destination_record(DestinationState::Discarded, 1), 3),
            at(destination_record(DestinationState::Discarded, 1), 4),
        ];
        let old = outdated(&records, 1000 * DAY_MS, |_| false, |_| true);
        let fates: Vec<_> =
            old.iter().map(|(record, fate)| (record.started_unix_ms, *fate)).collect();
        let expected =
            [(1, Fate::Removed), (2, Fate::Retired), (3, Fate::Removed), (4, Fate::Retired)];
        assert_eq!(fates, expected);
    }
}
