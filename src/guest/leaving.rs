//! A departing guest: starts the source's session, and acts on its reports.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrate::progress::Role;
use migrate::protocol::MAX_LINKS;
use migrate::quic::Tls;
use migrate::quic::transport::CONNECTIONS_MAX;
use migrate::record::{Record, Side, SourceState};
use migrate::report::Outcome;
use migrate::session::{SourceSession, StartError, start_source};
use migrate::{Limits, MigrationId, Phase, Report, SourceGuest, Throttle};
use vmm_core::with_short_slices;

use super::disks::{Departing, Disks};
use super::ending::Ending;
use super::estimating::Terms;
use super::machine::SharedMachine;
use super::process::GuestProcess;
use super::session::MigrationSession;
use super::workload;
use crate::address::Destination;
use crate::api::migration::{MigrationRequest, MigrationStatus};
use crate::api::{ApiError, Reason};
use crate::departures;

/// How long a guest that stays waits until the destination has been told, before it can migrate
/// again. If the destination is unreachable, the session in the background or the node tells it
/// later.
const NOTIFY_PATIENCE: Duration = Duration::from_secs(5);

/// An outgoing migration, from its start until nothing of it is left.
#[derive(Debug, Clone)]
pub(crate) struct Departure {
    session: MigrationSession,
    destination: String,
    guest: Arc<Departing>,
    /// The records of the disks that it writes.
    disks: Vec<departures::Departure>,
    /// Whether the guest ran when the migration started.
    ran: bool,
}

impl Departure {
    /// Starts a migration of the guest of `process`.
    ///
    /// # Errors
    /// If the request is invalid, or this host has no place for records.
    pub(crate) fn start(
        process: &Arc<GuestProcess>,
        request: &MigrationRequest,
    ) -> Result<Self, ApiError> {
        let mut plan = session(request)?;
        let machine = process
            .machine()
            .ok_or_else(|| ApiError::new(Reason::WrongState, "the guest has not arrived yet"))?;
        plan.estimate = process.last_estimate().take_for(&Terms::of(request), Instant::now());
        let (guest, tls) = departing(machine, request, plan.migration, disks_of(request))?;
        let records = process.records();
        // If KVM cannot stop the survey's log, the start of the migration's log replaces it.
        process.surveys().call_off(machine);
        workload::begin_migration(machine);
        // Recorded before anything else: a power cut leaves no time for it.
        let disks = guest.departures(process.name());
        let notes = process.state().departures();
        let forget = || {
            for error in disks.iter().filter_map(|disks| notes.forget(disks).err()) {
                tracing::warn!("{error:#}");
            }
        };
        let noted = disks.iter().try_for_each(|disks| notes.write(disks));
        noted.inspect_err(|_| forget()).map_err(ApiError::failed)?;
        let guest = Arc::new(guest);
        let ran = guest.is_running();
        let leaving: Arc<dyn SourceGuest> = guest.clone();
        let started = with_short_slices(|| start_source(plan, leaving, tls, records));
        let started = started.map_err(StartError::Thread).flatten().inspect_err(|_| forget());
        let session = MigrationSession::new(started.map_err(ApiError::failed)?);
        let destination = request.destination.clone();
        let departure = Self { session, destination, guest, disks, ran };
        let shared = departure.clone();
        departure.session.report_events(process, Role::Source, move || shared.status());
        process.runtime().spawn(departure.clone().conclude(Arc::clone(process)));
        Ok(departure)
    }

    /// The part that both directions share.
    pub(crate) fn session(&self) -> &MigrationSession {
        &self.session
    }

    /// The destination, as the user wrote it.
    pub(crate) fn destination(&self) -> &str {
        &self.destination
    }

    /// Progress and report of the migration. A guest that stays is reported only when it can be
    /// migrated again.
    pub(crate) fn status(&self) -> MigrationStatus {
        let report = self.session.report();
        MigrationStatus {
            progress: Some(self.session.progress()),
            report: report.filter(|report| report.outcome != Outcome::StayedAtSource),
        }
    }

    /// Whether the guest runs at its destination and needs memory from here.
    pub(crate) fn is_serving(&self) -> bool {
        self.session.report().is_none() && self.session.progress().phase == Phase::Postcopy
    }

