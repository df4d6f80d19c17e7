//! An incoming guest: builds its machine once the source has described it, and gives the guest to
//! this process once it runs.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use migrate::guest::RefusalKind;
use migrate::progress::Role;
use migrate::quic::Tls;
use migrate::record::{DestinationState, RecordError, Side};
use migrate::report::Outcome;
use migrate::session::{DestinationSession, start_destination};
use migrate::{DestinationGuest, GuestDescription, GuestFactory, MigrationId, Phase, Refusal};
use vmm_core::memory::{MergeDomain, MissingPages};
use vmm_core::{
    DeviceConfig, DeviceError, Error, RunState, ShapeError, VmOptions, VmShape, with_short_slices,
    with_usual_slices,
};

use super::console::Console;
use super::disks::{self, Arriving};
use super::ending::Ending;
use super::machine::{Machine, SharedMachine, shape_of};
use super::merging::Merging;
use super::process::{GuestProcess, Occupation};
use super::session::MigrationSession;
use super::unconfined::Unconfined;
use crate::api::migration::MigrationStatus;
use crate::cli::host::IncomingArgs;
use crate::cli::net::{NetAllowed, NetRename};
use crate::departures::DepartedDisks;
use crate::disk_places::DiskPlaces;
use crate::node::{IncomingGreeting, IncomingLine, LINGER};

/// The longest line that the node writes, bytes: each of its certificate files has a megabyte at
/// most.
const GREETING_BYTES_MAX: u64 = 8 << 20;

/// What an incoming guest's process has prepared for it before it was confined.
pub(super) struct ArrivalMeans {
    /// The guest's serial console.
    pub(super) console: Console,
    /// Threads that keep rights to files.
    pub(super) unconfined: Option<Unconfined>,
    /// What reports accesses to missing pages, if this process may have it.
    pub(super) faults: Option<MissingPages>,
    /// Disks whose content has left this host.
    pub(super) departed: DepartedDisks,
    /// Options of the guest's VM.
    pub(super) options: VmOptions,
}

/// An incoming migration, from its start until nothing of it is left.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    session: MigrationSession,
}

impl Arrival {
    /// Starts to wait for the guest; returns the UDP port.
    ///
    /// # Errors
    /// If this host has no place for records, or no free port.
    pub(crate) fn start(
        process: &Arc<GuestProcess>,
        args: &IncomingArgs,
        greeting: &IncomingGreeting,
        means: ArrivalMeans,
    ) -> Result<u16> {
        let tls = Tls::new(&greeting.identity)?;
        let records = process.records();
        let session = DestinationSession {
            migration: MigrationId(args.migration_id),
            token: greeting.token,
            listen: args.bind,
            ports: args.ports.ports(),
            guest: process.name().to_string(),
            guest_uuid: process.identity().uuid,
            linger: LINGER,
            postcopy: means.faults.is_some(),
        };
        let (folders, net_map) =
            (DiskPlaces::new(args.disk_dir.clone(), Vec::new()), args.net_map.clone());
        let factory = Factory {
            process: Arc::downgrade(process),
            console: means.console,
            unconfined: means.unconfined,
            faults: Mutex::new(means.faults),
            net_map,
            net_allowed: NetAllowed::new(args.net_allow.clone()),
            disks: args.disks.clone(),
            folders,
            departed: means.departed,
            options: means.options,
        };
        let factory = Arc::new(factory);
        let handle = with_short_slices(|| start_destination(session, factory, &tls, records))??;
        let port = handle.port();
        let arrival = Self { session: MigrationSession::new(handle) };
        *process.occupation() = Occupation::Arriving(arrival.clone());
        let shared_arrival = arrival.clone();
        arrival.session.report_events(process, Role::Destination, move || shared_arrival.status());
        process.runtime().spawn(arrival.clone().note_that_it_runs(Arc::clone(process)));
        process.runtime().spawn(arrival.conclude(Arc::clone(process)));
        Ok(port)
    }

    /// The part that both directions share.
    pub(crate) fn session(&self) -> &MigrationSession {
        &self.session
    }

