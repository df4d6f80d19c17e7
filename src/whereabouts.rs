//! Where a guest may be, as far as this host knows: a second copy on the same disks destroys them.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use migrate::record::{DestinationState, Record, Side, SourceState};

use crate::ended::{self, Ended, How};
use crate::names::GuestName;
use crate::state_dir::{GuestClaim, GuestDir, StateDir};

/// Where a guest that does not run here may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// On this host, or nowhere.
    Here,
    /// On this host or another one: its last migration is not settled. The text completes the
    /// sentence "web-1 ...".
    Unsettled(String),
    /// On another host, or discarded.
    Elsewhere(String),
    /// Saved in a file.
    Saved(String),
}

impl Whereabouts {
    /// Determines where the guest `name` is, from the records in `state`.
    ///
    /// # Errors
    /// If the records of its migrations cannot be read, or the record of how it last ended here.
    pub(crate) fn of(state: &StateDir, name: &GuestName) -> Result<Self> {
        let unknown = || format!("cannot tell whether {name} runs on another host");
        let last = last_migration(state, name).with_context(unknown)?;
        let ended = state.ended().expect(name).with_context(unknown)?;
        Ok(Self::by(last.as_ref(), ended))
    }

    /// Decides by the records of the guest's migrations alone, the newest first.
    pub(crate) fn by_records(records: &[Record]) -> Self {
        Self::by(records.first(), None)
    }

    /// Returns where else the guest may be: completes the sentence "web-1 ...".
    pub(crate) fn elsewhere(self) -> Option<String> {
        match self {
            Self::Here | Self::Saved(_) => None,
            Self::Unsettled(why) | Self::Elsewhere(why) => Some(why),
        }
    }

    /// Decides by the record of the last migration, and by how the guest last ended here.
    fn by(last: Option<&Record>, ended: Option<Ended>) -> Self {
        let Some(last) = last else { return ended.and_then(Self::by_end).unwrap_or(Self::Here) };
        if let Some(ended) = ended.filter(|ended| ended.ended_unix_ms > last.updated_unix_ms) {
            // If it was started here since and ended here, it is here; but that does not settle the
            // migration.
            let is_here = began_since(&ended, last) && !is_another_hosts(last);
            match Self::by_end(ended) {
                Some(elsewhere) => return elsewhere,
                None if is_here => return Self::Here,
                None => {}
            }
        }
        match &last.side {
            Side::Source { state, destination, .. } => after_leaving(*state, destination),
            Side::Destination { state, .. } => after_arriving(*state),
        }
    }

    /// Returns where the guest is, if its end on this host says that it is elsewhere.
    fn by_end(ended: Ended) -> Option<Self> {
        match ended.how {
            How::Saved => Some(Self::Saved(ended.reason)),
            How::Moved | How::Discarded => Some(Self::Elsewhere(ended.reason)),
            How::PoweredOff | How::Reset | How::Destroyed | How::Crashed | How::Died => None,
        }
    }

    /// Records durably that the guest belongs to this host, whatever became of its last migration.
    /// If that migration is not settled, neither host continues with it.
    ///
    /// # Errors
    /// If the record cannot be read or written: the guest must not be started.
    pub(crate) fn claim(state: &StateDir, name: &GuestName) -> Result<()> {
        let Some(mut last) = last_migration(state, name)? else { return Ok(()) };
        match &mut last.side {
            Side::Source {
                state: decided @ (SourceState::Committed | SourceState::Serving),
                ..
            } => {
                *decided = SourceState::Undecided;
            }
            Side::Source { state: SourceState::Undecided, .. } => {}
            Side::Destination { state, .. } if *state == DestinationState::Fetching => {
                *state = DestinationState::Lost;
            }
            Side::Destination { state, .. }
                if !matches!(
                    state,
                    DestinationState::Running
                        | DestinationState::Discarded
                        | DestinationState::Lost
                ) =>
            {
                *state = DestinationState::Discarded;
            }
            Side::Source { .. } | Side::Destination { .. } => return Ok(()),
        }
        state.records()?.reopen(&last)?.write(&last)?;
        state.departures().claim(&last)
    }

    /// Refuses a guest that may run elsewhere, with what the other host says now, and what to do.
    ///
    /// # Errors
    /// If the guest may be elsewhere; the message says why.
    pub(crate) fn expect_here(
        self,
        name: &GuestName,
        other: Option<&str>,
        way_out: &str,
    ) -> Result<()> {
        let other = other.map(|other| format!("; {other}")).unwrap_or_default();
        match self {
            Self::Here => Ok(()),
            Self::Elsewhere(why) => bail!("{name} {why}{other}; if it runs nowhere, {way_out}"),
            Self::Saved(why) => {
                let restore = ended::restore_command(name, &why);
                bail!(
                    "{name} {why}{other}: `{restore}` continues it. To boot it instead, {way_out}; the saved memory then no longer \
                     fits its disks"
                )
            }
            Self::Unsettled(why) => bail!(
                "{name} {why}{other}: the node of this host keeps asking. If the other host is gone for good, decide where {name} is in \
                 doubt: `lighter migrate {name} --resolve run` or `discard`. If it runs nowhere, {way_out}"
            ),
        }
    }
}

