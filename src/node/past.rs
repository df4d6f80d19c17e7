//! What this host answers about a guest that it no longer has, by the records of its migrations.
//! Another host asks before it starts the guest.

use std::net::IpAddr;

use migrate::MigrationId;
use migrate::protocol::front::{FoundGuest, Onward};
use migrate::record::{DestinationState, Record, Side, SourceState};
use migrate::text::PeerText;
use uuid::Uuid;

/// Which records count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// The records after this migration, in which the asking host took part. The migration's own
    /// record counts only if it says that the guest was here because of it.
    Migration(MigrationId),
    /// The asking host, at this address, named no migration: it runs an earlier version.
    Unsaid(IpAddr),
}

/// A guest that was on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) guest: FoundGuest,
    /// Where it has gone or was going.
    pub(super) onward: Option<Onward>,
}

/// Returns how the guest `uuid` was last on this host, by the `records` of its migrations, in any
/// order; `None` if it was not here in the time that `since` selects.
pub(super) fn past<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    uuid: Uuid,
    since: Since,
) -> Option<Past> {
    let mut its: Vec<&Record> =
        records.into_iter().filter(|record| record.guest_uuid == uuid).collect();
    its.sort_by_key(|record| std::cmp::Reverse(record.started_unix_ms));
    match since {
        Since::Migration(migration) => {
            let asked = its.iter().position(|record| record.migration == migration);
            let later = &its[..asked.unwrap_or(its.len())];
            let of_asked = || asked.and_then(|at| by_itself(its[at]));
            later.iter().find_map(|record| by_record(record)).or_else(of_asked)
        }
        Since::Unsaid(asker) => {
            let last = its.iter().find(|it| it.had_guest() || is_with(&it.side, asker))?;
            if is_open(&last.side) && is_with(&last.side, asker) { None } else { by_record(last) }
        }
    }
}

/// What the record of another migration says, in whose course the guest was here.
fn by_record(record: &Record) -> Option<Past> {
    match &record.side {
        Side::Source { state: SourceState::Done, .. } => Some(gone(record, FoundGuest::MOVED)),
        Side::Source {
            state: SourceState::Undecided | SourceState::Committed | SourceState::Serving,
            ..
        } => Some(gone(record, FoundGuest::ON_ITS_WAY)),
        Side::Source { state: SourceState::Aborted, .. } => Some(ended(record)),
        Side::Destination { .. } => record.had_guest().then(|| ended(record)),
    }
}

/// What the record of the named migration itself says: one of its copies waits at the asking host.
fn by_itself(record: &Record) -> Option<Past> {
    match record.side {
        Side::Source { state: SourceState::Aborted, .. }
        | Side::Destination { state: DestinationState::Running | DestinationState::Lost, .. } => {
            Some(ended(record))
        }
        Side::Source { .. } | Side::Destination { .. } => None,
    }
}

fn is_open(side: &Side) -> bool {
    match side {
        Side::Source { state, .. } => state.decision().is_some(),
        Side::Destination { state, .. } => {
            !matches!(state, DestinationState::Running | DestinationState::Lost)
        }
    }
}

/// Whether the other host of the migration is at `address`.
fn is_with(side: &Side, address: IpAddr) -> bool {
    match side {
        Side::Source { node_address, .. } => node_address.ip() == address,
        Side::Destination { source_address, .. } => source_address.ip() == address,
    }
}

fn ended(record: &Record) -> Past {
    let state = PeerText::new(FoundGuest::ENDED);
    Past { guest: found(record, state, false), onward: None }
}

/// The guest has left, or was leaving, for the host that the source's record names.
fn gone(record: &Record, how: &str) -> Past {
    let Side::Source { destination, server_name, node_address, .. } = &record.side else {
        return ended(record);
    };
    let onward = Onward {
        destination: PeerText::new(destination),
        server_name: PeerText::new(server_name),
        node_address: *node_address,
        migration: record.migration,
    };
    let state = PeerText::new(&format!("{how}{destination}"));
    Past { guest: found(record, state, true), onward: Some(onward) }
}

fn found(record: &Record, state: PeerText, is_owned: bool) -> FoundGuest {
    let name = PeerText::new(&record.guest);
    FoundGuest { uuid: record.guest_uuid, name, state, is_owned }
}

#[cfg(test)]
mod tests {
    use super::super::liveness::tests::{destination_record, source_record};
    use super::*;

    fn at(record: Record, started_unix_ms: u64) -> Record {
        Record { started_unix_ms, ..record }
    }

    /// Returns the answer, and whether it says that this host owns the guest.
    fn reported(records: &[Record], since: Since) -> Option<(String, bool)> {
        let uuid = source_record(SourceState::Done, 1).guest_uuid;
        past(records, uuid, since).map(|past| (past.guest.state.to_string(), past.guest.is_owned))
    }