    /// Tells the session that the guest has ended, on its own or with its process. That ends the
    /// migration, unless the guest has been handed over.
    pub(crate) fn guest_stopped(&self, how: &str) {
        self.session.handle().guest_stopped(how);
    }

    /// Refuses to run a guest in doubt again if the destination may have run it on a block device:
    /// this host cannot know whether another one wrote the device.
    ///
    /// # Errors
    /// If there is such a device, and the migration is committed, or its record does not say that
    /// it is not.
    pub(crate) fn expect_unwritten_disks(&self, process: &GuestProcess) -> Result<(), ApiError> {
        let Some(device) = self.guest.written_devices().next() else { return Ok(()) };
        let record = self.session.record(process, Role::Source);
        let is_committed = record.map_or(true, |record| !record.is_some_and(|it| is_ours(&it)));
        if self.session.doubt().is_none() || !is_committed {
            return Ok(());
        }
        let (name, device) = (process.name(), device.path().display());
        let text = format!(
            "{name} may have run at the destination and written its block device {device}, and this \
             host cannot tell: the memory of the copy here would not match it, and data would be \
             lost. If you are sure that it did not run there: `lighter migrate {name} --resolve run \
             --unsafe`; otherwise make sure that the destination is off, discard this copy \
             (`--resolve discard`), and boot the guest from its disk"
        );
        Err(ApiError::new(Reason::WrongState, text))
    }

    /// Waits for the last report.
    async fn outcome(&self) -> Option<Report> {
        let mut reports = self.session.handle().report();
        let stays = async {
            // In both cases, only the destination is left to be told.
            let is_over =
                |report: &Report| matches!(report.outcome, Outcome::StayedAtSource | Outcome::Lost);
            let report = reports.wait_for(|report| report.as_ref().is_some_and(is_over)).await;
            let report = report.ok().and_then(|report| report.clone());
            tokio::time::sleep(NOTIFY_PATIENCE).await;
            report
        };
        tokio::select! {
            report = self.session.handle().settled() => report,
            Some(report) = stays => Some(report),
        }
    }

    /// Waits for the end of the migration and applies its outcome to the guest's process.
    async fn conclude(self, process: Arc<GuestProcess>) {
        let Some(report) = self.outcome().await else {
            tracing::error!(
                migration = %self.session.id(),
                "the migration ended without a report, by a bug in lighter; report it with this log"
            );
            return tokio::task::block_in_place(|| self.broke_down(&process));
        };
        let status = MigrationStatus {
            progress: Some(self.session.progress()),
            report: Some(report.clone()),
        };
        self.note_disks(&process, report.outcome);
        if report.outcome != Outcome::StayedAtSource {
            process.events().migration(&status);
        }
        match report.outcome {
            Outcome::StayedAtSource => {
                process.conclude(self.session.id(), &status);
                self.watch_for_a_second_copy(&report, &process).await;
            }
            Outcome::Migrated => process.end(Ending::Moved { destination: self.destination }),
            // In doubt, but nothing is left to do here: the node continues with the record, and
            // this copy must not run.
            Outcome::Lost | Outcome::InDoubt => {
                let cause = report
                    .error
                    .map_or_else(|| "no reason was given".to_owned(), |error| error.message);
                process.end(Ending::Discarded { cause });
            }
        }
    }

    /// Records for good which host has the guest's disks, once that is certain.
    fn note_disks(&self, process: &GuestProcess, outcome: Outcome) {
        let notes = process.state().departures();
        for disks in &self.disks {
            let noted = match outcome {
                Outcome::StayedAtSource => notes.give_back(disks),
                Outcome::Migrated => notes.settle(disks),
                // The record says who has them: a lost guest may have ended here before it was
                // handed over.
                Outcome::Lost | Outcome::InDoubt => Ok(()),
            };
            if let Err(error) = noted {
                let name = process.name();
                tracing::warn!("cannot record whether the disks of {name} have moved: {error:#}");
            }
        }
    }

    /// Waits for a destination that could not be told that the guest stays. It may have been
    /// ordered to run its copy; that shows only when it is reached.
    async fn watch_for_a_second_copy(&self, known: &Report, process: &GuestProcess) {
        let Some(last) = self.session.handle().settled().await else { return };
        let is_last = |process: &GuestProcess| {
            let id = Some(self.session.id());
            process.last_migration().as_ref().map(|(id, _)| *id) == id
        };
        if last.error != known.error {
            let error = last.error.as_ref().map_or("", |error| error.message.as_str());
            tracing::error!(migration = %self.session.id(), "{}: {error}", process.name());
            let progress = Some(self.session.progress());
            if is_last(process) {
                let status = MigrationStatus { progress, report: Some(last) };
                process.conclude(self.session.id(), &status);
            }
        }
    }

