//! The node as a whole: its state, how it starts, its periodic work, and how it ends.
//!
//! It runs no guest. If it is killed at any time, guests keep running and records stay on disk, and
//! the next node finds both.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use metrics::{Counted, DensityCounted, DensitySample, Exporter, HostMemory, Snapshot};
use migrate::MigrationId;
use migrate::progress::Role;
use migrate::record::{DestinationState, Record, RecordKey, RecordStore, Side};
use tokio::process::Child;
use vmm_core::PciAddress;

use super::admission::{GuestRequest, Takes};
use super::events::HostEvents;
use super::inventory::GuestView;
use super::outcomes::Ledger;
use super::promises::{Expected, Promises};
use super::retention::{self, Fate};
use super::types::{MemoryInfo, NodeFile, NodeInfo};
use super::{inventory, liveness, resolver, scrape};
use crate::address::PortRange;
use crate::api::types::GuestState;
use crate::cli::LogArgs;
use crate::cli::net::{NetAllowed, NetRename};
use crate::clock::unix_ms;
use crate::disk_places::DiskPlaces;
use crate::names::GuestName;
use crate::state_dir::StateDir;
use crate::version::REVISION;

/// The node of this host.
#[derive(Debug)]
pub(crate) struct Node {
    state: StateDir,
    file: NodeFile,
    reserved_bytes: u64,
    /// UDP ports of arriving guests.
    ports: PortRange,
    /// Renames of bridges and taps of arriving guests.
    net_map: Vec<NetRename>,
    /// Bridges and taps that arriving guests may use.
    net_allowed: NetAllowed,
    /// Where arriving guests may have disks.
    disk_places: DiskPlaces,
    /// Devices of this host that guests from other hosts may be given.
    given_devices: Vec<PciAddress>,
    log: LogArgs,
    exporter: Exporter,
    events: HostEvents,
    records: RecordStore,
    ledger: Mutex<Ledger>,
    /// Faults of records in the last pass.
    faults: Mutex<BTreeSet<String>>,
    promises: Arc<Promises>,
    in_doubt: AtomicU64,
    /// When the certificate in use expires, in seconds since 1970; zero if unknown.
    certificate_expiry_unix_s: AtomicU64,
    is_shutting_down: AtomicBool,
}

impl Node {
    /// Creates a node that serves at the addresses in `file`.
    ///
    /// # Errors
    /// If the folder of records or the ledger cannot be read.
    pub(crate) fn new(state: StateDir, file: NodeFile, reserved_bytes: u64) -> Result<Self> {
        let revision = REVISION.unwrap_or("unknown");
        let exporter = Exporter::new(&file.version, revision, SystemTime::now())
            .context("cannot set up metrics")?;
        let records = state.records()?;
        let ledger = Ledger::open(&state.root().join("counted.json"))?;
        Ok(Self {
            state,
            file,
            reserved_bytes,
            ports: PortRange::DEFAULT,
            net_map: Vec::new(),
            net_allowed: NetAllowed::default(),
            disk_places: DiskPlaces::default(),
            given_devices: Vec::new(),
            log: LogArgs::default(),
            exporter,
            events: HostEvents::default(),
            records,
            ledger: Mutex::new(ledger),
            faults: Mutex::default(),
            promises: Arc::default(),
            in_doubt: AtomicU64::new(0),
            certificate_expiry_unix_s: AtomicU64::new(0),
            is_shutting_down: AtomicBool::new(false),
        })
    }

    /// Returns the state folder.
    pub(crate) fn state(&self) -> &StateDir {
        &self.state
    }

    /// Returns the records of migrations.
    pub(crate) fn records(&self) -> &RecordStore {
        &self.records
    }

    /// Returns the counters.
    pub(crate) fn counted(&self) -> &Counted {
        self.exporter.counted()
    }

    /// Returns the counters of memory optimization.
    pub(crate) fn density_counted(&self) -> &Arc<DensityCounted> {
        self.exporter.density()
    }

    /// Returns the guests' events.
    pub(crate) fn events(&self) -> &HostEvents {
        &self.events
    }

    /// Returns the memory promises.
    pub(crate) fn promises(&self) -> &Promises {
        &self.promises
    }

    /// Sets the UDP ports of arriving guests.
    pub(crate) fn with_ports(self, ports: PortRange) -> Self {
        Self { ports, ..self }
    }

    /// Returns the UDP ports of arriving guests.
    pub(crate) fn ports(&self) -> PortRange {
        self.ports
    }

    /// Sets renames of bridges and taps of arriving guests, and which of this host's they may use.
    pub(crate) fn with_networks(self, net_map: Vec<NetRename>, net_allowed: NetAllowed) -> Self {
        Self { net_map, net_allowed, ..self }
    }

