//! Asks the other host of a guest's last migration whether it has the guest, before the guest
//! starts here; then each host to which the guest has moved on.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use migrate::MigrationId;
use migrate::front::{self, Sought, Traced};
use migrate::progress::Role;
use migrate::protocol::front::{DiskUser, FoundGuest, SoughtDisk};
use migrate::quic::Tls;
use migrate::quic::endpoint::Peer;
use migrate::record::{Record, Side, SourceState};

use crate::address::{Destination, NODE_PORT};
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;
use crate::whereabouts::migrations_of;

/// How long a host may take to answer; one that has lost power never does.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a host may take to answer when nothing suggests that it has the guest. It is shorter
/// than `PATIENCE` because it delays the start.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// Most hosts that are asked, one after the other, when the guest has moved on from each.
const HOSTS_MAX: usize = 8;

/// Why the other host is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A guest is about to boot; according to this host's records it is here.
    Start,
    /// The guest may be elsewhere: its start is refused, or forced. The hosts to which it has moved
    /// on are asked as well.
    Elsewhere,
    /// A copy that waits for a decision is about to run.
    Resolve,
}

/// The other host of a guest's last migration.
#[derive(Debug)]
pub(crate) struct OtherHost {
    guest: GuestName,
    /// Whether the node that was asked is the one that took part in the migration, judging by its
    /// address.
    is_its_node: bool,
    /// Whether this host's record says that the other host has the guest. If the guest was started
    /// here since, the user has forced it.
    was_given: bool,
    /// The answer of that host.
    first: Said,
    /// The answers of the hosts to which the guest has moved on, in that order.
    onward: Vec<Said>,
}

/// One host's answer.
#[derive(Debug)]
struct Said {
    /// The host's name.
    host: String,
    /// Its node, if that was asked.
    node: Option<Peer>,
    /// Where the guest is, or why there is no answer.
    answer: Result<Traced, String>,
}

/// A series of questions to hosts about one guest.
struct Inquiry<'a> {
    state: &'a StateDir,
    last: &'a Record,
    patience: Duration,
    /// The migrations that brought the guest here: an answer that names one of them is ignored.
    came_here: BTreeSet<MigrationId>,
}

impl OtherHost {
    /// Asks the other host of the last migration of `guest`; `None` if the guest was never
    /// migrated.
    ///
    /// # Errors
    /// If the records of migrations cannot be read.
    pub(crate) async fn ask(
        state: &StateDir,
        guest: &GuestName,
        occasion: Occasion,
    ) -> Result<Option<Self>> {
        let records = migrations_of(state, guest)
            .with_context(|| format!("cannot tell where {guest} was migrated"))?;
        Ok(Self::ask_by(state, guest, &records, occasion).await)
    }

    /// Asks the other host of the first of `records`, which are those of `guest`, the newest first,
    /// without migrations that never found their destination: those took the guest nowhere.
    pub(crate) async fn ask_by(
        state: &StateDir,
        guest: &GuestName,
        records: &[Record],
        occasion: Occasion,
    ) -> Option<Self> {
        let last = records.iter().find(|record| has_found_host(&record.side))?;
        let patience = if occasion == Occasion::Start { START_PATIENCE } else { PATIENCE };
        let inquiry = Inquiry::about(state, last, records, patience);
        let host = match &last.side {
            Side::Source { destination, .. } => destination.clone(),
            Side::Destination { source_address, .. } => source_address.ip().to_string(),
        };
        let node = node_of(&last.side).ok_or("the address of its node is unknown here");
        let first = inquiry.hear(host, node.map_err(str::to_owned), Some(last.migration)).await;
        let (guest, is_its_node) = (guest.clone(), knows_node(&last.side));
        let onward = match occasion {
            Occasion::Elsewhere => inquiry.follow(&first).await,
            Occasion::Start | Occasion::Resolve => Vec::new(),
        };
        let was_given = matches!(last.side, Side::Source { state: SourceState::Done, .. });
        Some(Self { guest, is_its_node, was_given, first, onward })
    }

    /// Whether the guest is certainly on none of these hosts: the last one to which it has moved
    /// answers, and does not have it.
    pub(crate) fn is_gone(&self) -> bool {
        match &self.last().answer {
            Ok(Traced { guest: Some(found), .. }) => found.state.as_str() == FoundGuest::ENDED,
            // A host that denies a guest which another one says it has may have lost its records.
            Ok(Traced { guest: None, .. }) => self.is_its_node && self.onward.is_empty(),
            Err(_) => false,
        }
    }

    /// The answer of the last host to which the guest has moved.
    fn last(&self) -> &Said {
        self.onward.last().unwrap_or(&self.first)
    }

