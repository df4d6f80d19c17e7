//! The life of a guest process: what it is occupied with, why it ends, and its orderly end.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use migrate::MigrationId;
use migrate::record::RecordStore;
use tokio::runtime::Handle;
use tokio::sync::watch;
use uuid::Uuid;
use vmm_core::{Labels, StopReason, VmEvent};

use super::arriving::Arrival;
use super::devices::Detachments;
use super::ending::Ending;
use super::estimating::LastEstimate;
use super::events::Events;
use super::firmware::FirmwareWatch;
use super::leaving::Departure;
use super::machine::SharedMachine;
use super::merging::Merging;
use super::saved::PausedForSave;
use super::session::MigrationSession;
use super::survey::Surveys;
use super::variables;
use super::workload::ReportedFaults;
use crate::api::migration::MigrationStatus;
use crate::api::types::{Confinement, GuestState};
use crate::departures::PresentDisk;
use crate::ended::{Ended, How};
use crate::names::GuestName;
use crate::scrollback::Excerpt;
use crate::signals::EndSignals;
use crate::state_dir::{GuestIdentity, StateDir};

/// How long the thread waits for an event of the machine before it checks whether the process is
/// still in use.
const EVENT_PATIENCE: Duration = Duration::from_secs(1);

/// How long the other host is given to learn that a migration is cancelled because this process
/// ends.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// How long a process that is told to end goes on offering memory that the guest at its destination
/// still needs, after it has last sent some: without it, the guest is lost.
const SERVE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a machine is waited for when it stops. A thread of it that waits for a page that does
/// not come ends with the process only: nothing must let it read zeros, and write those to a disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a guest process is occupied with; decides which requests it accepts.
#[derive(Debug, Clone)]
pub(crate) enum Occupation {
    /// Nothing but its guest.
    None,
    /// Writing the guest to a file; the channel closes when that is over.
    Saving(watch::Receiver<()>),
    /// Nothing: the guest has been saved, and is paused until it is ended or resumed.
    Saved(Arc<PausedForSave>),
    /// Measuring how a migration would go.
    Estimating,
    /// Sending the guest to another host.
    Leaving(Departure),
    /// Receiving the guest.
    Arriving(Arrival),
}

impl Occupation {
    /// The migration of the guest, in either direction.
    pub(crate) fn session(&self) -> Option<&MigrationSession> {
        match self {
            Self::Leaving(departure) => Some(departure.session()),
            Self::Arriving(arrival) => Some(arrival.session()),
            Self::None | Self::Saving(_) | Self::Saved(_) | Self::Estimating => None,
        }
    }

    /// Why it cannot be determined at the moment which host has the guest, and the way out.
    pub(crate) fn doubt(&self) -> Option<String> {
        self.session().and_then(MigrationSession::doubt)
    }
}

/// A save in progress. Dropping this ends the process's occupation with it.
#[derive(Debug)]
pub(crate) struct Saving<'a> {
    process: &'a GuestProcess,
    next: Occupation,
    _over: watch::Sender<()>,
}

impl<'a> Saving<'a> {
    /// Occupies `process`, whose `occupation` the caller has checked.
    pub(crate) fn begin(process: &'a GuestProcess, occupation: &mut Occupation) -> Self {
        let (_over, saving) = watch::channel(());
        process.occupy(occupation, Occupation::Saving(saving));
        Self { process, next: Occupation::None, _over }
    }

    /// The save is done, and the guest stays paused until it is ended or resumed.
    pub(crate) fn leave_standing(mut self, guest: Arc<PausedForSave>) {
        self.next = Occupation::Saved(guest);
    }
}

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        *self.process.occupation() = std::mem::replace(&mut self.next, Occupation::None);
    }
}

/// A guest's process.
#[derive(Debug)]
pub(crate) struct GuestProcess {
    identity: GuestIdentity,
    state: StateDir,
    runtime: Handle,
    /// Absent until the source host has described the guest.
    machine: OnceLock<SharedMachine>,
    /// Whether the machine's pages may be merged.
    merging: OnceLock<Merging>,
    surveys: Surveys,
    occupation: Mutex<Occupation>,
    events: Arc<Events>,
    detachments: Detachments,
    firmware: FirmwareWatch,
    /// The result of the last migration, once it is over.
    last_migration: Mutex<Option<(MigrationId, MigrationStatus)>>,
    last_estimate: LastEstimate,
    ending: watch::Sender<Option<Ending>>,
    /// The confinement, once the process is confined.
    confinement: OnceLock<Confinement>,
}