    /// Sets where arriving guests may have disks.
    pub(crate) fn with_disk_places(self, disk_places: DiskPlaces) -> Self {
        Self { disk_places, ..self }
    }

    /// Sets which devices of this host guests from other hosts may be given.
    pub(crate) fn with_given_devices(self, given_devices: Vec<PciAddress>) -> Self {
        Self { given_devices, ..self }
    }

    /// Sets how processes that this node starts log.
    pub(crate) fn with_log(self, log: LogArgs) -> Self {
        Self { log, ..self }
    }

    /// Sets when the certificate in use expires, in seconds since 1970.
    pub(crate) fn set_certificate_expiry(&self, unix_s: Option<u64>) {
        self.certificate_expiry_unix_s.store(unix_s.unwrap_or(0), Ordering::Relaxed);
    }

    fn certificate_expiry(&self) -> Option<SystemTime> {
        let unix_s = self.certificate_expiry_unix_s.load(Ordering::Relaxed);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_s)).filter(|_| unix_s != 0)
    }

    /// Returns how processes that this node starts log.
    pub(crate) fn log(&self) -> &LogArgs {
        &self.log
    }

    /// Returns the renames of bridges and taps of arriving guests.
    pub(crate) fn net_map(&self) -> &[NetRename] {
        &self.net_map
    }

    /// Returns which bridges and taps of this host arriving guests may use.
    pub(crate) fn net_allowed(&self) -> &NetAllowed {
        &self.net_allowed
    }

    /// Returns the memory that guests never get, in bytes.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Returns where arriving guests may have disks.
    pub(crate) fn disk_places(&self) -> &DiskPlaces {
        &self.disk_places
    }

    /// Returns which devices of this host guests from other hosts may be given.
    pub(crate) fn given_devices(&self) -> &[PciAddress] {
        &self.given_devices
    }

    /// Returns the address on which migrations arrive.
    pub(crate) fn listen_address(&self) -> SocketAddr {
        self.file.listen
    }

    /// Whether the node has stopped admitting guests.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.is_shutting_down.load(Ordering::Relaxed)
    }

    /// Stops admitting guests, and ends the streams of events.
    pub(crate) fn shut_down(&self) {
        self.is_shutting_down.store(true, Ordering::Relaxed);
        self.events.close();
    }

    /// Checks whether the node can do its work.
    ///
    /// # Errors
    /// If it cannot; the text says why, for the service that monitors it.
    pub(crate) fn health(&self) -> Result<(), String> {
        if self.is_shutting_down() {
            return Err("shutting down".to_owned());
        }
        self.state.live_guests().map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Waits for the process of an arriving guest in the background, so that no zombie is left, and
    /// ends its promise when it exits.
    pub(crate) fn reap(&self, name: GuestName, migration: MigrationId, mut child: Child) {
        let promises = Arc::clone(&self.promises);
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => {
                    tracing::info!(%migration, guest = %name, %status, "the process of a guest that arrived here has ended");
                }
                Err(error) => {
                    tracing::warn!(%migration, guest = %name, %error, "cannot wait for a guest's process");
                }
            }
            promises.release(&name, migration);
        });
    }

    /// Makes one pass over the records, in one thread at a time: counts, closes records of dead
    /// destinations, removes old records, and returns the orphans for the resolver. Failures to
    /// write or remove are logged: they must not hold up a guest.
    ///
    /// # Errors
    /// If the records cannot be listed.
    pub(crate) fn process_records(&self) -> Result<Vec<Record>> {
        let mut ledger = self.ledger();
        let (records, dead, mut faults) = self.read_records()?;
        let is_dead = |record: &Record| dead.contains(&record.key());
        self.discard_dead_copies(&records, is_dead);
        self.keep_promises(&records);
        let orphans: Vec<Record> =
            resolver::orphans(&records, is_dead).into_iter().cloned().collect();
        self.in_doubt.store(orphans.len() as u64, Ordering::Relaxed);
        if let Err(error) = ledger.count(&records, self.counted(), is_dead) {
            faults.insert(format!("cannot save which migrations have been counted: {error:#}"));
        }
        let is_gone = |record: &Record| liveness::is_dead(&self.state, record);
        let definitions = self.state.definitions();
        // In doubt the guest counts as defined: one record too many does no harm.
        let is_defined = |guest: &str| {
            guest.parse().is_ok_and(|name| !matches!(definitions.find(&name), Ok(None)))
        };
        let open = self.state.departures().settle_by(&records, &mut faults);
        let outdated = retention::outdated(&records, unix_ms(), is_defined, is_gone);
        for (record, fate) in outdated.into_iter().filter(|(it, _)| !open.contains(&it.migration)) {
            let gone = match fate {
                Fate::Removed => self.records.remove(record),
                Fate::Retired => self.records.retire(record),
            };
            if let Err(error) = gone {
                faults.insert(format!("cannot remove an old record of a migration: {error}"));
            }
        }
        if let Err(error) = self.records.remove_unfinished(SystemTime::now()) {
            faults.insert(format!("cannot remove what a crash has left: {error}"));
        }
        self.complain_once(faults);
        Ok(orphans)
    }

    /// Reads all records. Also returns which of those that are not final have a dead process, and
    /// the faults of others.
    fn read_records(&self) -> Result<(Vec<Record>, BTreeSet<RecordKey>, BTreeSet<String>)> {
        let (records, faults) = self.records.list()?;
        let damage = |fault| format!("a migration's record cannot be read: {fault}");
        let faults = faults.iter().map(damage).collect();
        let is_final = |record: &Record| record.is_settled() && record.report.is_some();
        let open = records.iter().filter(|record| !is_final(record));
        let dead = open.filter(|record| liveness::is_dead(&self.state, record));
        let dead: BTreeSet<RecordKey> = dead.map(Record::key).collect();
        if dead.is_empty() {
            return Ok((records, dead, faults));
        }
        // A process may write its record and die between the read and the check whether it lives.
        // What counts is a read after its death.
        Ok((self.records.list()?.0, dead, faults))
    }

    /// Logs the faults of records, each when it first occurs.
    fn complain_once(&self, now: BTreeSet<String>) {
        let mut known = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in now.difference(&known) {
            tracing::warn!("{fault}");
        }
        *known = now;
    }

    fn discard_dead_copies(&self, records: &[Record], is_dead: impl Fn(&Record) -> bool) {
        for (record, next) in resolver::dead_copies(records, is_dead) {
            let (migration, guest) = (record.migration, &record.guest);
            match self.write_destination(record, next) {
                Ok(()) => tracing::info!(
                    %migration, guest,
                    "the process of an arriving guest died before it ran: its copy is gone"
                ),
                Err(error) => tracing::error!(
                    %migration, guest,
                    "cannot record that an arriving guest is gone: {error}"
                ),
            }
        }
    }

    /// Locks the ledger. Only the thread that holds it writes records of dead processes.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the promises of guests whose process has exited. The node notices an exit a little
    /// later than others do, and a source that has noticed it may bring the guest back at once.
    pub(crate) fn forget_the_gone(&self) {
        for Expected { name, migration, pid } in self.promises.expected() {
            if pid.is_some_and(|pid| liveness::is_gone(&self.state, &name, pid)) {
                self.promises.release(&name, migration);
            }
        }
    }

    /// Ends the promises of guests that have arrived or failed to arrive.
    fn keep_promises(&self, records: &[Record]) {
        for Expected { name, migration, .. } in self.promises.expected() {
            let is_its = |record: &&Record| {
                record.migration == migration
                    && record.role() == Role::Destination
                    && record.guest == name.as_str()
            };
            let is_expected = |record: &Record| match &record.side {
                Side::Destination { state, .. } => {
                    matches!(state, DestinationState::Loading | DestinationState::Ready)
                }
                Side::Source { .. } => false,
            };
            if records.iter().find(is_its).is_some_and(|record| !is_expected(record)) {
                self.promises.release(&name, migration);
            }
        }
        self.forget_the_gone();
    }

    /// Restores the promises for the guests that are arriving: those of an earlier node ended with
    /// it.
    ///
    /// # Errors
    /// If the guests' folder cannot be read.
    pub(crate) async fn renew_promises(&self) -> Result<()> {
        for sighting in inventory::query_guests(&self.state).await? {
            let Ok(GuestView { info, .. }) = sighting.answer else { continue };
            let (GuestState::Incoming, Some(migration)) = (info.state, info.migration_id) else {
                continue;
            };
            let guest = GuestRequest {
                name: info.name,
                uuid: info.uuid,
                memory_bytes: info.memory_bytes,
                takes: Takes::from(info.backing.huge_pages()),
                vcpus: u32::from(info.vcpus),
            };
            self.promises.restore(&guest, MigrationId(migration), info.pid);
        }
        Ok(())
    }

    /// Renders the page for Prometheus, with the sample of memory optimization.
    ///
    /// # Errors
    /// If the guests' folder or the records cannot be read.
    pub(crate) async fn metrics_page(&self, density: DensitySample) -> Result<String> {
        let begin = Instant::now();
        // Blocking: it reads and writes files, and a scrape wants the latest outcome.
        let departed = tokio::task::block_in_place(|| {
            self.process_records()?;
            let (records, _damaged) = self.records.list()?;
            anyhow::Ok(scrape::departed(&records, unix_ms()))
        })?;
        let sightings = inventory::query_guests(&self.state).await?;
        let (guests, guests_unreachable) = scrape::samples(&sightings);
        let host = self.memory().map(|memory| HostMemory {
            available_bytes: memory.available_bytes,
            reserved_bytes: memory.reserved_bytes,
            promised_bytes: memory.promised_bytes,
        });
        let snapshot = Snapshot {
            scrape_duration: begin.elapsed(),
            guests,
            departed,
            guests_unreachable,
            migrations_in_doubt: self.in_doubt.load(Ordering::Relaxed),
            certificate_expiry: self.certificate_expiry(),
            host,
            density,
        };
        Ok(self.exporter.render(&snapshot)?)
    }

    fn memory(&self) -> Option<MemoryInfo> {
        let host = memopt::observe::host_memory();
        let host = host.inspect_err(|error| tracing::warn!("{error}")).ok()?;
        Some(MemoryInfo {
            total_bytes: host.total_bytes,
            available_bytes: host.available_bytes,
            reserved_bytes: self.reserved_bytes,
            promised_bytes: self.promises.outstanding_bytes(),
        })
    }

    /// Returns the answer to `GET /v1/node`.
    ///
    /// # Errors
    /// If the guests' folder cannot be read.
    pub(crate) fn info(&self) -> Result<NodeInfo> {
        Ok(NodeInfo {
            node: self.file.clone(),
            memory: self.memory(),
            guests: self.state.live_guests()?.len(),
            arriving: self.promises.count(),
            migrations_in_doubt: self.in_doubt.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use migrate::protocol::front::FrontReply;
    use migrate::record::SourceState;
    use migrate::text::PeerText;

    use super::super::liveness::tests::source_record;
    use super::*;

    /// Creates a node in a temporary folder.
    pub(crate) fn node() -> (tempfile::TempDir, Node) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        state.create().unwrap();
        let address = ([127, 0, 0, 1], 4950).into();
        let file = NodeFile {
            pid: 1,
            version: "1".to_owned(),
            listen: address,
            metrics: address,
            started_unix_ms: 0,
        };
        (folder, Node::new(state, file, 0).unwrap())
    }

    #[test]
    fn a_record_with_the_id_of_another_guests_migration_changes_nothing_of_it() {
        let (_folder, node) = node();
        // One record of a live process, and one of a dead process.
        let web = source_record(SourceState::Committed, 1);
        let _live = node.state().guest(&web.guest.parse().unwrap()).claim().unwrap();
        let forged = Record {
            guest: "h".to_owned(),
            guest_uuid: uuid::Uuid::from_u128(6),
            started_unix_ms: u64::MAX,
            ..web.clone()
        };
        node.records().create(&web).unwrap();
        node.records().create(&forged).unwrap();
        assert_eq!(node.process_records().unwrap(), std::slice::from_ref(&forged));
        let started = &node.counted().migrations_started;
        assert!((started.get(&(Role::Source,)) - 2.0).abs() < f64::EPSILON);
        let web_is = node.records().read(web.migration, Role::Source, |it| it.guest == "web");
        assert_eq!(web_is.unwrap(), Some(web));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_that_moved_on_long_ago_is_still_reported_as_having_been_here() {
        let (_folder, node) = node();
        let moved_on = source_record(SourceState::Done, 1);
        node.records().create(&moved_on).unwrap();
        node.process_records().unwrap();
        assert_eq!(node.records().list().unwrap().0, []);
        let (uuid, name) = (moved_on.guest_uuid, PeerText::new("web"));
        let FrontReply::Traced { guest, onward } =
            node.trace(uuid, &name, MigrationId::random()).await
        else {
            panic!("it is refused")
        };
        assert_eq!(guest.unwrap().destination(), Some("host-b:4950"));
        assert_eq!(onward.unwrap().migration, moved_on.migration);
    }

    #[test]
    fn an_orphan_is_found_and_an_old_record_removed_though_the_ledger_cannot_be_written() {
        let (folder, node) = node();
        let (orphan, old) =
            (source_record(SourceState::Committed, 1), source_record(SourceState::Done, 1));
        node.records().create(&orphan).unwrap();
        node.records().create(&old).unwrap();
        std::fs::create_dir_all(folder.path().join("counted.json/in the way")).unwrap();

        let orphans = node.process_records().unwrap();

        assert_eq!(orphans, [orphan]);
        assert_eq!(node.records().list().unwrap().0, orphans);
    }
}