    /// Whether the guest is here, and only the final messages to the source are left.
    pub(crate) fn has_arrived(&self) -> bool {
        self.session.report().is_some_and(|report| report.outcome == Outcome::Migrated)
    }

    /// Whether it is certain how the migration ends.
    pub(crate) fn is_over(&self) -> bool {
        self.session.report().is_some()
    }

    /// Whether the guest runs here while its memory is still arriving.
    pub(crate) fn is_fetching(&self) -> bool {
        self.session.report().is_none() && self.session.progress().phase == Phase::Postcopy
    }

    /// Progress and report of the migration.
    pub(crate) fn status(&self) -> MigrationStatus {
        MigrationStatus { progress: Some(self.session.progress()), report: self.session.report() }
    }

    /// Notes that the guest is here as soon as it runs, if its memory follows it.
    async fn note_that_it_runs(self, process: Arc<GuestProcess>) {
        let mut progress = self.session.handle().progress();
        // Without post-copy, the session ends before.
        if progress.wait_for(|progress| progress.phase == Phase::Postcopy).await.is_ok() {
            process.is_here(&process.occupation());
        }
    }

    /// Waits for the end of the migration and applies its outcome to the guest's process.
    async fn conclude(self, process: Arc<GuestProcess>) {
        let outcome = self.session.handle().settled().await;
        process.events().migration(&self.status());
        if self.has_arrived() {
            process.is_here(&process.occupation());
            return process.conclude(self.session.id(), &self.status());
        }
        let cause = outcome.and_then(|report| report.error).map(|error| error.message);
        let cause = cause.unwrap_or_else(|| {
            "the migration failed by a bug in lighter; report it with the log of its process"
                .to_owned()
        });
        match tokio::task::block_in_place(|| self.fate(&process)) {
            Fate::Here => {
                process.is_here(&process.occupation());
                tokio::task::block_in_place(|| self.record(&process, DestinationState::Running));
                process.conclude(self.session.id(), &self.status());
            }
            Fate::Stranded => process.end(Ending::Stranded { cause }),
            Fate::NotArrived => process.end(Ending::NotArrived { cause }),
        }
    }

    /// Finds out what became of a guest that has not arrived as it should have. If it lacks memory,
    /// the record says so, also if the session broke down: a source that heard that the guest runs
    /// would free that memory.
    fn fate(&self, process: &GuestProcess) -> Fate {
        let state = self.recorded(process);
        let is = |what: fn(&SharedMachine) -> bool| process.machine().is_some_and(what);
        let lacks_memory = |machine: &SharedMachine| !machine.vm().ram().is_complete();
        let fate = Fate::of(state, is(runs), is(lacks_memory));
        if fate == Fate::Stranded && state != Some(DestinationState::Lost) {
            self.record(process, DestinationState::Lost);
        }
        fate
    }

    /// What the session has recorded of the guest here; `None` if there is no record, or it cannot
    /// be read.
    fn recorded(&self, process: &GuestProcess) -> Option<DestinationState> {
        let record = self.session.record(process, Role::Destination).ok().flatten()?;
        match record.side {
            Side::Destination { state, .. } => Some(state),
            Side::Source { .. } => None,
        }
    }

    /// Writes to the record what became of the guest here; the node tells the source.
    fn record(&self, process: &GuestProcess, fate: DestinationState) {
        if let Err(error) = self.try_record(process, fate) {
            let name = process.name();
            tracing::error!(%error, "the source of {name} is not told what became of it");
        }
    }

    fn try_record(
        &self,
        process: &GuestProcess,
        fate: DestinationState,
    ) -> Result<(), RecordError> {
        let Some(mut record) = self.session.record(process, Role::Destination)? else {
            return Ok(());
        };
        if let Side::Destination { state, .. } = &mut record.side {
            *state = fate;
        }
        MigrationSession::disown(process, record)
    }
}

/// What became of a guest whose session does not report that it has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It runs here: the session broke down before it could report that.
    Here,
    /// It has run here and cannot continue without memory that will never come.
    Stranded,
    /// It has never run here, or its source has it again.
    NotArrived,
}