    fn ended_there() -> Option<(String, bool)> {
        Some(("ended there".to_owned(), false))
    }

    /// Returns the migration that brought the guest here from the asking host.
    fn arrived(state: DestinationState) -> (Record, Since) {
        let record = at(destination_record(state, 1), 1000);
        let since = Since::Migration(record.migration);
        (record, since)
    }

    #[test]
    fn the_last_migration_decides_where_a_guest_has_gone() {
        let (arrived, since) = arrived(DestinationState::Running);
        assert_eq!(reported(&[], since), None);
        assert_eq!(reported(std::slice::from_ref(&arrived), since), ended_there());
        let moved_on = at(source_record(SourceState::Done, 1), 2000);
        let to_b = Some(("moved to host-b:4950".to_owned(), true));
        let both = [arrived.clone(), moved_on.clone()];
        assert_eq!(reported(&both, since), to_b);
        assert_eq!(
            reported(std::slice::from_ref(&moved_on), since),
            to_b,
            "also if it is all there is"
        );
        let onward = past(&both, arrived.guest_uuid, since).unwrap().onward.unwrap();
        assert_eq!(onward.migration, moved_on.migration);
        assert_eq!(onward.node_address, ([127, 0, 0, 1], 4950).into());
        let mut other = at(source_record(SourceState::Aborted, 1), 4000);
        other.guest_uuid = Uuid::from_u128(u128::MAX);
        assert_eq!(reported(&[moved_on, other], since), to_b, "another guest tells nothing");
    }

    #[test]
    fn a_guest_that_was_handed_on_is_in_transit_until_settled() {
        let (arrived, since) = arrived(DestinationState::Running);
        let on_its_way = Some(("on its way to host-b:4950".to_owned(), true));
        for open in [SourceState::Undecided, SourceState::Committed] {
            let open = at(source_record(open, 1), 2000);
            let mut records = vec![arrived.clone(), open];
            assert_eq!(reported(&records, since), on_its_way);
            // The guest was offered again since, and not accepted.
            let offered = [DestinationState::Discarded, DestinationState::Loading];
            records.extend(offered.map(|state| at(destination_record(state, 1), 3000)));
            assert_eq!(reported(&records, since), on_its_way);
        }
        let stayed = at(source_record(SourceState::Aborted, 1), 2000);
        assert_eq!(reported(&[arrived, stayed], since), ended_there());
    }

    #[test]
    fn migrations_before_the_one_in_question_are_ignored() {
        let before = at(source_record(SourceState::Done, 1), 500);
        let open_before = at(source_record(SourceState::Committed, 1), 600);
        for waits in [
            DestinationState::Loading,
            DestinationState::Ready,
            DestinationState::Taking,
            DestinationState::Failed,
            DestinationState::Discarded,
        ] {
            let (waits, since) = arrived(waits);
            assert_eq!(reported(&[before.clone(), open_before.clone(), waits], since), None);
        }
    }

    #[test]
    fn a_migration_to_the_asking_host_is_not_past_unless_the_guest_was_kept() {
        for (state, expected) in [
            (SourceState::Undecided, None),
            (SourceState::Committed, None),
            (SourceState::Done, None),
            (SourceState::Aborted, ended_there()),
        ] {
            let own = source_record(state, 1);
            let since = Since::Migration(own.migration);
            assert_eq!(reported(&[own], since), expected, "{state:?}");
        }
    }

    #[test]
    fn an_earlier_version_is_not_sent_its_own_migration_as_in_transit() {
        let [asker, another] = [[127, 0, 0, 1], [192, 0, 2, 7]].map(|ip| Since::Unsaid(ip.into()));
        let to_asker = at(source_record(SourceState::Committed, 1), 2000);
        assert_eq!(reported(std::slice::from_ref(&to_asker), asker), None);
        let on_its_way = Some(("on its way to host-b:4950".to_owned(), true));
        assert_eq!(reported(std::slice::from_ref(&to_asker), another), on_its_way);
        let waits = at(destination_record(DestinationState::Ready, 1), 3000);
        assert_eq!(
            reported(&[to_asker.clone(), waits.clone()], asker),
            None,
            "it waits to be told"
        );
        assert_eq!(reported(&[to_asker, waits], another), on_its_way);
        let (arrived, _) = arrived(DestinationState::Running);
        assert_eq!(reported(std::slice::from_ref(&arrived), asker), ended_there());
        let moved_on = at(source_record(SourceState::Done, 1), 4000);
        let to_b = Some(("moved to host-b:4950".to_owned(), true));
        assert_eq!(reported(&[arrived, moved_on], asker), to_b);
    }
}
