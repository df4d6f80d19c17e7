//! The life of a guest process: what it is occupied with, why it ends, and how it ends in order.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use migrate::MigrationId;
use migrate::record::RecordStore;
use tokio::runtime::Handle;
use tokio::sync::watch;
use uuid::Uuid;
use vmm_core::{Labels, StopReason, VcpuLimits, VmEvent};

use super::arriving::Arrival;
use super::events::Events;
use super::leaving::Departure;
use super::machine::{Machine, SharedMachine};
use super::merging::Merging;
use super::saved::StandsStill;
use super::session::MigrationSession;
use super::survey::Surveys;
use super::workload::BadNews;
use crate::api::migration::MigrationStatus;
use crate::api::types::{Confinement, GuestState};
use crate::ended::{Ended, How};
use crate::names::GuestName;
use crate::signals::EndSignals;
use crate::state_dir::{GuestIdentity, StateDir};

/// How long a look at the machine's events lasts, before the thread asks whether anybody still
/// wants it.
const EVENT_PATIENCE: Duration = Duration::from_secs(1);

/// How long the other host is given to hear that a migration is called off because this process
/// ends.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// Why a guest process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Somebody asked for it, over the API, with a signal or a key.
    Asked,
    /// The guest ended itself.
    Guest(StopReason),
    /// The guest runs on another host.
    Moved {
        /// Where.
        destination: String,
    },
    /// The guest is in a file.
    Saved {
        /// Which.
        file: PathBuf,
    },
    /// The copy in this process will never run.
    Discarded {
        /// Which, and why.
        message: String,
    },
}

impl Ending {
    /// What is remembered of it, of the guest `uuid` in the process of this identity, which ends at
    /// `ended_unix_ms`.
    pub(crate) fn record(&self, process: &GuestIdentity, uuid: Uuid, ended_unix_ms: u64) -> Ended {
        let (how, reason) = match self {
            Self::Asked => (How::Destroyed, "was ended on request".to_owned()),
            Self::Guest(StopReason::PowerOff) => (How::PoweredOff, "powered off".to_owned()),
            Self::Guest(StopReason::Reset) => (How::Reset, "reset itself".to_owned()),
            Self::Guest(StopReason::Asked) => (How::Destroyed, "was ended on request".to_owned()),
            Self::Guest(reason) => (How::Crashed, format!("crashed ({reason})")),
            Self::Moved { destination } => (How::Moved, format!("moved to {destination}")),
            Self::Saved { file } => (How::Saved, format!("was saved to {}", file.display())),
            Self::Discarded { message } => (How::Discarded, format!("was given up ({message})")),
        };
        let (name, began_unix_ms) = (process.name.clone(), process.started_unix_ms);
        Ended { name, uuid, began_unix_ms, ended_unix_ms, how, reason }
    }
}

/// What a guest process is busy with; decides what it may be asked.
#[derive(Debug, Clone)]
pub(crate) enum Occupation {
    /// Nothing but its guest.
    None,
    /// Writing the guest to a file; the channel closes when that is over.
    Saving(watch::Receiver<()>),
    /// Nothing: the guest has been written to a file, and stands still until it is ended.
    Saved(Arc<StandsStill>),
    /// Sending the guest away.
    Leaving(Departure),
    /// Receiving the guest.
    Arriving(Arrival),
}

impl Occupation {
    /// The migration that the guest is in, whichever way.
    pub(crate) fn session(&self) -> Option<&MigrationSession> {
        match self {
            Self::Leaving(departure) => Some(departure.session()),
            Self::Arriving(arrival) => Some(arrival.session()),
            Self::None | Self::Saving(_) | Self::Saved(_) => None,
        }
    }

    /// Why nobody can tell at the moment which host has the guest, and the way out.
    pub(crate) fn doubt(&self) -> Option<String> {
        self.session().and_then(MigrationSession::doubt)
    }
}

/// A guest being written to a file: when dropped, the process is free for other things.
#[derive(Debug)]
pub(crate) struct Saving<'a> {
    process: &'a GuestProcess,
    next: Occupation,
    _over: watch::Sender<()>,
}

impl<'a> Saving<'a> {
    /// Occupies `process`, whose `occupation` has been looked at.
    pub(crate) fn begin(process: &'a GuestProcess, occupation: &mut Occupation) -> Self {
        let (_over, saving) = watch::channel(());
        *occupation = Occupation::Saving(saving);
        Self { process, next: Occupation::None, _over }
    }