impl GuestProcess {
    /// A process for a guest of this name.
    pub(crate) fn new(state: &StateDir, name: GuestName, uuid: Uuid, runtime: Handle) -> Arc<Self> {
        let started_unix_ms = state.timestamp_after_records(&name);
        let identity = GuestIdentity { name, uuid, pid: std::process::id(), started_unix_ms };
        Arc::new(Self {
            events: Events::new(identity.clone()),
            identity,
            state: state.clone(),
            runtime,
            machine: OnceLock::new(),
            merging: OnceLock::new(),
            surveys: Surveys::default(),
            occupation: Mutex::new(Occupation::None),
            detachments: Detachments::default(),
            firmware: FirmwareWatch::default(),
            last_migration: Mutex::new(None),
            last_estimate: LastEstimate::default(),
            ending: watch::Sender::new(None),
            confinement: OnceLock::new(),
        })
    }

    /// The confinement of the process; all off until it is confined.
    pub(crate) fn confinement(&self) -> Confinement {
        self.confinement.get().copied().unwrap_or_default()
    }

    /// Sets the confinement that clients are told from now on.
    pub(super) fn set_confinement(&self, confinement: Confinement) {
        // The process is confined only once.
        let _first = self.confinement.set(confinement);
    }

    /// Identity of this process.
    pub(crate) fn identity(&self) -> &GuestIdentity {
        &self.identity
    }

    /// The guest's labels.
    pub(crate) fn labels(&self) -> Labels {
        self.machine().map(|machine| machine.shape().labels.clone()).unwrap_or_default()
    }

    /// The guest's name.
    pub(crate) fn name(&self) -> &GuestName {
        &self.identity.name
    }

    /// The records of its guest's migrations.
    pub(super) fn records(&self) -> RecordStore {
        self.state.records_of(self.name())
    }

    /// This host's state folder.
    pub(crate) fn state(&self) -> &StateDir {
        &self.state
    }

    /// The runtime of the process's asynchronous work.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether the guest's pages may be merged; absent as long as the machine is.
    pub(crate) fn merging(&self) -> Option<&Merging> {
        self.merging.get()
    }

    /// The surveys of the guest's pages.
    pub(super) fn surveys(&self) -> &Surveys {
        &self.surveys
    }

    /// The devices that were detached from the guest.
    pub(super) fn detachments(&self) -> &Detachments {
        &self.detachments
    }

    /// What its firmware says on the console.
    pub(super) fn firmware(&self) -> &FirmwareWatch {
        &self.firmware
    }

    /// The events of the guest.
    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The machine; absent until the source host has described the guest.
    pub(crate) fn machine(&self) -> Option<&SharedMachine> {
        self.machine.get()
    }