    /// Whether the last host to which the guest has moved says that it has the guest.
    pub(crate) fn has_it(&self) -> bool {
        let found = self.last().answer.as_ref().ok().and_then(|traced| traced.guest.as_ref());
        found.is_some_and(|found| found.is_owned && !found.is_past())
    }

    /// Refuses to run the copy of the last migration here if the other host has the guest, or if it
    /// has run there since: then this copy is out of date. Prints a warning if a host cannot be
    /// asked.
    ///
    /// # Errors
    /// If the other host has the guest, or had it; the message gives the guest's state there.
    pub(crate) fn expect_no_later(&self) -> Result<()> {
        let (guest, host) = (&self.guest, &self.first.host);
        match self.first.past() {
            Some(past) => bail!(
                "{host} had {guest} after this migration began, and it {}: the copy here is out of date. `lighter migrate {guest} \
                 --resolve discard` throws it away",
                fate(past)
            ),
            None => self.expect_absent(),
        }
    }

    /// Refuses the start of a guest that this host's records place here, if the other host has it,
    /// or has had it since its last migration. Prints a warning if a host cannot be asked.
    ///
    /// # Errors
    /// If the other host has the guest, or had it; the message gives the guest's state there, and
    /// `way_out` for when it runs nowhere.
    pub(crate) fn expect_none_since(&self, way_out: &str) -> Result<()> {
        let (guest, host) = (&self.guest, &self.first.host);
        match (self.first.past(), &self.first.answer) {
            // An earlier version also reports what happened before the migration.
            (Some(past), Ok(Traced { is_since: false, .. })) => {
                output::note(format_args!(
                    "warning: {host} (an earlier version of lighter) had {guest}, and it {}; if that was after its last migration \
                     between the two hosts, two copies destroy its disks",
                    fate(past)
                ));
                Ok(())
            }
            (Some(past), _) if self.was_given && past.state.as_str() == FoundGuest::ENDED => Ok(()),
            (Some(past), _) => bail!(
                "{host} has had {guest} since it last moved between the two hosts, and it {}: the copy here is out of date. If it runs \
                 nowhere, {way_out}",
                fate(past)
            ),
            (None, _) => self.expect_absent(),
        }
    }

    /// Refuses to boot a guest here that the other host has, or that has moved on from there to a
    /// host that has it. Prints a warning if a host cannot be asked.
    ///
    /// # Errors
    /// If a host has the guest; the message gives its state there.
    pub(crate) fn expect_absent(&self) -> Result<()> {
        let Self { guest, is_its_node, first: Said { host, answer, .. }, onward, .. } = self;
        match answer {
            Ok(traced) => match &traced.guest {
                Some(past) if past.is_past() => {}
                Some(found) if found.is_owned => bail!("{}", has_it(host, guest, found)),
                None if !is_its_node => output::note(format_args!(
                    "warning: the node at {host}:{NODE_PORT} does not have {guest}, which came from there; if another node of that host \
                     has it, two copies destroy its disks"
                )),
                Some(_) | None => {}
            },
            Err(why) => output::note(format_args!(
                "warning: {host} cannot be asked whether it runs {guest} ({why}); if it does, two copies destroy its disks"
            )),
        }
        let mut from = &self.first;
        for to in onward {
            expect_not_at(guest, from, to)?;
            from = to;
        }
        Ok(())
    }

    /// Asks those of these hosts that have answered which guests there write `disk`, or are about
    /// to. Returns each host's name with its answer.
    pub(crate) async fn users_of(
        &self,
        state: &StateDir,
        disk: &SoughtDisk,
    ) -> Vec<(&str, Result<Vec<DiskUser>, String>)> {
        let mut all = Vec::new();
        for Said { host, node, answer } in std::iter::once(&self.first).chain(&self.onward) {
            let (Some(node), Ok(_)) = (node, answer) else { continue };
            let users = async {
                let tls = Tls::load(&state.certs()).map_err(|error| error.to_string())?;
                let users = front::disk_users(&tls, node, disk, PATIENCE).await;
                users.map_err(|error| error.to_string())
            };
            all.push((host.as_str(), users.await));
        }
        all
    }