/// Takes the name of a guest for this process.
///
/// # Errors
/// Like [`GuestDir::claim`]; if the name is that of a guest that arrives, the message says from
/// where.
pub(crate) fn claim_name(state: &StateDir, name: &GuestName) -> Result<GuestClaim> {
    let guest = state.guest(name);
    guest.claim().map_err(|error| match arrives_from(state, &guest) {
        Some(host) => anyhow!(
            "{name} is arriving on this host from {host}: `lighter cancel {name}` cancels that"
        ),
        None => error,
    })
}

/// Returns the host from which the live process of `guest` receives its guest.
fn arrives_from(state: &StateDir, guest: &GuestDir) -> Option<IpAddr> {
    let last = last_migration(state, guest.name()).ok()??;
    let is_its_own = || guest.read_identity().is_ok_and(|process| process.pid == last.pid);
    match last.side {
        Side::Destination {
            state: DestinationState::Loading | DestinationState::Ready,
            source_address,
            ..
        } if guest.is_live() && is_its_own() => Some(source_address.ip()),
        Side::Source { .. } | Side::Destination { .. } => None,
    }
}

/// Whether the guest that ended was not the one of the migration `last`, or was started after it.
fn began_since(ended: &Ended, last: &Record) -> bool {
    ended.began_unix_ms > last.updated_unix_ms || ended.uuid != last.guest_uuid
}

/// Whether another host may have the guest, whatever has happened to it here since. False while a
/// source is undecided: its guest was not handed over, and a destination whose operator has forced
/// it to run is asked before every start.
fn is_another_hosts(last: &Record) -> bool {
    let is_undecided = matches!(last.side, Side::Source { state: SourceState::Undecided, .. });
    !last.is_settled() && !is_undecided
}

fn after_leaving(state: SourceState, destination: &str) -> Whereabouts {
    match state {
        SourceState::Aborted => Whereabouts::Here,
        SourceState::Done => Whereabouts::Elsewhere(format!("has moved to {destination}")),
        SourceState::Undecided => Whereabouts::Unsettled(format!(
            "was on its way to {destination}, which has yet to say that its copy is gone"
        )),
        SourceState::Committed => Whereabouts::Unsettled(format!(
            "was, or may have been, handed over to {destination}, which has yet to say that it runs there"
        )),
        SourceState::Serving => Whereabouts::Unsettled(format!(
            "was handed over to {destination} before its memory, and may run there"
        )),
    }
}

fn after_arriving(state: DestinationState) -> Whereabouts {
    match state {
        // A guest that has run here and was lost can boot here again, as after a crash.
        DestinationState::Running | DestinationState::Fetching | DestinationState::Lost => {
            Whereabouts::Here
        }
        DestinationState::Discarded => Whereabouts::Elsewhere(
            "was last on its way here from another host, and may still be there".to_owned(),
        ),
        DestinationState::Loading
        | DestinationState::Ready
        | DestinationState::Taking
        | DestinationState::Failed => Whereabouts::Unsettled(
            "was on its way here, and the host that it came from may have it or wait for a decision"
                .to_owned(),
        ),
    }
}

/// Returns this host's record of the last migration of `guest`.
///
/// # Errors
/// Like [`migrations_of`].
pub(crate) fn last_migration(state: &StateDir, guest: &GuestName) -> Result<Option<Record>> {
    Ok(migrations_of(state, guest)?.into_iter().next())
}

/// Returns this host's records of the migrations of `guest`, and of any guest with the UUID under
/// which that name is defined here; the latest first.
///
/// # Errors
/// If the records cannot be read, or one of this guest's: it may be the latest.
pub(crate) fn migrations_of(state: &StateDir, guest: &GuestName) -> Result<Vec<Record>> {
    let definition = state.definitions().find(guest).ok().flatten();
    let uuid = definition.and_then(|definition| definition.uuid().ok()?);
    if !state.migrations().try_exists()? {
        return Ok(Vec::new());
    }
    Ok(state.records()?.of(guest.as_str(), uuid)?)
}

