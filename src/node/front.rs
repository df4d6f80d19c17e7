//! The node's answers to sources and other hosts: admits guests, and settles migrations whose
//! process is gone.
//!
//! The decisions are made elsewhere ([`super::admission`], `migrate::resolve`). This module carries
//! them out in the right order: promise, start, answer; record, then answer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use migrate::guest::RefusalKind;
use migrate::progress::Role;
use migrate::protocol::front::{FoundGuest, FrontReply, Onward};
use migrate::protocol::{Decision, Offer};
use migrate::record::{DestinationState, Record, RecordError, Side};
use migrate::resolve::answer_for_dead;
use migrate::text::PeerText;
use migrate::{GuestDescription, MigrationId, Refusal as WireRefusal, Token};
use uuid::Uuid;
use vmm_core::{VCPUS_MAX, VcpuLimits, VmShape};

use super::admission::{GuestRequest, HostView, Occupant, Refusal, Takes};
use super::inventory::{self, GuestView};
use super::launch::{Launch, Launched, launch};
use super::liveness;
use super::past::{Past, Since, past};
use super::service::Node;
use crate::api::types::GuestState;
use crate::clock::unix_ms;
use crate::names::GuestName;
use crate::state_dir::GuestDir;
use crate::whereabouts::last_migration;

/// Most guests that arrive at once.
const ARRIVING_MAX: usize = 16;

/// How long to wait for the process of a guest's last attempt to end before the next attempt is
/// decided.
const LAST_TRY_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two checks whether it has ended.
const LAST_TRY_PAUSE: Duration = Duration::from_millis(50);

/// A guest that asks to be admitted.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The source's address.
    pub(crate) peer: SocketAddr,
    /// The migration that brings the guest.
    pub(crate) migration: MigrationId,
    /// Protocol versions of the source.
    pub(crate) offer: Offer,
    /// The guest's description.
    pub(crate) guest: GuestDescription,
}

impl Node {
    /// Checks the guest, promises memory, starts the process and returns where it listens; or
    /// returns why the guest is refused.
    pub(crate) async fn admit(&self, arrival: Arrival) -> FrontReply {
        let (migration, peer) = (arrival.migration, arrival.peer);
        let name = arrival.guest.name.clone();
        match self.try_admit(arrival).await {
            Ok((port, token)) => {
                self.counted().admissions.inc(&());
                tracing::info!(%migration, guest = name, %peer, port, "admitted a guest");
                FrontReply::Admitted { port, token }
            }
            Err(refusal) => {
                self.counted().admissions_refused.inc(&(refusal.reason(),));
                // The source chose this text; Debug escapes it.
                tracing::warn!(%migration, guest = ?name, %peer, "refused a guest: {refusal}");
                FrontReply::Refused(for_the_wire(&refusal))
            }
        }
    }

    async fn try_admit(&self, arrival: Arrival) -> Result<(u16, Token), Refusal> {
        Offer::ours()
            .newest_common(&arrival.offer)
            .map_err(|mismatch| Refusal::Version { what: mismatch.to_string() })?;
        let request = read_request(&arrival.guest)?;
        self.await_end_of_last_try(request.uuid).await;
        if self.is_shutting_down() {
            return Err(Refusal::ShuttingDown);
        }
        self.forget_the_gone();
        if self.promises().count() >= ARRIVING_MAX {
            return Err(Refusal::TooMany { count: ARRIVING_MAX });
        }
        let migration = arrival.migration;
        let shape = VmShape::from_bytes(&arrival.guest.config.0).ok();
        let disks = disks(shape.as_ref());
        let forbidden = disks.iter().find_map(|disk| self.disk_places().permit(disk).err());
        if let Some(what) = forbidden {
            return Err(Refusal::Disk { name: request.name, what });
        }
        self.promises().admit(&request, migration, || self.host_view())?;
        let token = Token::random();
        let has_vsock = shape.is_some_and(|shape| shape.cid().is_some());
        let launched = self.launch(&request, (migration, &token), &disks, has_vsock).await;
        let Launched { port, child } =
            launched.inspect_err(|_| self.promises().release(&request.name, migration))?;
        if let Some(pid) = child.id() {
            self.promises().assign(&request.name, pid);
        }
        self.reap(request.name, migration, child);
        Ok((port, token))
    }

    /// Waits for the process of the last attempt to end, since a source may try again at once.
    async fn await_end_of_last_try(&self, guest: Uuid) {
        let end = Instant::now() + LAST_TRY_PATIENCE;
        while self.promises().expects(guest) && Instant::now() < end {
            tokio::time::sleep(LAST_TRY_PAUSE).await;
            self.forget_the_gone();
        }
    }