impl Fate {
    /// The fate of a guest of which the record says `state`.
    fn of(state: Option<DestinationState>, runs: bool, lacks_memory: bool) -> Self {
        match state {
            // It must not run here, even if it could not be stopped: its source runs it.
            Some(DestinationState::Discarded) => Self::NotArrived,
            Some(DestinationState::Lost) => Self::Stranded,
            Some(DestinationState::Fetching) if lacks_memory => Self::Stranded,
            _ if runs && lacks_memory => Self::Stranded,
            _ if runs => Self::Here,
            _ => Self::NotArrived,
        }
    }
}

/// Whether the guest of `machine` runs.
fn runs(machine: &SharedMachine) -> bool {
    machine.vm().run_state() == RunState::Running
}

/// Builds the one guest that this process waits for.
struct Factory {
    process: Weak<GuestProcess>,
    console: Console,
    /// Threads that create its disks, and open the files that it boots from after a reset.
    unconfined: Option<Unconfined>,
    /// What reports accesses to missing pages, until a guest is built with it.
    faults: Mutex<Option<MissingPages>>,
    /// New names of bridges and taps on this host.
    net_map: Vec<NetRename>,
    /// The bridges and taps that the guest may use.
    net_allowed: NetAllowed,
    /// The disks that were announced to the node, and that it permits.
    disks: Vec<PathBuf>,
    folders: DiskPlaces,
    /// Disks whose content has left this host, so that the files here are out of date.
    departed: DepartedDisks,
    options: VmOptions,
}

impl GuestFactory for Factory {
    fn check(&self, guest: &GuestDescription) -> Result<(), Refusal> {
        let process = self.process()?;
        let awaited = process.identity();
        if guest.name != awaited.name.as_str() || guest.uuid != awaited.uuid {
            let text = format!(
                "this process waits for {} ({}), not for {} ({})",
                awaited.name, awaited.uuid, guest.name, guest.uuid
            );
            return Err(Refusal::new(RefusalKind::Guest, text));
        }
        let shape = self.shape_of(guest)?;
        self.expect_here(guest, &shape)?;
        shape.check_host().map_err(refused)?;
        shape.check_shared_disks().map_err(refused)
    }

    fn create(&self, guest: &GuestDescription) -> Result<Arc<dyn DestinationGuest>, Refusal> {
        let process = self.process()?;
        let mut shape = self.shape_of(guest)?;
        shape.identify_disks();
        shape.disks_mut().for_each(|disk| *disk = disk.going_on());
        self.make_disks(guest, &mut shape)?;
        let other = |error: anyhow::Error| match error.downcast::<Error>() {
            Ok(error) => refused(error),
            Err(error) => Refusal::new(RefusalKind::Other, format!("{error:#}")),
        };
        // The guest's threads stay, while this one is the migration's.
        let machine = with_usual_slices(|| self.machine(&process, guest, &shape));
        let machine = machine.map_err(anyhow::Error::from).flatten().map_err(other)?;
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).take();
        let arriving = Arriving::new(machine, guest, self.unconfined.clone(), faults);
        let arriving = arriving.map_err(|error| other(error.into()))?;
        Ok(Arc::new(arriving))
    }
}

impl Factory {
    /// Returns the machine's shape on this host, with the disks that are copied with the guest.
    fn shape_of(&self, guest: &GuestDescription) -> Result<VmShape, Refusal> {
        let mut shape = shape_of(guest)?;
        announced(shape.disks().map(|disk| disk.path()), &self.disks)?;
        disks::expect(guest, &mut shape, &self.folders)?;
        NetRename::apply(&self.net_map, &mut shape);
        let refused = |text| Refusal::new(RefusalKind::Guest, text);
        self.net_allowed.permit(shape.nets().map(|net| net.link())).map_err(refused)?;
        Ok(shape)
    }