    /// Sets the machine, once, and handles its events from then on. `merging` is the result of
    /// joining its merge domain.
    ///
    /// # Errors
    /// If no thread can be started, a thread of the machine is gone, or the system does not merge
    /// pages that should be merged.
    pub(crate) fn set_machine(
        self: &Arc<Self>,
        machine: SharedMachine,
        merging: Merging,
    ) -> Result<()> {
        if self.machine.set(Arc::clone(&machine)).is_err() {
            return Ok(());
        }
        machine.warn_of_vcpus();
        machine.vm().listen_at(self.state.guest(self.name()).vsock_socket())?;
        let merging = merging.begin(machine.vm())?;
        let _first = self.merging.set(merging);
        variables::follow(self, &machine)?;
        let process = Arc::downgrade(self);
        let mut bad_news = ReportedFaults::default();
        let listen = move || {
            loop {
                let event = machine.vm().events().take(EVENT_PATIENCE);
                let Some(process) = process.upgrade() else { return };
                match event {
                    Some(VmEvent::Stopped(reason)) => return process.guest_stopped(reason),
                    Some(VmEvent::Reset(reason)) => {
                        tracing::info!(guest = %process.name(), %reason, "the guest starts over");
                        machine.vm().start_over();
                        process.events().restarts(&machine.vm().restarts());
                    }
                    Some(VmEvent::Doorbell { value, .. }) => {
                        bad_news.handle(process.name(), &machine, value);
                    }
                    Some(VmEvent::Ejected) => process.take_ejected(),
                    None => {
                        process.attend_to_devices();
                        process.poll_firmware();
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("guest-events".to_owned())
            .spawn(listen)
            .map(drop)
            .context("cannot start a thread")
    }

    /// What the process is occupied with. Callers hold the lock as long as a decision depends on
    /// it.
    pub(crate) fn occupation(&self) -> MutexGuard<'_, Occupation> {
        self.occupation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last migration that is over.
    pub(crate) fn last_migration(&self) -> MutexGuard<'_, Option<(MigrationId, MigrationStatus)>> {
        self.last_migration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last estimate of a migration.
    pub(super) fn last_estimate(&self) -> &LastEstimate {
        &self.last_estimate
    }

    /// Occupies the process with `next`, which is no migration. An arrival that only has to tell
    /// its source becomes the last migration, so that clients still see it.
    pub(super) fn occupy(&self, occupation: &mut Occupation, next: Occupation) {
        if let Occupation::Arriving(arrival) = occupation {
            *self.last_migration() = Some((arrival.session().id(), arrival.status()));
        }
        *occupation = next;
    }

    /// Ends a migration's occupation: it is over, and the guest belongs to this process (again).
    pub(super) fn conclude(&self, id: MigrationId, status: &MigrationStatus) {
        *self.last_migration() = Some((id, status.clone()));
        let mut occupation = self.occupation();
        if occupation.session().is_some_and(|session| session.id() == id) {
            *occupation = Occupation::None;
        }
        // Only now, because a client that learns of it may request the next migration at once: it
        // waits until the occupation is unlocked.
        self.events.migration(status);
        if occupation.session().is_none() {
            self.report_run_state();
        }
    }

    /// Reports whether the guest, which is this process's own, runs, if that is new.
    pub(super) fn report_run_state(&self) {
        self.events.started();
        match self.machine().map(|machine| machine.vm().run_state()) {
            Some(vmm_core::RunState::Running) => self.events.is_running(true),
            Some(vmm_core::RunState::Paused) => self.events.is_running(false),
            Some(vmm_core::RunState::Stopped) | None => {}
        }
    }

    /// Reports that the guest is no longer here, and how it ended.
    pub(super) fn report_end(&self, ending: &Ending) {
        let (how, reason) = ending.described();
        self.events.stopped(how, reason);
    }

    /// Ends the occupation with `guest`, which is paused since it was saved, so that it continues.
    /// Returns false if it is not paused for that any more, or is about to end.
    pub(crate) fn release_after_save(&self, guest: &Arc<PausedForSave>) -> bool {
        let mut occupation = self.occupation();
        let stands = matches!(&*occupation, Occupation::Saved(it) if Arc::ptr_eq(it, guest));
        let goes_on = stands && !self.is_ending();
        if goes_on {
            *occupation = Occupation::None;
        }
        goes_on
    }

    /// UUID of the guest; that of the process until the guest is there.
    fn guest_uuid(&self) -> Uuid {
        self.machine().map_or(self.identity().uuid, |machine| machine.uuid())
    }

    /// Records that the guest runs here, and forgets what was recorded of it while it did not.
    /// While `occupation` is locked, no migration can begin, nor record its disks.
    pub(super) fn is_here(&self, occupation: &Occupation) {
        self.state.ended().forget(self.name());
        if let Err(error) = self.state.guest(self.name()).mark_here() {
            tracing::warn!("should this process be killed, that is not recorded: {error:#}");
        }
        let uuid = self.guest_uuid();
        let leaving = occupation.session().map(MigrationSession::id);
        let (departures, name) = (self.state.departures(), self.name());
        let disks = self.machine().into_iter().flat_map(|machine| machine.disks());
        let disks: Vec<_> = disks.filter_map(|(_, disk)| PresentDisk::at(disk.path())).collect();
        let forgotten = departures.forget_shared(name, uuid, leaving);
        if let Err(error) =
            forgotten.and_then(|()| departures.forget_copied((name, uuid), &disks, leaving))
        {
            tracing::warn!("{name} is still recorded to have left: {error:#}");
        }
    }

    /// Durably records how the guest ends. A guest that did not arrive is where it was, so a record
    /// that says where stays.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn remember(&self, ending: &Ending) -> Result<()> {
        let says_where = |ended: Ended| matches!(ended.how, How::Moved | How::Saved);
        if matches!(ending, Ending::NotArrived { .. })
            && self.state.ended().read(self.name()).is_some_and(says_where)
        {
            return Ok(());
        }
        let uuid = self.guest_uuid();
        let now = self.state.timestamp_after_records(self.name());
        let output = self.machine().map(|machine| machine.scrollback().read(0));
        let console_bytes = output.as_ref().map_or(0, Excerpt::next);
        let ended = Ended { console_bytes, ..ending.record(self.identity(), uuid, now) };
        let noted = self.state.ended().write(&ended);
        noted.with_context(|| format!("cannot note how {} ended", self.name()))?;
        variables::remember(self, ending);
        match output {
            Some(output) => self.state.ended().keep_console(self.name(), &output.bytes),
            None => Ok(()),
        }
    }

    /// Ends the process, for the first reason that is given. A request to end is replaced, though,
    /// by the news that the guest has moved, was saved or was discarded, which says more.
    pub(crate) fn end(&self, ending: Ending) {
        let has_left = matches!(
            ending,
            Ending::Moved { .. }
                | Ending::Saved { .. }
                | Ending::NotArrived { .. }
                | Ending::Stranded { .. }
                | Ending::Discarded { .. }
        );
        self.ending.send_if_modified(|current| {
            let holds = match current {
                None => true,
                Some(Ending::Asked) => has_left,
                Some(_) => false,
            };
            if holds {
                *current = Some(ending);
            }
            holds
        });
    }

    /// Whether the process is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// State of the guest.
    pub(crate) fn guest_state(&self) -> GuestState {
        if self.is_ending() {
            return GuestState::Ended;
        }
        match &*self.occupation() {
            Occupation::Arriving(arrival) if arrival.has_arrived() || arrival.is_fetching() => {
                self.own_state()
            }
            occupation if occupation.doubt().is_some() => GuestState::InDoubt,
            Occupation::Arriving(_) => GuestState::Incoming,
            Occupation::Leaving(_) => GuestState::Migrating,
            Occupation::None
            | Occupation::Saving(_)
            | Occupation::Saved(_)
            | Occupation::Estimating => self.own_state(),
        }
    }

    fn own_state(&self) -> GuestState {
        match self.machine().map(|machine| machine.vm().run_state()) {
            Some(vmm_core::RunState::Running) => GuestState::Running,
            Some(vmm_core::RunState::Paused) | None => GuestState::Paused,
            Some(vmm_core::RunState::Stopped) => GuestState::Ended,
        }
    }

    /// Handles a guest that has ended, on its own or on our order.
    fn guest_stopped(&self, reason: StopReason) {
        if let Some(session) = self.occupation().session() {
            session.handle().guest_stopped(&reason.to_string());
        }
        self.end(Ending::Guest(reason));
    }

    /// Waits until something ends the process, such as a signal.
    ///
    /// # Errors
    /// If the system delivers no signals.
    pub(crate) async fn wait(&self) -> Result<()> {
        let mut signals = EndSignals::listen()?;
        let mut ending = self.ending.subscribe();
        tokio::select! {
            _ = signals.next() => self.end(Ending::Asked),
            _ = ending.wait_for(Option::is_some) => {}
        }
        Ok(())
    }

    /// Why the process ends, once it does.
    pub(crate) fn ending(&self) -> Ending {
        self.ending.borrow().clone().unwrap_or(Ending::Asked)
    }

    /// Ends what is going on: cancels a migration as far as possible, and stops the machine.
    pub(crate) async fn shut_down(self: &Arc<Self>) {
        let occupation = self.occupation().clone();
        match occupation {
            Occupation::Leaving(departure) => {
                departure.guest_stopped("its process was told to end");
                let session = departure.session();
                // In doubt, the session would ask for as long as the other host is silent. The node
                // continues with that instead, but it has no memory to serve.
                if departure.is_serving() {
                    session.settled_unless_silent(SERVE_PATIENCE).await;
                } else if session.doubt().is_none() {
                    session.settled_within(CALL_OFF_PATIENCE).await;
                }
            }
            Occupation::Arriving(arrival) => {
                let session = arrival.session();
                let cancelled = session.cancel("the shutdown of its process").await;
                if cancelled.is_err() && arrival.is_fetching() {
                    self.stop_machine().await;
                    session.handle().guest_stopped("its process was told to end");
                } else if cancelled.is_err() {
                    return self.stop_machine().await;
                }
                session.settled_within(CALL_OFF_PATIENCE).await;
            }
            Occupation::Saving(mut over) => {
                // The save notices that the guest has ended, and tells its client.
                self.stop_machine().await;
                let saved = tokio::time::timeout(CALL_OFF_PATIENCE, over.changed()).await;
                if saved.is_err() {
                    tracing::warn!("a guest was being saved and the disk does not answer");
                }
            }
            Occupation::None | Occupation::Saved(_) | Occupation::Estimating => {}
        }
        self.stop_machine().await;
    }

    async fn stop_machine(self: &Arc<Self>) {
        let process = Arc::clone(self);
        let stop = move || {
            if let Some(machine) = process.machine() {
                machine.vm().stop();
            }
        };
        let stopped = tokio::task::spawn_blocking(stop);
        match tokio::time::timeout(STOP_PATIENCE, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the machine did not stop in order"),
            Err(_) => tracing::warn!("the machine does not stop: it ends with its process"),
        }
    }
}
