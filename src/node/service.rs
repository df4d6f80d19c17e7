//! The node as a whole: what it holds, how it starts, what it does again and again, and how it
//! ends.
//!
//! It holds no guest. Killed at any moment, it leaves guests running and records on disk, and the
//! next one finds both.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use metrics::{Counted, DensityCounted, DensitySample, Exporter, HostMemory, Snapshot};
use migrate::MigrationId;
use migrate::progress::Role;
use migrate::record::{DestinationState, Record, RecordKey, RecordStore, Side};
use tokio::process::Child;

use super::admission::{GuestRequest, Takes};
use super::events::HostEvents;
use super::inventory::GuestView;
use super::outcomes::Ledger;
use super::promises::{Expected, Promises};
use super::retention::{self, Fate};
use super::types::{MemoryInfo, NodeFile, NodeInfo};
use super::{inventory, liveness, resolver, scrape};
use crate::api::types::GuestState;
use crate::cli::LogArgs;
use crate::cli::net::{NetAllowed, NetRename};
use crate::clock::unix_ms;
use crate::disk_places::DiskPlaces;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// The node of this host.
#[derive(Debug)]
pub(crate) struct Node {
    state: StateDir,
    file: NodeFile,
    reserved_bytes: u64,
    /// What bridges and taps of arriving guests are called here.
    net_map: Vec<NetRename>,
    /// Those of them that arriving guests may use.
    net_allowed: NetAllowed,
    /// Where disks may be made that come with arriving guests.
    disk_places: DiskPlaces,
    log: LogArgs,
    exporter: Exporter,
    events: HostEvents,
    records: RecordStore,
    ledger: Mutex<Ledger>,
    /// What was wrong with records at the last look.
    faults: Mutex<BTreeSet<String>>,
    promises: Arc<Promises>,
    in_doubt: AtomicU64,
    is_shutting_down: AtomicBool,
}

impl Node {
    /// A node that serves at the addresses in `file`.
    ///
    /// # Errors
    /// The folder of records or the ledger cannot be read.
    pub(crate) fn new(state: StateDir, file: NodeFile, reserved_bytes: u64) -> Result<Self> {
        let revision = option_env!("LIGHTER_REVISION").unwrap_or("unknown");
        let exporter = Exporter::new(&file.version, revision, SystemTime::now())
            .context("cannot set up metrics")?;
        let records = state.records()?;
        let ledger = Ledger::open(&state.root().join("counted.json"))?;
        Ok(Self {
            state,
            file,
            reserved_bytes,
            net_map: Vec::new(),
            net_allowed: NetAllowed::default(),
            disk_places: DiskPlaces::default(),
            log: LogArgs::default(),
            exporter,
            events: HostEvents::default(),
            records,
            ledger: Mutex::new(ledger),
            faults: Mutex::default(),
            promises: Arc::default(),
            in_doubt: AtomicU64::new(0),
            is_shutting_down: AtomicBool::new(false),
        })
    }

    /// The state folder.
    pub(crate) fn state(&self) -> &StateDir {
        &self.state
    }

    /// The records of migrations.
    pub(crate) fn records(&self) -> &RecordStore {
        &self.records
    }

    /// The counters.
    pub(crate) fn counted(&self) -> &Counted {
        self.exporter.counted()
    }

    /// The counters of memory optimization.
    pub(crate) fn density_counted(&self) -> &Arc<DensityCounted> {
        self.exporter.density()
    }

    /// What happens to the guests.
    pub(crate) fn events(&self) -> &HostEvents {
        &self.events
    }

    /// Memory that is promised.
    pub(crate) fn promises(&self) -> &Promises {
        &self.promises
    }

    /// The same node, with other names for bridges and taps of arriving guests, and those that they
    /// may use.
    pub(crate) fn with_networks(self, net_map: Vec<NetRename>, net_allowed: NetAllowed) -> Self {
        Self { net_map, net_allowed, ..self }
    }

    /// Arriving guests may have disks there.
    pub(crate) fn with_disk_places(self, disk_places: DiskPlaces) -> Self {
        Self { disk_places, ..self }
    }

    /// Processes that this node starts log as it does.
    pub(crate) fn with_log(self, log: LogArgs) -> Self {
        Self { log, ..self }
    }

    /// How processes that this node starts log.
    pub(crate) fn log(&self) -> &LogArgs {
        &self.log
    }

    /// What bridges and taps of arriving guests are called here.
    pub(crate) fn net_map(&self) -> &[NetRename] {
        &self.net_map
    }