    /// Handles a session that is gone without a report. The record says which host has the guest.
    /// Unless that is certainly this host, the copy here must not run again. The node continues
    /// with the record.
    fn broke_down(&self, process: &GuestProcess) {
        let is_sent = self.session.handle().has_committed();
        let stays = match self.session.record(process, Role::Source) {
            Ok(None) => true,
            Ok(Some(record)) if is_ours(&record) => {
                if let Err(error) = MigrationSession::disown(process, record) {
                    let name = process.name();
                    tracing::error!(%error, "the destination of {name} is not told that it stays");
                }
                true
            }
            // The commit is recorded, but not sent.
            Ok(Some(record)) if !is_sent => {
                MigrationSession::disown(process, undecided(record)).is_ok()
            }
            Ok(Some(_)) | Err(_) => false,
        };
        if !stays {
            let cause = "its migration failed by a bug in lighter after the decision to hand it over; the node settles \
                         which host has it";
            return process.end(Ending::Discarded { cause: cause.to_owned() });
        }
        self.take_back(process);
    }

    /// Lets the guest continue as before, whatever its migration has left undone.
    fn take_back(&self, process: &GuestProcess) {
        if let Err(error) = self.guest.throttle(Throttle::default()) {
            tracing::error!(%error, "after a migration that broke down");
        }
        let resumed = if self.ran { self.guest.resume() } else { Ok(()) };
        if let Err(error) = &resumed {
            tracing::error!(%error, "the guest is still paused after its migration failed: `lighter resume` it");
        }
        if let Err(error) = self.guest.stop_dirty_log() {
            tracing::warn!(%error, "the dirty log stays on");
        }
        self.note_disks(process, Outcome::StayedAtSource);
        let progress = self.session.progress();
        let report = Report::of_a_breakdown(process.name().as_str(), &progress, resumed);
        let status = MigrationStatus { progress: Some(progress), report: Some(report) };
        process.conclude(self.session.id(), &status);
    }
}

/// Whether the guest still belongs to the source.
fn is_ours(record: &Record) -> bool {
    matches!(record.side, Side::Source { state: SourceState::Undecided | SourceState::Aborted, .. })
}

/// The record without its commit, which was not sent.
fn undecided(mut record: Record) -> Record {
    if let Side::Source { state, .. } = &mut record.side {
        *state = SourceState::Undecided;
    }
    record
}

/// What the request wants to happen to the disks.
fn disks_of(request: &MigrationRequest) -> Disks<'_> {
    Disks { copied: request.copy_disks.as_ref(), are_vouched: request.unproven_disks }
}

/// Builds what `request` has the guest of `machine` leave with: itself with its `disks`, and the
/// identity of its process.
///
/// # Errors
/// If the request is invalid, or does not fit the guest.
pub(super) fn departing(
    machine: &SharedMachine,
    request: &MigrationRequest,
    migration: MigrationId,
    disks: Disks<'_>,
) -> Result<(Departing, Tls), ApiError> {
    let bad = |error: String| ApiError::new(Reason::BadRequest, error);
    let guest = Departing::new(Arc::clone(machine), &request.destination, migration, disks);
    let tls = Tls::new(&request.identity).map_err(|error| bad(error.to_string()));
    Ok((guest.map_err(bad)?, tls?))
}