    /// Returns all answers as text, as in "web-1 has moved to host-b; ...".
    pub(crate) fn says(&self) -> String {
        let all = std::iter::once(&self.first).chain(&self.onward);
        all.map(Said::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// Refuses a guest that has moved on, if it is on the host to which it moved.
fn expect_not_at(guest: &GuestName, from: &Said, to: &Said) -> Result<()> {
    let Said { host, answer, .. } = to;
    let how = from.past().map(fate).unwrap_or_default();
    match answer {
        Ok(Traced { guest: Some(past), .. }) if past.is_past() => {}
        Ok(Traced { guest: Some(found), .. }) if found.is_owned => {
            bail!("{guest} {how} from {}, and {}", from.host, has_it(host, guest, found))
        }
        Ok(Traced { guest: Some(found), .. }) => bail!(
            "{guest} {how} from {}, and {host} is in doubt about it ({}): resolve that first, there \
             (`lighter migrate {guest} --resolve run` or `discard`)",
            from.host,
            found.state
        ),
        Ok(Traced { guest: None, .. }) => output::note(format_args!(
            "warning: {guest} {how} from {}, and {host} does not have it; if it runs elsewhere, two copies destroy its disks",
            from.host
        )),
        Err(why) => output::note(format_args!(
            "warning: {guest} {how} from {}, and {host} cannot be asked whether it runs there ({why}); if it does, two copies destroy \
             its disks",
            from.host
        )),
    }
    Ok(())
}

fn has_it(host: &str, guest: &GuestName, found: &FoundGuest) -> String {
    format!(
        "{host} has {guest}, as {} ({}): two copies would destroy its disks. To run it here, end it there first (or stop \
         that host's node, if that is another guest of this name)",
        found.name, found.state
    )
}

/// What became of a guest that is no longer there: completes the sentence "it ...".
fn fate(past: &FoundGuest) -> String {
    let verb = if past.is_on_its_way() { "is" } else { "has" };
    format!("{verb} {}", past.state)
}

impl Said {
    /// Returns the guest if it was there and no longer is.
    fn past(&self) -> Option<&FoundGuest> {
        self.answer.as_ref().ok()?.guest.as_ref().filter(|found| found.is_past())
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, answer, .. } = self;
        match answer {
            Ok(Traced { guest: Some(past), .. }) if past.is_past() => {
                write!(f, "{host} had it, and it {}", fate(past))
            }
            Ok(Traced { guest: Some(found), .. }) => {
                write!(f, "{host} has it as {} ({})", found.name, found.state)
            }
            Ok(Traced { guest: None, .. }) => write!(f, "{host} does not have it now"),
            Err(why) => write!(f, "{host} cannot be asked ({why})"),
        }
    }
}

impl<'a> Inquiry<'a> {
    fn about(
        state: &'a StateDir,
        last: &'a Record,
        records: &[Record],
        patience: Duration,
    ) -> Self {
        let arrivals = records.iter().filter(|record| record.role() == Role::Destination);
        let came_here = arrivals.map(|record| record.migration).collect();
        Self { state, last, patience, came_here }
    }

    /// Asks `host` at its node, if that is known.
    async fn hear(
        &self,
        host: String,
        node: Result<Peer, String>,
        migration: Option<MigrationId>,
    ) -> Said {
        match node {
            Err(why) => Said { host, node: None, answer: Err(why) },
            Ok(node) => {
                let answer = self.ask(&node, migration).await;
                Said { host, node: Some(node), answer }
            }
        }
    }

    async fn ask(&self, node: &Peer, migration: Option<MigrationId>) -> Result<Traced, String> {
        let tls = Tls::load(&self.state.certs()).map_err(|error| error.to_string())?;
        let (uuid, name) = (self.last.guest_uuid, self.last.guest.clone());
        let sought = Sought { uuid, name, migration };
        let traced = front::trace(&tls, node, &sought, self.patience).await;
        Ok(self.without_arrival_here(traced.map_err(|error| error.to_string())?))
    }

    /// Removes the guest from an answer which says that it left for this host by a known migration.
    fn without_arrival_here(&self, traced: Traced) -> Traced {
        match &traced.onward {
            Some(onward) if self.came_here.contains(&onward.migration) => {
                Traced { guest: None, onward: None, ..traced }
            }
            _ => traced,
        }
    }

    /// Asks one host after the other where the guest has gone from `first`.
    async fn follow(&self, first: &Said) -> Vec<Said> {
        let mut all: Vec<Said> = Vec::new();
        while let Some((host, node, migration)) = next(all.last().unwrap_or(first)) {
            let node = match node {
                _ if all.len() + 1 >= HOSTS_MAX => {
                    Err(format!("{HOSTS_MAX} hosts have been asked already"))
                }
                Some(node) => Ok(node),
                None => find(&host).await,
            };
            all.push(self.hear(host, node, migration).await);
        }
        all
    }
}

/// Returns where to ask next: the host as users call it, its node unless it must be looked up, and
/// the migration that took the guest there.
fn next(said: &Said) -> Option<(String, Option<Peer>, Option<MigrationId>)> {
    let past = said.past()?;
    let traced = said.answer.as_ref().ok()?;
    if let Some(onward) = &traced.onward {
        let peer = Peer { address: onward.node_address, name: onward.server_name.to_string() };
        return Some((onward.destination.to_string(), Some(peer), Some(onward.migration)));
    }
    Some((past.destination()?.to_owned(), None, None))
}

/// Finds the node of a host of which only the name is known, as a user typed it: hosts of earlier
/// versions pass on no address.
async fn find(host: &str) -> Result<Peer, String> {
    let found = async { Destination::parse(host)?.find().await }.await;
    let peers = found.map_err(|error| format!("{error:#}"))?;
    peers.into_iter().next().ok_or_else(|| format!("{host} has no address"))
}

/// Returns the node of the other host; if the source's port is unknown, one on the default port.
fn node_of(side: &Side) -> Option<Peer> {
    match side {
        Side::Source { server_name, node_address, .. } => {
            Some(Peer { address: *node_address, name: server_name.clone() })
        }
        Side::Destination { source_address, source_name, source_node_port, .. } => {
            let mut address = *source_address;
            address.set_port(source_node_port.map_or(NODE_PORT, NonZeroU16::get));
            Some(Peer { address, name: source_name.clone()? })
        }
    }
}

/// Whether the migration has found its other host.
fn has_found_host(side: &Side) -> bool {
    match side {
        Side::Source { node_address, .. } => !node_address.ip().is_unspecified(),
        Side::Destination { .. } => true,
    }
}

/// Whether [`node_of`] returns the node that took part in the migration, rather than one on the
/// default port.
fn knows_node(side: &Side) -> bool {
    match side {
        Side::Source { .. } => true,
        Side::Destination { source_node_port, .. } => source_node_port.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use migrate::protocol::front::Onward;
    use migrate::record::DestinationState;
    use uuid::Uuid;

    use super::*;
    use crate::node::liveness::tests::{destination_record, source_record};

    fn said(host: &str, guest: Option<(&str, bool)>) -> Said {
        let guest = guest.map(|(state, is_owned)| FoundGuest {
            uuid: Uuid::from_u128(5),
            name: "web".into(),
            state: state.into(),
            is_owned,
        });
        let answer = Ok(Traced { guest, onward: None, is_since: true });
        Said { host: host.to_owned(), node: None, answer }
    }

    fn silent(host: &str) -> Said {
        Said { host: host.to_owned(), node: None, answer: Err("no answer".to_owned()) }
    }

    fn other(first: Said, onward: Vec<Said>) -> OtherHost {
        let guest = "web".parse().unwrap();
        OtherHost { guest, is_its_node: true, was_given: false, first, onward }
    }

    #[test]
    fn a_guest_that_runs_where_it_has_moved_on_to_is_refused_and_one_that_does_not_is_not() {
        for (how, in_words) in [
            ("moved to c:4950", "web has moved to c:4950 from b"),
            ("on its way to c:4950", "web is on its way to c:4950 from b"),
        ] {
            let other = |last| other(said("b", Some((how, true))), vec![last]);
            let runs = other(said("c:4950", Some(("running", true)))).expect_absent().unwrap_err();
            assert!(runs.to_string().starts_with(in_words), "{runs}");
            assert!(runs.to_string().contains("c:4950 has web, as web (running)"), "{runs}");
            let waits = other(said("c:4950", Some(("in-doubt", false))));
            let waits = waits.expect_absent().unwrap_err().to_string();
            assert!(waits.contains("c:4950 is in doubt about it"), "{waits}");
            for last in [said("c:4950", Some(("ended there", false))), silent("c:4950")] {
                let other = other(last);
                other.expect_absent().unwrap();
                other.expect_none_since("--force").unwrap_err();
                other.expect_no_later().unwrap_err();
            }
        }
    }

    #[test]
    fn a_guest_is_gone_only_if_every_host_says_so() {
        let moved = || said("b", Some(("moved to c", true)));
        let ended = |host| said(host, Some(("ended there", false)));
        for (first, onward, is_gone) in [
            (said("b", None), vec![], true),
            (ended("b"), vec![], true),
            (said("b", Some(("running", true))), vec![], false),
            (said("b", Some(("in-doubt", false))), vec![], false),
            (silent("b"), vec![], false),
            (moved(), vec![], false),
            (moved(), vec![said("c", None)], false),
            (moved(), vec![ended("c")], true),
            (moved(), vec![silent("c")], false),
            (moved(), vec![said("c", Some(("running", true)))], false),
        ] {
            let other = other(first, onward);
            assert_eq!(other.is_gone(), is_gone, "{}", other.says());
        }
        let another = OtherHost { is_its_node: false, ..other(said("b", None), vec![]) };
        assert!(!another.is_gone());
    }

    #[test]
    fn a_guest_that_the_other_host_received_since_is_not_here() {
        let way_out = "`--force` starts it here";
        for state in ["running", "moved to c", "on its way to c"] {
            let refused = other(said("b", Some((state, true))), Vec::new());
            let refused = refused.expect_none_since(way_out).unwrap_err().to_string();
            assert!(refused.contains("b ha") && refused.contains(state), "{refused}");
        }
        let ended = other(said("b", Some(("ended there", false))), Vec::new());
        let ended = ended.expect_none_since(way_out).unwrap_err().to_string();
        assert!(ended.contains("it has ended there") && ended.contains(way_out), "{ended}");
        for passes in [said("b", None), said("b", Some(("in-doubt", false))), silent("b")] {
            other(passes, Vec::new()).expect_none_since(way_out).unwrap();
        }
        // This host knew that the other host had the guest; a user has forced the start here since.
        let known = other(said("b", Some(("ended there", false))), Vec::new());
        OtherHost { was_given: true, ..known }.expect_none_since(way_out).unwrap();
        // An earlier version may mean the time before the migration that brought the guest here.
        let mut earlier = said("b", Some(("moved to here", true)));
        earlier.answer.as_mut().unwrap().is_since = false;
        other(earlier, Vec::new()).expect_none_since(way_out).unwrap();
    }

    #[test]
    fn a_report_that_the_guest_left_for_this_host_changes_nothing() {
        let (_folder, state) = StateDir::temporary();
        let records = [
            source_record(SourceState::Aborted, 1),
            destination_record(DestinationState::Running, 1),
        ];
        let inquiry = Inquiry::about(&state, &records[0], &records, PATIENCE);
        let by = |migration| {
            let mut said = said("b", Some(("moved to a", true)));
            let traced = said.answer.as_mut().unwrap();
            traced.onward = Some(Onward {
                destination: "a".into(),
                server_name: "a".into(),
                node_address: ([127, 0, 0, 1], 4950).into(),
                migration,
            });
            said.answer.unwrap()
        };
        let here = inquiry.without_arrival_here(by(records[1].migration));
        assert_eq!((here.guest, here.onward), (None, None));
        let elsewhere = by(MigrationId::random());
        assert_eq!(inquiry.without_arrival_here(elsewhere.clone()), elsewhere);
    }

    #[test]
    fn the_next_host_is_asked_at_the_reported_address_or_the_name_given_by_the_user() {
        let mut moved = said("b", Some(("moved to c:77", true)));
        assert_eq!(next(&moved), Some(("c:77".to_owned(), None, None)));
        let migration = MigrationId::random();
        let address = ([192, 0, 2, 7], 4950).into();
        moved.answer.as_mut().unwrap().onward = Some(Onward {
            destination: "c:77".into(),
            server_name: "host-c".into(),
            node_address: address,
            migration,
        });
        let peer = Peer { address, name: "host-c".to_owned() };
        assert_eq!(next(&moved), Some(("c:77".to_owned(), Some(peer), Some(migration))));
        for last in [said("b", Some(("running", true))), said("b", None), silent("b")] {
            assert_eq!(next(&last), None);
        }
    }

    #[test]
    fn the_node_of_a_source_is_asked_where_it_listens_or_else_on_the_default_port() {
        let mut side = destination_record(DestinationState::Ready, 1).side;
        assert_eq!(node_of(&side), None, "no name to expect in its certificate");
        for (said, asked) in [(NonZeroU16::new(7000), 7000), (None, NODE_PORT)] {
            let Side::Destination { source_name, source_node_port, .. } = &mut side else {
                panic!("{side:?}")
            };
            *source_name = Some("host-a".to_owned());
            *source_node_port = said;
            let (address, name) = (([127, 0, 0, 1], asked).into(), "host-a".to_owned());
            assert_eq!(node_of(&side), Some(Peer { address, name }));
            assert_eq!(knows_node(&side), said.is_some());
        }
    }

    #[test]
    fn a_migration_that_found_no_host_took_the_guest_nowhere() {
        let mut side = source_record(SourceState::Aborted, 1).side;
        assert!(has_found_host(&side));
        let Side::Source { node_address, .. } = &mut side else { panic!("{side:?}") };
        *node_address = ([0, 0, 0, 0], 4950).into();
        assert!(!has_found_host(&side));
    }
}
