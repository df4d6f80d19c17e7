//! The state of the loop, which are the service's data and the run and tasks in progress, and the
//! [`Handle`] by which tasks reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinSet};

use super::error::ServiceError;
use super::events::{Event, Observer};
use super::other_processes::OtherProcesses;
use super::records::Records;
use super::settings::{Change, SettingsFile};
use super::surveys::Surveys;
use super::types::{Agenda, NextRun, Remembered};
use super::view::{Costs, Filter, Host, View, guests};
use super::{Clock, Setup};
use crate::history::{RunEnd, RunId};
use crate::hypervisor::{Failure, GuestRef, Hypervisor};
use crate::json;
use crate::ledger::Ledger;
use crate::plan::{Plan, plan};
use crate::policy::{Goal, Policy};
use crate::schedule::{Moment, Schedule, Scheduler, Tally, Trigger};
use crate::situation::Situation;

/// Maximum size of a ledger file that is read, in bytes.
const LEDGER_BYTES_MAX: u64 = 16 << 20;

/// State that the loop publishes; reading it does not wait for the loop.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    /// The schedules in the order of their file, with their counts.
    pub schedules: Vec<(Schedule, Tally)>,
    /// Whether a run is in progress.
    pub is_running: bool,
    /// Whether the current content of `lighter.toml` is invalid, and thus not applied.
    pub are_settings_invalid: bool,
}

/// A message to the loop.
pub(super) enum Message {
    /// Inspect the host and all guests.
    Inspect(Box<Inspect>),
    /// Call this with the service's state.
    Call(Call),
}

/// Where an answer is sent.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

/// Answers with an error.
pub(super) fn refuse<T>(reply: Reply<T>, error: ServiceError) {
    // The caller may no longer wait.
    let _unwanted = reply.send(Err(error));
}

/// A call with the service's state, executed synchronously by the loop.
pub(super) type Call = Box<dyn FnOnce(&mut Core<'_>) + Send>;

/// A request for an inspection.
pub(super) struct Inspect {
    pub(super) policy: Policy,
    pub(super) measured: Filter,
    pub(super) reply: Reply<View>,
}

/// The loop's end of the channels to its clients: their messages, and the state published to them.
pub struct Inbox {
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) publish: watch::Sender<Published>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// What tasks use without going through the loop.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Other processes that the kernel could merge guests with.
    pub(super) other_processes: OtherProcesses,
    /// Held while surveying: guests are surveyed for one task at a time.
    pub(super) surveying: tokio::sync::Mutex<()>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
}

impl Shared {
    /// Returns the hypervisor that runs `guest`.
    ///
    /// # Errors
    /// If its process is gone.
    pub(super) fn hypervisor_of(&self, guest: &GuestRef) -> Result<&dyn Hypervisor, Failure> {
        let has = self.hypervisors.iter().find(|it| it.has(guest));
        let it = has.ok_or_else(|| {
            format!("guest {guest} is gone, or was restarted since the plan was made")
        })?;
        Ok(it.as_ref())
    }
}

/// A task's connection to its loop. The channel belongs to this loop: when the loop is gone, calls
/// never return, and the task is dropped with it.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) send: mpsc::Sender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Runs `body` on the service's state, and returns its result.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Core<'_>) -> T + Send + 'static,
    ) -> T {
        let (reply, receiver) = oneshot::channel();
        let call = Box::new(move |core: &mut Core<'_>| {
            // The caller may no longer wait.
            let _unwanted = reply.send(body(core));
        });
        self.request(Message::Call(call), receiver).await
    }

    /// Inspects the host and all guests. The cost of guests selected by `measured` is measured
    /// exactly.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn inspect(
        &self,
        policy: &Policy,
        measured: Filter,
    ) -> Result<View, ServiceError> {
        let (reply, receiver) = oneshot::channel();
        let inspect = Inspect { policy: policy.clone(), measured, reply };
        self.request(Message::Inspect(Box::new(inspect)), receiver).await
    }

    async fn request<T>(&self, message: Message, receiver: oneshot::Receiver<T>) -> T {
        if self.send.send(message).await.is_ok()
            && let Ok(answer) = receiver.await
        {
            return answer;
        }
        pending().await
    }

    /// Notifies the observer.
    pub(super) fn notice(&self, event: &Event<'_>) {
        self.shared.observer.notice(event);
    }

    /// Returns the host's uptime.
    pub(super) fn uptime(&self) -> Duration {
        self.shared.clock.now().uptime
    }
}

/// The state of the loop: the service's data, and the run and tasks in progress.
pub(super) struct Core<'a> {
    pub(super) host: &'a mut dyn Host,
    setup: &'a Setup,
    pub(super) handle: Handle,
    pub(super) settings: SettingsFile,
    pub(super) ledger: Ledger,
    pub(super) surveys: Surveys,
    pub(super) records: Records,
    pub(super) scheduler: Scheduler,
    pub(super) run: Option<Running>,
    pub(super) tasks: JoinSet<()>,
    /// Guests that are being given memory back, by the task that does it.
    pub(super) relieved: BTreeMap<task::Id, String>,
    publish: watch::Sender<Published>,
    /// Whether the service is being shut down.
    pub(super) is_winding_up: bool,
    pub(super) is_over: bool,
}