    async fn launch(
        &self,
        guest: &GuestRequest,
        (migration, token): (MigrationId, &Token),
        disks: &[PathBuf],
        vsock: bool,
    ) -> Result<Launched, Refusal> {
        let bind = self.listen_address().ip();
        let GuestRequest { name, uuid, .. } = guest;
        let what = Launch {
            state: self.state(),
            name,
            uuid: *uuid,
            migration,
            token,
            bind,
            ports: self.ports(),
            disks,
            net_map: self.net_map(),
            net_allowed: self.net_allowed(),
            vsock,
            log: self.log(),
            // A guest without disks creates none. Only the process learns which disks are copied.
            disk_folders: if disks.is_empty() { &[] } else { self.disk_places().folders() },
        };
        launch(&what).await.map_err(|error| {
            tracing::error!(%migration, guest = %name, "the process for the guest did not come up: {error}");
            Refusal::Process { name: name.clone(), what: error.to_string() }
        })
    }

    /// Reads the host's state. What cannot be read counts as not there.
    fn host_view(&self) -> HostView {
        let guests = self.state().live_guests().unwrap_or_default();
        let occupants = guests
            .iter()
            .map(|guest| Occupant { name: guest.name().clone(), uuid: self.uuid_of(guest) });
        HostView {
            occupants: occupants.collect(),
            available_bytes: memopt::observe::host_memory()
                .map_or(0, |memory| memory.available_bytes),
            reserved_bytes: self.reserved_bytes(),
            promised_bytes: 0,
            kvm_fault: kvm_fault(),
            vcpus_max: VcpuLimits::of_host().map_or(VCPUS_MAX, |limits| limits.max).into(),
        }
    }

    /// Finds the guest `uuid`, or else the one that is called `name`, for a host of an earlier
    /// version at `asker` that is about to run a copy of it.
    pub(crate) async fn find(&self, uuid: Uuid, name: &PeerText, asker: SocketAddr) -> FrontReply {
        match self.sought(uuid, name, Since::Unsaid(asker.ip())).await {
            Ok((guest, _)) => FrontReply::Found(guest),
            Err(what) => FrontReply::Refused(WireRefusal::new(RefusalKind::Other, what)),
        }
    }

    /// Like `find`, for a host that took part in `migration`; also returns where the guest
    /// has gone since.
    pub(crate) async fn trace(
        &self,
        uuid: Uuid,
        name: &PeerText,
        migration: MigrationId,
    ) -> FrontReply {
        match self.sought(uuid, name, Since::Migration(migration)).await {
            Ok((guest, onward)) => FrontReply::Traced { guest, onward },
            Err(what) => FrontReply::Refused(WireRefusal::new(RefusalKind::Other, what)),
        }
    }

    async fn sought(
        &self,
        uuid: Uuid,
        name: &PeerText,
        since: Since,
    ) -> Result<(Option<FoundGuest>, Option<Onward>), String> {
        let guests = self.state().live_guests();
        let guests =
            guests.map_err(|error| format!("cannot tell which guests are here: {error:#}"))?;
        let is_sought = |guest: &&GuestDir| {
            guest.name().as_str() == name.as_str() || self.uuid_of(guest) == Some(uuid)
        };
        let mut sought = Vec::new();
        for guest in guests.iter().filter(is_sought) {
            sought.push(self.found(guest).await);
        }
        // A guest that may run counts before one that waits, and before one that is no longer here.
        let found = sought.into_iter().max_by_key(|it| (it.is_owned, it.uuid == uuid));
        if found.as_ref().is_some_and(|it| it.is_owned) {
            return Ok((found, None));
        }
        let past = tokio::task::block_in_place(|| self.past(uuid, name.as_str(), since))
            .map_err(|error| format!("cannot tell whether the guest was here: {error}"))?;
        Ok(past.map_or((found, None), |past| (Some(past.guest), past.onward)))
    }

    /// Returns how the guest `uuid` was last on this host, which no longer has it, by the records
    /// of its migrations.
    ///
    /// # Errors
    /// If the records cannot be read, or one that may be its own: it was called `name`.
    fn past(&self, uuid: Uuid, name: &str, since: Since) -> Result<Option<Past>, RecordError> {
        Ok(past(&self.records().of(name, Some(uuid))?, uuid, since))
    }