    /// It is written, and the guest stands still until it is ended.
    pub(crate) fn leave_standing(mut self, guest: Arc<StandsStill>) {
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
    /// Absent while the guest has not been described yet by the host that it comes from.
    machine: OnceLock<SharedMachine>,
    /// Whether the machine's pages may be merged.
    merging: OnceLock<Merging>,
    surveys: Surveys,
    occupation: Mutex<Occupation>,
    events: Arc<Events>,
    /// How the last migration went, once it is over.
    last_migration: Mutex<Option<(MigrationId, MigrationStatus)>>,
    ending: watch::Sender<Option<Ending>>,
    /// What the process was confined to, once it is.
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
            last_migration: Mutex::new(None),
            ending: watch::Sender::new(None),
            confinement: OnceLock::new(),
        })
    }

    /// What the process is confined to.
    pub(crate) fn confinement(&self) -> Confinement {
        self.confinement.get().copied().unwrap_or_default()
    }

    /// Tells others what the process is confined to from now on.
    pub(super) fn set_confinement(&self, confinement: Confinement) {
        // It is confined once.
        let _first = self.confinement.set(confinement);
    }

    /// Who this process is.
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

    /// Where the process's asynchronous work runs.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether its pages may be merged; absent as long as the machine is.
    pub(crate) fn merging(&self) -> Option<&Merging> {
        self.merging.get()
    }

    /// The looks at its pages.
    pub(super) fn surveys(&self) -> &Surveys {
        &self.surveys
    }

    /// What happens to the guest.
    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The machine; absent while the guest has not been described yet.
    pub(crate) fn machine(&self) -> Option<&SharedMachine> {
        self.machine.get()
    }

    /// Gives the process its machine, whose merge domain has been joined, once, and listens to it
    /// from then on.
    ///
    /// # Errors
    /// The system gives no thread, one of the machine's is gone, or the system does not merge pages
    /// that shall be.
    pub(crate) fn set_machine(
        self: &Arc<Self>,
        machine: SharedMachine,
        merging: Merging,
    ) -> Result<()> {
        if self.machine.set(Arc::clone(&machine)).is_err() {
            return Ok(());
        }
        warn_of_vcpus(&machine);
        machine.vm().listen_at(self.state.guest(self.name()).vsock_socket())?;
        let merging = merging.begin(machine.vm())?;
        let _first = self.merging.set(merging);
        let process = Arc::downgrade(self);
        let mut bad_news = BadNews::default();
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
                        bad_news.hear(process.name(), &machine, value);
                    }
                    None => {}
                }
            }
        };
        std::thread::Builder::new()
            .name("guest-events".to_owned())
            .spawn(listen)
            .map(drop)
            .context("cannot start a thread")
    }

    /// What the process is busy with. Held for as long as a decision depends on it.
    pub(crate) fn occupation(&self) -> MutexGuard<'_, Occupation> {
        self.occupation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last migration that is over.
    pub(crate) fn last_migration(&self) -> MutexGuard<'_, Option<(MigrationId, MigrationStatus)>> {
        self.last_migration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A migration is over, and the guest is this process's own (again).
    pub(super) fn conclude(&self, id: MigrationId, status: &MigrationStatus) {
        *self.last_migration() = Some((id, status.clone()));
        let mut occupation = self.occupation();
        if occupation.session().is_some_and(|session| session.id() == id) {
            *occupation = Occupation::None;
        }
        drop(occupation);
        // Whoever hears of it may ask for the next one at once.
        self.events.migration(status);
        self.tell_run_state();
    }

    /// Tells those who follow the guest whether it runs, if that is new.
    pub(super) fn tell_run_state(&self) {
        match self.machine().map(|machine| machine.vm().run_state()) {
            Some(vmm_core::RunState::Running) => self.events.is_running(true),
            Some(vmm_core::RunState::Paused) => self.events.is_running(false),
            Some(vmm_core::RunState::Stopped) | None => {}
        }
    }

    /// Tells those who follow the guest that it is not here any more, and how it ended.
    pub(super) fn tell_end(&self, ending: &Ending) {
        self.events.stopped(ending.record(self.identity(), self.identity.uuid, 0).reason);
    }

    /// Lets a guest go on that stands still since it was saved, if that is `guest`; false if it
    /// does not stand any more, or is about to end.
    pub(crate) fn goes_on_after_save(&self, guest: &Arc<StandsStill>) -> bool {
        let mut occupation = self.occupation();
        let stands = matches!(&*occupation, Occupation::Saved(it) if Arc::ptr_eq(it, guest));
        let goes_on = stands && !self.is_ending();
        if goes_on {
            *occupation = Occupation::None;
        }
        goes_on
    }

    /// Notes durably that the guest ends so.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn remember(&self, ending: &Ending) -> Result<()> {
        let uuid = self.machine().map_or(self.identity().uuid, |machine| machine.uuid());
        let now = self.state.timestamp_after_records(self.name());
        let noted = self.state.ended().write(&ending.record(self.identity(), uuid, now));
        noted.with_context(|| format!("cannot note how {} ended", self.name()))
    }

    /// Ends the process, for the first reason that is given. That it has gone elsewhere meanwhile
    /// says more than that it was to end.
    pub(crate) fn end(&self, ending: Ending) {
        let has_left = matches!(
            ending,
            Ending::Moved { .. } | Ending::Saved { .. } | Ending::Discarded { .. }
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

    /// Whether an end has been asked for.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// How the guest stands.
    pub(crate) fn guest_state(&self) -> GuestState {
        if self.is_ending() {
            return GuestState::Ended;
        }
        match &*self.occupation() {
            Occupation::Arriving(arrival) if arrival.has_arrived() => self.own_state(),
            occupation if occupation.doubt().is_some() => GuestState::InDoubt,
            Occupation::Arriving(_) => GuestState::Incoming,
            Occupation::Leaving(_) => GuestState::Migrating,
            Occupation::None | Occupation::Saving(_) | Occupation::Saved(_) => self.own_state(),
        }
    }

    fn own_state(&self) -> GuestState {
        match self.machine().map(|machine| machine.vm().run_state()) {
            Some(vmm_core::RunState::Running) => GuestState::Running,
            Some(vmm_core::RunState::Paused) | None => GuestState::Paused,
            Some(vmm_core::RunState::Stopped) => GuestState::Ended,
        }
    }

    /// The guest ended by itself, or on our order.
    fn guest_stopped(&self, reason: StopReason) {
        if let Occupation::Leaving(departure) = &*self.occupation() {
            departure.guest_stopped(&reason.to_string());
        }
        self.end(Ending::Guest(reason));
    }

    /// Waits until something ends the process, be it a signal.
    ///
    /// # Errors
    /// The system gives no signals.
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

    /// Ends what is going on: a migration is called off as far as possible, the machine stopped.
    pub(crate) async fn shut_down(self: &Arc<Self>) {
        let occupation = self.occupation().clone();
        match occupation {
            Occupation::Leaving(departure) => {
                departure.guest_stopped("its process was told to end");
                // In doubt it would ask for as long as the other host is silent: its node goes on
                // with that.
                if departure.session().doubt().is_none() {
                    departure.session().settled_within(CALL_OFF_PATIENCE).await;
                }
            }
            Occupation::Arriving(arrival) => {
                let session = arrival.session();
                if session.cancel("the shutdown of its process").await.is_ok() {
                    session.settled_within(CALL_OFF_PATIENCE).await;
                }
            }
            Occupation::Saving(mut over) => {
                // It sees that the guest has ended, and says so to whoever asked for it.
                self.stop_machine().await;
                let saved = tokio::time::timeout(CALL_OFF_PATIENCE, over.changed()).await;
                if saved.is_err() {
                    tracing::warn!("a guest was being saved and the disk does not answer");
                }
            }
            Occupation::None | Occupation::Saved(_) => {}
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
        if let Err(error) = tokio::task::spawn_blocking(stop).await {
            tracing::error!(%error, "the machine did not stop in order");
        }
    }
}

/// Warns of more vCPUs than KVM recommends on this host, as QEMU does: the guest runs all the same.
fn warn_of_vcpus(machine: &Machine) {
    let limits = VcpuLimits::of_host().ok();
    if let Some(warning) = limits.and_then(|limits| limits.warning(machine.shape().vcpus)) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_save_that_breaks_down_frees_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let name = "web".parse().unwrap();
        let process = GuestProcess::new(&state, name, Uuid::nil(), Handle::current());
        let theirs = Arc::clone(&process);
        let broken = tokio::task::spawn_blocking(move || {
            let saving = Saving::begin(&theirs, &mut theirs.occupation());
            assert!(matches!(*theirs.occupation(), Occupation::Saving(_)));
            let _saving = saving;
            panic!("broken on purpose");
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert!(matches!(*process.occupation(), Occupation::None));
        process.shut_down().await;
    }
}