    /// Creates the files of the disks that are copied with the guest.
    fn make_disks(&self, guest: &GuestDescription, shape: &mut VmShape) -> Result<(), Refusal> {
        let Some(Unconfined { maker, .. }) = &self.unconfined else { return Ok(()) };
        let mut need_files = false;
        for copy in &guest.disks {
            if let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(usize::from(copy.device))
                && disk.needs_file()
            {
                need_files = true;
                let made = maker.make(disk);
                *disk = made.map_err(|error| Refusal::new(RefusalKind::Other, error))?;
            }
        }
        if !need_files {
            maker.end();
        }
        Ok(())
    }

    /// Refuses disks that both hosts should share if their content has left this host, and block
    /// devices to be overwritten with which other guests have left. A new file needs no check.
    fn expect_here(&self, guest: &GuestDescription, shape: &VmShape) -> Result<(), Refusal> {
        let comes = |index| guest.disks.iter().any(|copy| usize::from(copy.device) == index);
        let process = self.process()?;
        let (name, departed) = (process.name(), &self.departed);
        for (index, device) in shape.devices.iter().enumerate() {
            let DeviceConfig::Block(disk) = device else { continue };
            let expected = match comes(index) {
                false => departed.expect_here(name, disk.path()),
                true if disk.needs_file() => Ok(()),
                true => departed.expect_unused((name, guest.uuid), disk.path()),
            };
            expected.map_err(|error| Refusal::new(RefusalKind::Other, error.to_string()))?;
        }
        Ok(())
    }

    /// Joins the guest's merge domain. The opener opens the lock's file, because this thread may
    /// not.
    fn join(&self, process: &GuestProcess, domain: Option<&MergeDomain>) -> Result<Merging> {
        let path = process.state().merge_domain_file();
        match (&self.unconfined, domain) {
            (Some(unconfined), Some(domain)) => unconfined.opener.join(domain, &path),
            _ => Merging::join(domain, &path),
        }
    }

    fn process(&self) -> Result<Arc<GuestProcess>, Refusal> {
        let ending = || Refusal::new(RefusalKind::Busy, "the process for the guest is ending");
        self.process.upgrade().filter(|process| !process.is_ending()).ok_or_else(ending)
    }

    /// Builds the guest, which is that of the process from now on.
    fn machine(
        &self,
        process: &Arc<GuestProcess>,
        guest: &GuestDescription,
        shape: &VmShape,
    ) -> Result<SharedMachine> {
        let name = process.name().clone();
        let machine =
            Arc::new(Machine::create(name, guest.uuid, shape, &self.options, &self.console)?);
        let merging = self.join(process, shape.memory.merge_domain.as_ref())?;
        process.set_machine(Arc::clone(&machine), merging)?;
        Ok(machine)
    }
}

/// Refuses disks that were not announced to the node, since it has permitted only those.
fn announced<'a>(
    mut disks: impl Iterator<Item = &'a Path>,
    permitted: &[PathBuf],
) -> Result<(), Refusal> {
    let other = disks.find(|disk| !permitted.iter().any(|known| known == disk));
    other.map_or(Ok(()), |disk| {
        let text = format!("disk {disk:?} is none of those that the node was asked for");
        Err(Refusal::new(RefusalKind::Guest, text))
    })
}

/// The refusal for an error: what this host lacks, with its kind.
// Passed to `map_err`, which passes the error by value.
#[allow(clippy::needless_pass_by_value)]
fn refused(error: Error) -> Refusal {
    let kind = match &error {
        Error::OpenKvm(_)
        | Error::MissingCapability { .. }
        | Error::Kvm { .. }
        | Error::Vcpu { .. } => RefusalKind::Kvm,
        Error::Memory(_) => RefusalKind::Memory,
        Error::Shape(
            ShapeError::Malformed(_)
            | ShapeError::Version(_)
            | ShapeError::Vcpus(_)
            | ShapeError::Label(_),
        ) => RefusalKind::Guest,
        Error::Device(DeviceError::Config(_)) => RefusalKind::Guest,
        Error::Shape(_) => RefusalKind::Cpu,
        _ => RefusalKind::Other,
    };
    Refusal::new(kind, format!("{error}{}", way_out(&error)))
}