    /// Returns the state of a guest about which another host asks. A guest that does not answer may
    /// run.
    async fn found(&self, guest: &GuestDir) -> FoundGuest {
        let (state, is_owned) = match inventory::query_guest(guest.clone()).await.answer {
            Ok(GuestView { info, .. }) => {
                let is_owned = is_owned(info.state) || self.is_taking_over(guest.name());
                (info.state.as_str(), is_owned)
            }
            Err(_) => ("silent", true),
        };
        let name = PeerText::new(guest.name().as_str());
        let uuid = self.uuid_of(guest).unwrap_or_default();
        FoundGuest { uuid, name, state: state.into(), is_owned }
    }

    /// Whether an arriving guest has been handed over and is about to run. If its record cannot be
    /// read, it may be.
    fn is_taking_over(&self, guest: &GuestName) -> bool {
        let is_taking = |record: Record| {
            let Side::Destination { state, .. } = record.side else { return false };
            matches!(
                state,
                DestinationState::Taking | DestinationState::Fetching | DestinationState::Running
            )
        };
        tokio::task::block_in_place(|| last_migration(self.state(), guest))
            .map_or(true, |last| last.is_some_and(is_taking))
    }

    /// Tells a source that has lost its connection to the destination's process what became of a
    /// migration to this host.
    pub(crate) fn resolve(
        &self,
        (peer, guest): (SocketAddr, Option<Uuid>),
        migration: MigrationId,
        token: &Token,
        decision: Decision,
    ) -> FrontReply {
        let reply = tokio::task::block_in_place(|| {
            self.settle_destination(guest, migration, token, decision)
        });
        tracing::info!(%migration, %peer, ?decision, ?reply, "was asked to settle a migration");
        reply
    }

    /// Settles a migration if its process here is dead or silent; otherwise refers the source to
    /// that process. `guest` is the guest whose process asks, which may settle only its own
    /// migrations; `None` if a host asks, which may settle any.
    fn settle_destination(
        &self,
        guest: Option<Uuid>,
        migration: MigrationId,
        token: &Token,
        decision: Decision,
    ) -> FrontReply {
        let _only_writer = self.ledger();
        let record = match self.destination_record(migration, token) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%migration, "cannot read the record of a migration that a source asks about: {error}");
                return FrontReply::Refused(WireRefusal::new(
                    RefusalKind::Other,
                    error.to_string(),
                ));
            }
        };
        let Some(record) = record else {
            return FrontReply::Resolved(answer_for_dead(None, decision).answer);
        };
        if guest.is_some_and(|guest| guest != record.guest_uuid) {
            let what = "the process of a guest may settle migrations of that guest only";
            return FrontReply::Refused(WireRefusal::new(RefusalKind::Other, what));
        }
        let Side::Destination { port, token: expected, .. } = &record.side else {
            return FrontReply::Resolved(answer_for_dead(None, decision).answer);
        };
        if !expected.matches(token) {
            return FrontReply::Refused(WireRefusal::new(
                RefusalKind::Other,
                "wrong token for this migration",
            ));
        }
        let is_silent = liveness::is_silent(&record, unix_ms());
        if !is_silent && !liveness::is_dead(self.state(), &record) {
            return FrontReply::AskProcess { port: *port };
        }
        // The process may have written its record between the first read and the check: read again.
        let Ok(Some(record)) = self.destination_record(migration, token) else {
            return FrontReply::AskProcess { port: *port };
        };
        let Side::Destination { state, .. } = &record.side else {
            return FrontReply::AskProcess { port: *port };
        };
        let dead = answer_for_dead(Some(*state), decision);
        if let Some(state) = dead.record
            && let Err(error) = self.write_destination(&record, state)
        {
            tracing::error!(%migration, "cannot record that the guest's copy is gone: {error}");
            return FrontReply::Refused(WireRefusal::new(RefusalKind::Other, error.to_string()));
        }
        FrontReply::Resolved(dead.answer)
    }

    /// Returns the record of a migration to this host: the one with this token, otherwise any.
    pub(super) fn destination_record(
        &self,
        migration: MigrationId,
        token: &Token,
    ) -> Result<Option<Record>, RecordError> {
        let is_it = |record: &Record| match &record.side {
            Side::Destination { token: expected, .. } => expected.matches(token),
            Side::Source { .. } => false,
        };
        self.records().read(migration, Role::Destination, is_it)
    }

    /// Returns the UUID of a live guest; `None` if it cannot be read.
    fn uuid_of(&self, guest: &GuestDir) -> Option<Uuid> {
        self.state().read_uuid(guest.name()).ok()
    }

    /// Writes the new state of a dead destination durably.
    pub(crate) fn write_destination(
        &self,
        record: &Record,
        next: DestinationState,
    ) -> Result<(), RecordError> {
        let mut record = record.clone();
        if let Side::Destination { state, .. } = &mut record.side {
            *state = next;
        }
        record.updated_unix_ms = unix_ms().max(record.updated_unix_ms);
        self.records().reopen(&record)?.write(&record)
    }
}