/// The run in progress.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) task: task::Id,
    pub(super) trigger: Trigger,
    /// Absent before the first plan of the run and after its end.
    pub(super) begun: Option<Begun>,
}

/// A run that has a number.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: RunId,
    /// Host uptime when it began.
    at: Duration,
    cancel: watch::Sender<bool>,
}

impl<'a> Core<'a> {
    /// Loads the state that the previous process left, and `lighter.toml`.
    pub(super) fn open(
        host: &'a mut dyn Host,
        setup: &'a Setup,
        handle: Handle,
        publish: watch::Sender<Published>,
    ) -> Self {
        let settings = SettingsFile::open(&setup.files.settings);
        if let Err(error) = settings.policy() {
            tracing::error!("{error}");
        }
        let mut records = Records::open(setup.files.history.clone(), handle.shared.clock.clone());
        if let Some(at) = records.last_success() {
            handle.notice(&Event::LastSuccess(at));
        }
        let schedules = settings.settings.schedules.clone();
        let last_ticks = records.last_ticks(&schedules);
        let scheduler = Scheduler::new(schedules, &last_ticks, handle.shared.clock.now());
        Self {
            host,
            setup,
            handle,
            settings,
            ledger: read_ledger(setup),
            surveys: Surveys::default(),
            records,
            scheduler,
            run: None,
            tasks: JoinSet::new(),
            relieved: BTreeMap::new(),
            publish,
            is_winding_up: false,
            is_over: false,
        }
    }

    /// Inspects the host and all guests, and records the result in the ledger.
    pub(super) async fn inspect(
        &mut self,
        policy: &Policy,
        measured: &Filter,
    ) -> Result<View, ServiceError> {
        let viewed = self.view(None, &Costs::Measured(&**measured)).await;
        let mut view = viewed.inspect_err(|_| self.handle.notice(&Event::InspectionFailed))?;
        let situation = &mut view.situation;
        self.surveys.retain(&situation.guests);
        self.surveys.fill(&mut situation.guests, situation.uptime);
        self.ledger.observe(situation, policy);
        self.handle.notice(&Event::Inspected { situation, ledger: &self.ledger, policy });
        Ok(view)
    }

    /// Inspects only the guests with these names, without walking page tables.
    pub(super) async fn inspect_some(
        &mut self,
        policy: &Policy,
        names: &BTreeSet<String>,
    ) -> Result<View, ServiceError> {
        let view = self.view(Some(names), &Costs::Estimated).await?;
        self.ledger.observe(&view.situation, policy);
        Ok(view)
    }

    async fn view(
        &mut self,
        names: Option<&BTreeSet<String>>,
        costs: &Costs<'_>,
    ) -> Result<View, ServiceError> {
        let found = guests(&self.setup.hypervisors, names).await;
        let (mut guests, complaints) =
            found.map_err(|error| ServiceError::Inspect(format!("{error:#}")))?;
        let now = self.now();
        let observed = self.host.observe(&mut guests, costs, now.uptime);
        let observed = observed.map_err(|error| ServiceError::Inspect(error.to_string()))?;
        Ok(View::new(observed, guests, complaints, now))
    }

    /// Returns the plan for `situation`.
    pub(super) fn plan(&mut self, situation: &Situation, policy: &Policy, goal: &Goal) -> Plan {
        self.handle.notice(&Event::Planned);
        plan(situation, policy, &self.ledger, goal)
    }