    /// Which bridges and taps of this host arriving guests may use.
    pub(crate) fn net_allowed(&self) -> &NetAllowed {
        &self.net_allowed
    }

    /// Memory that is left to the host, in bytes.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Where guests that arrive may have disks.
    pub(crate) fn disk_places(&self) -> &DiskPlaces {
        &self.disk_places
    }

    /// Where migrations arrive.
    pub(crate) fn listen_address(&self) -> SocketAddr {
        self.file.listen
    }

    /// Whether the node admits nobody any more.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.is_shutting_down.load(Ordering::Relaxed)
    }

    /// From now on nobody is admitted, and nothing told of what happens to guests.
    pub(crate) fn shut_down(&self) {
        self.is_shutting_down.store(true, Ordering::Relaxed);
        self.events.close();
    }

    /// Whether the node can do its work.
    ///
    /// # Errors
    /// Why not, for whoever watches it.
    pub(crate) fn health(&self) -> Result<(), String> {
        if self.is_shutting_down() {
            return Err("shutting down".to_owned());
        }
        self.state.live_guests().map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Waits for the process of an arriving guest in the background, so that no zombie is left, and
    /// takes its promise back when it ends.
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

    /// One look through the records, by one thread at a time: counts, closes what is dead, removes
    /// what is old, and returns the orphans, for the resolver. What cannot be written or removed is
    /// told in the log: a guest must not wait for it.
    ///
    /// # Errors
    /// The records cannot be listed.
    pub(crate) fn look_through_records(&self) -> Result<Vec<Record>> {
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
        // In doubt it is: a record more does no harm.
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

    /// All records, which of those that their process may still write to have none any more, and
    /// what is wrong with others.
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
        // A process may write its record and die between the reading of it and the look whether it
        // lives. What counts is what is read after its death.
        Ok((self.records.list()?.0, dead, faults))
    }

    /// Logs what is wrong with records, each when it is first seen.
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

    /// The ledger; whoever holds it is the only one to write records of dead processes.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes promises back from guests whose process has ended. The node hears of that a little
    /// later than others can see it, and whoever has seen it may bring the guest back at once.
    pub(crate) fn forget_the_gone(&self) {
        for Expected { name, migration, pid } in self.promises.expected() {
            if pid.is_some_and(|pid| liveness::is_gone(&self.state, &name, pid)) {
                self.promises.release(&name, migration);
            }
        }
    }

    /// Takes promises back from guests that have arrived or failed to.
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

    /// Promises memory anew to the guests that are on their way here: what an earlier node had
    /// promised ended with it.
    ///
    /// # Errors
    /// The guests' folder cannot be read.
    pub(crate) async fn renew_promises(&self) -> Result<()> {
        for sighting in inventory::look(&self.state).await? {
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

    /// The page for Prometheus, with what memory optimization has to say.
    ///
    /// # Errors
    /// The guests' folder or the records cannot be read.
    pub(crate) async fn metrics_page(&self, density: DensitySample) -> Result<String> {
        let begin = Instant::now();
        // Files are read and written here, and a scrape wants the latest outcome.
        let departed = tokio::task::block_in_place(|| {
            self.look_through_records()?;
            let (records, _damaged) = self.records.list()?;
            anyhow::Ok(scrape::departed(&records, unix_ms()))
        })?;
        let sightings = inventory::look(&self.state).await?;
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

    /// What `GET /v1/node` says.
    ///
    /// # Errors
    /// The guests' folder cannot be read.
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

    /// A node of a folder of its own.
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
        // Of a live process, and of one that is dead.
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
        assert_eq!(node.look_through_records().unwrap(), std::slice::from_ref(&forged));
        let started = &node.counted().migrations_started;
        assert!((started.get(&(Role::Source,)) - 2.0).abs() < f64::EPSILON);
        let web_is = node.records().read(web.migration, Role::Source, |it| it.guest == "web");
        assert_eq!(web_is.unwrap(), Some(web));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_that_moved_on_long_ago_is_still_said_to_have_been_here() {
        let (_folder, node) = node();
        let moved_on = source_record(SourceState::Done, 1);
        node.records().create(&moved_on).unwrap();
        node.look_through_records().unwrap();
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

        let orphans = node.look_through_records().unwrap();

        assert_eq!(orphans, [orphan]);
        assert_eq!(node.records().list().unwrap().0, orphans);
    }
}