/// Builds the session's parameters from the request.
///
/// # Errors
/// If the request is invalid.
pub(super) fn session(request: &MigrationRequest) -> Result<SourceSession, ApiError> {
    let bad = |text: &str| Err(ApiError::new(Reason::BadRequest, text));
    let destination = Destination::parse(&request.destination);
    let destination =
        destination.map_err(|error| ApiError::new(Reason::BadRequest, format!("{error:#}")))?;
    if request.timeout_ms == 0 || request.downtime_ms_max == 0 {
        return bad("a migration needs some time: give a downtime and a time-out above zero");
    }
    if request.raised_downtime_ms_max.is_some_and(|max| max < request.downtime_ms_max) {
        return bad(
            "the downtime limit is not raised to less than it is: give --downtime-max at least --downtime",
        );
    }
    if request.bandwidth_bytes_per_s_max == Some(0) {
        return bad("a migration needs some bandwidth: omit the limit for none");
    }
    if request.connections.is_some_and(|count| !(1..=CONNECTIONS_MAX).contains(&count)) {
        return bad("a migration has 1 to 16 connections");
    }
    if let Some(wrong) = wrong_links(request) {
        return bad(wrong);
    }
    // The node is asked on the first link on which it answers.
    let on_link = |address: &IpAddr| SocketAddr::new(*address, destination.port);
    let addresses = match &request.via[..] {
        [] => request.addresses.clone(),
        links => links.iter().map(on_link).collect(),
    };
    Ok(SourceSession {
        migration: MigrationId::random(),
        host: destination.host,
        port: destination.port,
        addresses,
        server_name: request.tls_name.clone(),
        limits: Limits {
            downtime: Duration::from_millis(request.downtime_ms_max),
            downtime_max: request.raised_downtime_ms_max.map(Duration::from_millis),
            total: Some(Duration::from_millis(request.timeout_ms)),
            on_stall: request.on_stall.unwrap_or_default(),
            ..Limits::default()
        },
        bandwidth: request.bandwidth_bytes_per_s_max,
        compression: request.compression,
        connections: request.connections.map(u16::from),
        links: request.via.clone(),
        node_port: request.node_port,
        estimate: None,
    })
}

/// Returns what is wrong with the links of the request, if anything is.
fn wrong_links(request: &MigrationRequest) -> Option<&'static str> {
    let via = &request.via;
    let repeats = |(place, address)| via[..place].contains(address);
    if via.len() > MAX_LINKS {
        return Some("a migration uses at most four links: give fewer addresses with --via");
    }
    if via.iter().enumerate().any(repeats) {
        return Some("an address is given twice with --via: give one on each network");
    }
    if !via.is_empty() && request.connections.is_some() {
        return Some("each link has one connection: give either --via or --connections");
    }
    None
}

#[cfg(test)]
mod tests {
    use migrate::quic::Identity;

    use super::*;

    fn request_to(destination: &str) -> MigrationRequest {
        let nothing = String::new;
        let identity =
            Identity { ca_pem: nothing(), cert_pem: nothing(), key_pem: nothing(), crl_pem: None };
        MigrationRequest::to(destination.to_owned(), identity)
    }

    fn link(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn a_request_becomes_a_session_with_its_limits() {
        let mut request = request_to("host-b:77");
        request.downtime_ms_max = 50;
        request.raised_downtime_ms_max = Some(400);
        request.connections = Some(4);
        let session = session(&request).unwrap();
        assert_eq!((session.host.as_str(), session.port), ("host-b", 77));
        assert_eq!(session.limits.downtime, Duration::from_millis(50));
        assert_eq!(session.limits.downtime_max, Some(Duration::from_millis(400)));
        assert_eq!(session.connections, Some(4));
    }

    #[test]
    fn links_are_where_the_node_is_asked() {
        let request = MigrationRequest { via: vec![link(1), link(2)], ..request_to("host-b:77") };
        let session = session(&request).unwrap();
        assert_eq!(session.links, request.via);
        assert_eq!(session.addresses, [(link(1), 77).into(), (link(2), 77).into()]);
    }

    #[test]
    fn invalid_requests_are_refused_as_such() {
        let request = request_to("host-b");
        for wrong in [
            request_to(""),
            MigrationRequest { timeout_ms: 0, ..request.clone() },
            MigrationRequest { raised_downtime_ms_max: Some(299), ..request.clone() },
            MigrationRequest { bandwidth_bytes_per_s_max: Some(0), ..request.clone() },
            MigrationRequest { connections: Some(0), ..request.clone() },
            MigrationRequest { via: vec![link(1), link(2), link(1)], ..request.clone() },
            MigrationRequest { via: (1..=5).map(link).collect(), ..request.clone() },
            MigrationRequest { via: vec![link(1)], connections: Some(1), ..request },
        ] {
            assert_eq!(session(&wrong).unwrap_err().reason, Reason::BadRequest, "{wrong:?}");
        }
    }
}