    /// Changes the ledger and saves it for the process that follows this one.
    ///
    /// # Errors
    /// If it cannot be saved; the change remains in memory.
    pub(super) fn save(&mut self, change: impl FnOnce(&mut Ledger)) -> Result<(), String> {
        change(&mut self.ledger);
        let path = &self.setup.files.ledger;
        json::replace(path, &self.ledger)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Like [`Self::save`], but only logs a failure, for changes that take effect even if they are
    /// not saved.
    pub(super) fn remember(&mut self, change: impl FnOnce(&mut Ledger)) {
        if let Err(error) = self.save(change) {
            tracing::warn!("cannot write what the node remembers of balloons and merging: {error}");
        }
    }

    /// Returns the ledger's state of the guests in `situation`.
    pub(super) fn remembered(&self, situation: &Situation) -> BTreeMap<String, Remembered> {
        let known = situation
            .guests
            .iter()
            .filter_map(|guest| self.ledger.guests.get_key_value(&guest.name));
        known
            .map(|(name, known)| (name.clone(), Remembered::of(known, self.ledger.uptime)))
            .collect()
    }

    /// Assigns the number `id` to the run in progress. The returned receiver is notified when the
    /// run is cancelled.
    pub(super) fn run_begun(&mut self, id: RunId) -> watch::Receiver<bool> {
        let (cancel, cancelled) = watch::channel(self.is_winding_up);
        let at = self.now().uptime;
        if let Some(run) = &mut self.run {
            run.begun = Some(Begun { id, at, cancel });
            self.handle.notice(&Event::RunBegan(&run.trigger));
        }
        self.publish();
        cancelled
    }

    /// Records how the run in progress ended. Another one can begin only when its task has ended,
    /// too.
    pub(super) fn run_over(&mut self, end: RunEnd) {
        let uptime = self.now().uptime;
        if let Some(Running { trigger, begun, .. }) = &mut self.run
            && let Some(Begun { id, at, .. }) = begun.take()
        {
            let took = uptime.saturating_sub(at);
            self.handle.notice(&Event::RunEnded { trigger, end, took });
            self.records.record_end(id, end);
        }
        self.publish();
    }

    /// Cancels a run, which ends after its current step.
    ///
    /// # Errors
    /// If the run is not in progress.
    pub(super) fn cancel(&self, id: RunId) -> Result<(), ServiceError> {
        match self.running() {
            Some(run) if run.id == id => {
                run.cancel.send_replace(true);
                Ok(())
            }
            _ => Err(ServiceError::NotUnderWay(id)),
        }
    }

    /// Cancels the run in progress, and restores ksmd's settings. Balloons keep their size. Returns
    /// whether no run is left.
    pub(super) fn wind_up(&mut self) -> bool {
        self.is_winding_up = true;
        if let Some(run) = self.running() {
            run.cancel.send_replace(true);
        }
        self.host.end_window();
        self.run.is_none()
    }

    /// Reloads `lighter.toml` if it has changed.
    pub(super) fn refresh_settings(&mut self) {
        match self.settings.refresh() {
            Change::None => return,
            Change::New => {
                match self.settings.path() {
                    Some(_) => tracing::info!("lighter.toml has changed and holds from now on"),
                    None => tracing::info!(
                        "lighter.toml is gone: the preset `balanced` holds, and nothing is scheduled"
                    ),
                }
                self.replace_schedules();
            }
            Change::Wrong => match self.settings.policy() {
                Ok(_) => {
                    let error = self.settings.error.as_deref().unwrap_or_default();
                    tracing::error!("{error}; what the file said before holds on");
                }
                Err(error) => tracing::error!("{error}"),
            },
        }
        self.publish();
    }

    fn replace_schedules(&mut self) {
        let schedules = self.settings.settings.schedules.clone();
        let last_ticks = self.records.last_ticks(&schedules);
        let now = self.now();
        self.scheduler.replace(schedules, &last_ticks, now);
        self.handle.notice(&Event::SchedulesReplaced);
    }

    /// Returns the run in progress, and the next `count` scheduled runs.
    pub(super) fn agenda(&self, count: usize) -> Agenda {
        let goal = |name: &str| {
            self.schedule(name).map(|schedule| schedule.goal.to_string()).unwrap_or_default()
        };
        let next = self.scheduler.next(count).into_iter().map(|next| NextRun {
            at_unix_seconds: next.tick,
            goal: goal(&next.schedule),
            schedule: next.schedule,
        });
        Agenda {
            next: next.collect(),
            running: self.running().map(|run| run.id),
            file_error: self.settings.error.clone(),
        }
    }

    /// Returns the policy that runs must follow.
    ///
    /// # Errors
    /// [`ServiceError::Settings`].
    pub(super) fn policy_of_runs(&self) -> Result<Policy, ServiceError> {
        self.settings.policy().map_err(ServiceError::Settings)
    }

    /// Returns the run in progress, if it has a number.
    pub(super) fn running(&self) -> Option<&Begun> {
        self.run.as_ref().and_then(|run| run.begun.as_ref())
    }

    pub(super) fn now(&self) -> Moment {
        self.handle.shared.clock.now()
    }

    pub(super) fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.settings.settings.schedules.iter().find(|schedule| schedule.name == name)
    }

    pub(super) fn publish(&self) {
        let schedules = self.scheduler.schedules();
        let published = Published {
            schedules: schedules.map(|(schedule, tally)| (schedule.clone(), tally)).collect(),
            is_running: self.running().is_some(),
            are_settings_invalid: self.settings.error.is_some(),
        };
        self.publish.send_replace(published);
    }
}

/// Loads the ledger of the previous process. Starts with an empty one if it cannot be read.
fn read_ledger(setup: &Setup) -> Ledger {
    let path = &setup.files.ledger;
    let read = || match regular_file::read_text(path, LEDGER_BYTES_MAX) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(error) => Err(error.to_string()),
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(
            "begins with an empty ledger, since {} cannot be read: {error}",
            path.display()
        );
        Ledger::default()
    })
}