/// What the user can do about a disk that should be shared and is not here.
fn way_out(error: &Error) -> &'static str {
    match error {
        Error::Device(DeviceError::Disk { cause, .. }) if cause.kind() == ErrorKind::NotFound => {
            "; have the same disk there, under the same path, or copy it with the guest \
             (--copy-disks)"
        }
        Error::Device(DeviceError::DiskDeparted { .. }) => {
            "; a guest that comes back brings its disk along with --copy-disks --replace-disks"
        }
        _ => "",
    }
}

/// Reads the secrets that the node writes to stdin, where no other process can see them.
///
/// # Errors
/// If there are none, as when a user starts this command by hand.
pub(crate) fn read_greeting() -> Result<IncomingGreeting> {
    let mut line = String::new();
    let stdin = std::io::stdin().lock();
    stdin
        .take(GREETING_BYTES_MAX)
        .read_line(&mut line)
        .context("cannot read the migration's secrets from stdin")?;
    serde_json::from_str(&line).context(
        "`lighter incoming` is started by the node, which writes the migration's secrets to its stdin",
    )
}

/// Tells the node where the source finds this process. From then on, stdin and stdout are
/// `/dev/null`.
///
/// # Errors
/// If the node is gone.
pub(crate) fn report_port(port: u16) -> Result<()> {
    write_to_node(&IncomingLine::Port(port)).context("the node is gone")?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("cannot close stdin")?;
    nix::unistd::dup2_stdout(&null).context("cannot close stdout")
}

/// Tells the node why no port will come. After the port has been sent this has no effect, because
/// stdout is `/dev/null`.
pub(crate) fn report_error(error: &anyhow::Error) {
    // If the node is gone, it does not need the reason.
    let _unheard = write_to_node(&IncomingLine::Error(format!("{error:#}")));
}

fn write_to_node(line: &IncomingLine) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(line)?)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_the_node_did_not_permit_is_refused() {
        let permitted = [PathBuf::from("/srv/a.raw"), PathBuf::from("/srv/b.raw")];
        let ask = |disks: &[&str]| announced(disks.iter().map(Path::new), &permitted);
        ask(&["/srv/b.raw"]).unwrap();
        let refused = ask(&["/srv/a.raw", "/dev/sda"]).unwrap_err();
        assert!(refused.to_string().contains("/dev/sda"), "{refused}");
    }

    #[test]
    fn a_guest_that_its_source_has_again_is_not_lost_here() {
        use DestinationState::{Discarded, Fetching, Loading, Lost, Ready, Running, Taking};
        let fates = |state: Option<DestinationState>| {
            [(false, false), (false, true), (true, false), (true, true)]
                .map(|(runs, lacks_memory)| Fate::of(state, runs, lacks_memory))
        };
        let (gone, lost, here) = (Fate::NotArrived, Fate::Stranded, Fate::Here);
        assert_eq!(fates(Some(Discarded)), [gone; 4]);
        assert_eq!(fates(Some(Lost)), [lost; 4]);
        assert_eq!(fates(Some(Fetching)), [gone, lost, here, lost]);
        for state in [None, Some(Loading), Some(Ready), Some(Taking), Some(Running)] {
            assert_eq!(fates(state), [gone, gone, here, lost], "{state:?}");
        }
    }

    #[test]
    fn missing_host_features_are_reported_by_kind() {
        let lacks_features = Error::Shape(ShapeError::CpuFeatures(vec!["avx512".to_owned()]));
        assert_eq!(refused(lacks_features).kind, RefusalKind::Cpu);
        let nonsense = Error::Shape(ShapeError::Malformed("short".to_owned()));
        assert_eq!(refused(nonsense).kind, RefusalKind::Guest);
        let label = Error::Shape(vmm_core::labels::check_label("a b", "").unwrap_err().into());
        assert_eq!(refused(label).kind, RefusalKind::Guest);
        let kvm = Error::MissingCapability { capability: "KVM_CAP_X", purpose: "run" };
        assert_eq!(refused(kvm).kind, RefusalKind::Kvm);
    }
}