/// Returns the record of the last migration of `guest` among `records`.
pub(crate) fn last_of<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    guest: &str,
) -> Option<&'a Record> {
    let its = records.into_iter().filter(|record| record.guest == guest);
    its.max_by_key(|record| record.started_unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::liveness::tests::{destination_record, source_record};

    /// A record of how a guest that was never migrated ended.
    fn ended(how: How, ended_unix_ms: u64) -> Ended {
        let (name, uuid) = ("web".parse().unwrap(), uuid::Uuid::from_u128(77));
        Ended {
            name,
            uuid,
            began_unix_ms: 0,
            ended_unix_ms,
            how,
            reason: "was".to_owned(),
            console_bytes: 0,
        }
    }

    fn kind(whereabouts: &Whereabouts) -> char {
        match whereabouts {
            Whereabouts::Here => 'h',
            Whereabouts::Unsettled(_) => 'u',
            Whereabouts::Elsewhere(_) => 'e',
            Whereabouts::Saved(_) => 's',
        }
    }

    #[test]
    fn only_a_settled_record_locates_a_guest() {
        let by = |record| kind(&Whereabouts::by(Some(&record), None));
        let of_source = [
            (SourceState::Undecided, 'u'),
            (SourceState::Committed, 'u'),
            (SourceState::Serving, 'u'),
            (SourceState::Done, 'e'),
            (SourceState::Aborted, 'h'),
        ];
        for (state, expected) in of_source {
            assert_eq!(by(source_record(state, 1)), expected, "{state:?}");
        }
        let of_destination = [
            (DestinationState::Loading, 'u'),
            (DestinationState::Ready, 'u'),
            (DestinationState::Taking, 'u'),
            (DestinationState::Failed, 'u'),
            (DestinationState::Fetching, 'h'),
            (DestinationState::Lost, 'h'),
            (DestinationState::Running, 'h'),
            (DestinationState::Discarded, 'e'),
        ];
        for (state, expected) in of_destination {
            assert_eq!(by(destination_record(state, 1)), expected, "{state:?}");
        }
    }

    #[test]
    fn the_last_record_counts() {
        let mut back = destination_record(DestinationState::Running, 1);
        back.started_unix_ms += 1;
        let records = [back.clone(), source_record(SourceState::Done, 1)];
        assert_eq!(last_of(&records, "web"), Some(&back));
        assert_eq!(last_of(&records, "db"), None);
    }

    #[test]
    fn a_guest_that_ended_here_since_is_here_or_in_its_file() {
        let left = source_record(SourceState::Done, 1);
        for (how, after_ms, expected) in [
            (How::PoweredOff, 0, 'e'),
            (How::PoweredOff, 1, 'h'),
            (How::Moved, 1, 'e'),
            (How::Saved, 1, 's'),
        ] {
            let ended = ended(how, left.updated_unix_ms + after_ms);
            assert_eq!(kind(&Whereabouts::by(Some(&left), Some(ended))), expected, "{how:?}");
        }
        let arrived = destination_record(DestinationState::Running, 1);
        let moved = ended(How::Moved, arrived.updated_unix_ms + 1);
        assert_eq!(kind(&Whereabouts::by(Some(&arrived), Some(moved))), 'e');
        for (how, expected) in [(How::PoweredOff, 'h'), (How::Moved, 'e'), (How::Saved, 's')] {
            assert_eq!(kind(&Whereabouts::by(None, Some(ended(how, 0)))), expected, "{how:?}");
        }
        assert_eq!(Whereabouts::by(None, None), Whereabouts::Here);
    }

    #[test]
    fn a_saved_guest_is_to_be_restored() {
        let saved = Whereabouts::Saved("was saved to /srv/web.lighter".to_owned());
        let refused = saved.expect_here(&"web".parse().unwrap(), None, "`start`").unwrap_err();
        let restore = "`lighter restore /srv/web.lighter --name web`";
        assert!(refused.to_string().contains(restore), "{refused}");
    }

    #[test]
    fn the_end_of_a_copy_that_was_handed_over_is_ignored() {
        for (record, expected, of_another) in [
            (source_record(SourceState::Committed, 1), 'u', 'u'),
            (source_record(SourceState::Undecided, 1), 'u', 'h'),
            (source_record(SourceState::Done, 1), 'e', 'h'),
            (destination_record(DestinationState::Ready, 1), 'u', 'u'),
            (destination_record(DestinationState::Taking, 1), 'u', 'u'),
            (destination_record(DestinationState::Failed, 1), 'u', 'u'),
            (destination_record(DestinationState::Discarded, 1), 'e', 'h'),
        ] {
            let uuid = record.guest_uuid;
            let ended = Ended { uuid, ..ended(How::Destroyed, record.updated_unix_ms + 1) };
            assert_eq!(
                kind(&Whereabouts::by(Some(&record), Some(ended.clone()))),
                expected,
                "{record:?}"
            );
            let later = Ended { began_unix_ms: record.updated_unix_ms + 1, ..ended };
            assert_eq!(
                kind(&Whereabouts::by(Some(&record), Some(later))),
                of_another,
                "{record:?}"
            );
        }
    }

    #[test]
    fn a_claim_withdraws_every_pending_handover() {
        for (record, expected) in [
            (source_record(SourceState::Committed, 1), "Undecided"),
            (source_record(SourceState::Serving, 1), "Undecided"),
            (destination_record(DestinationState::Fetching, 1), "Lost"),
            (source_record(SourceState::Done, 1), "Done"),
            (destination_record(DestinationState::Taking, 1), "Discarded"),
            (destination_record(DestinationState::Running, 1), "Running"),
        ] {
            let (_folder, state) = StateDir::temporary();
            state.create().unwrap();
            let store = state.records().unwrap();
            store.create(&record).unwrap();
            Whereabouts::claim(&state, &"web".parse().unwrap()).unwrap();
            let now = store.read(record.migration, record.role(), |_| true).unwrap().unwrap();
            assert!(format!("{:?}", now.side).contains(&format!("state: {expected}")), "{now:?}");
        }
    }

    #[test]
    fn a_damaged_record_makes_the_location_unknown() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        let record = source_record(SourceState::Done, 1);
        state.records().unwrap().create(&record).unwrap();
        let [web, db] = ["web", "db"].map(|name| name.parse().unwrap());
        let place = state.place_of_records(&web, record.guest_uuid);
        std::fs::write(place.join("later.source.json"), "rubbish").unwrap();
        let error = format!("{:#}", Whereabouts::of(&state, &web).unwrap_err());
        assert!(
            error.contains("cannot tell whether web runs") && error.contains("later"),
            "{error}"
        );
        Whereabouts::claim(&state, &web).unwrap_err();
        assert_eq!(Whereabouts::of(&state, &db).unwrap(), Whereabouts::Here);
    }

    #[test]
    fn an_unreadable_end_makes_the_location_unknown() {
        let (_folder, state) = StateDir::temporary();
        let [web, db] = ["web", "db"].map(|name| name.parse().unwrap());
        state.ended().create_place(&web).unwrap();
        std::fs::write(state.ended().place(&web).join("ended.json"), "{").unwrap();
        let error = format!("{:#}", Whereabouts::of(&state, &web).unwrap_err());
        assert!(error.contains("cannot tell whether web runs"), "{error}");
        assert!(error.contains("remove that file"), "{error}");
        assert_eq!(Whereabouts::of(&state, &db).unwrap(), Whereabouts::Here);
    }

    /// Defines a guest with the UUID that the records in these tests have.
    fn define(state: &StateDir, name: &str) -> GuestName {
        let file = state.root().join("guest.toml");
        let uuid = source_record(SourceState::Done, 1).guest_uuid;
        std::fs::write(&file, format!("name = \"{name}\"\nuuid = \"{uuid}\"")).unwrap();
        state.definitions().define(&file, |_| Ok(None)).unwrap()
    }

    #[test]
    fn a_guest_is_known_by_its_uuid_also_by_another_name_and_long_after() {
        let (_folder, state) = StateDir::temporary();
        let store = state.records().unwrap();
        let left = source_record(SourceState::Done, 1);
        store.create(&left).unwrap();
        let www = define(&state, "www");
        assert_eq!(last_migration(&state, &www).unwrap(), Some(left.clone()));
        store.retire(&left).unwrap();
        assert_eq!(kind(&Whereabouts::of(&state, &www).unwrap()), 'e');
        let place = state.place_of_records(&"web".parse().unwrap(), left.guest_uuid);
        std::fs::write(place.join("later.source.json"), "rubbish").unwrap();
        Whereabouts::of(&state, &www).unwrap_err();
    }

    #[test]
    fn a_refusal_has_a_remedy() {
        let name = "web".parse().unwrap();
        let way_out = "`lighter start web --force` starts it here";
        Whereabouts::Here.expect_here(&name, None, way_out).unwrap();
        let moved = after_leaving(SourceState::Done, "host-b");
        let moved = moved.expect_here(&name, Some("host-b has it"), way_out).unwrap_err();
        assert_eq!(
            moved.to_string(),
            "web has moved to host-b; host-b has it; if it runs nowhere, `lighter start web --force` starts it here"
        );
        let open = after_leaving(SourceState::Committed, "host-b");
        let open = open.expect_here(&name, None, way_out).unwrap_err();
        assert!(open.to_string().contains("keeps asking"), "{open}");
    }
}