fn is_owned(state: GuestState) -> bool {
    matches!(state, GuestState::Running | GuestState::Paused | GuestState::Migrating)
}

/// Converts a guest's description to a request; refuses one that is out of bounds.
fn read_request(guest: &GuestDescription) -> Result<GuestRequest, Refusal> {
    guest.check_bounds().map_err(|refusal| Refusal::Description { what: refusal.to_string() })?;
    let name = guest
        .name
        .parse::<GuestName>()
        .map_err(|error| Refusal::Description { what: error.to_string() })?;
    Ok(GuestRequest {
        name,
        uuid: guest.uuid,
        memory_bytes: guest.layout.bytes(),
        takes: what_it_takes(guest),
        vcpus: u32::from(guest.vcpus),
    })
}

/// Returns the disks that a guest will use. An invalid description has none; the process refuses
/// it.
fn disks(shape: Option<&VmShape>) -> Vec<PathBuf> {
    let disks = shape.into_iter().flat_map(VmShape::disks);
    disks.map(|disk| disk.path().to_owned()).collect()
}

/// Returns where its memory comes from. The process refuses a description that cannot be read, with
/// the reason.
fn what_it_takes(guest: &GuestDescription) -> Takes {
    let shape = VmShape::from_bytes(&guest.config.0);
    Takes::from(shape.map(|shape| shape.memory.huge_pages).unwrap_or_default())
}

/// Returns why `/dev/kvm` cannot be used, if it cannot.
fn kvm_fault() -> Option<String> {
    use std::io::ErrorKind;
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.err().map(|error| match error.kind() {
        ErrorKind::NotFound => {
            "/dev/kvm is not there: enable virtualisation in the firmware and load the module kvm_intel or kvm_amd".to_owned()
        }
        ErrorKind::PermissionDenied => "the node may not open /dev/kvm: add its user to the group kvm".to_owned(),
        _ => format!("/dev/kvm cannot be opened: {error}"),
    })
}

/// Converts a refusal for the source and its operator.
fn for_the_wire(refusal: &Refusal) -> WireRefusal {
    let kind = match refusal {
        Refusal::NameTaken { .. } | Refusal::UuidTaken { .. } => RefusalKind::Taken,
        Refusal::Memory { .. } => RefusalKind::Memory,
        Refusal::Kvm { .. } => RefusalKind::Kvm,
        Refusal::Vcpus { .. } => RefusalKind::Cpu,
        Refusal::Version { .. } => RefusalKind::Version,
        Refusal::Description { .. } => RefusalKind::Guest,
        Refusal::Disk { .. } | Refusal::Process { .. } => RefusalKind::Other,
        Refusal::ShuttingDown | Refusal::TooMany { .. } => RefusalKind::Busy,
    };
    WireRefusal::new(kind, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use migrate::record::SourceState;

    use super::super::liveness::tests::source_record;
    use super::super::service::tests::node;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn unreadable_records_never_report_a_guest_as_absent() {
        let (_folder, node) = node();
        let record = source_record(SourceState::Done, 1);
        node.records().create(&record).unwrap();
        let (web, other) = ((record.guest_uuid, "web"), (Uuid::from_u128(77), "other"));
        let find = |(uuid, name): (Uuid, &'static str)| {
            let (node, name) = (&node, PeerText::new(name));
            async move { node.find(uuid, &name, ([127, 0, 0, 1], 4950).into()).await }
        };
        assert!(matches!(find(web).await, FrontReply::Found(Some(it)) if it.is_owned));

        let place = node.state().place_of_records(&"web".parse().unwrap(), record.guest_uuid);
        std::fs::write(place.join("later.source.json"), "rubbish").unwrap();
        assert!(matches!(find(web).await, FrontReply::Refused(_)));
        assert!(matches!(find((web.0, "other")).await, FrontReply::Refused(_)));
        assert_eq!(find(other).await, FrontReply::Found(None));

        let places = node.state().places_of_records();
        std::fs::remove_dir_all(&places).unwrap();
        std::fs::write(&places, "").unwrap();
        assert!(matches!(find(other).await, FrontReply::Refused(_)));
    }
}
