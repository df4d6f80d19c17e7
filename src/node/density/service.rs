//! Memory optimization of this host: what is known, what is planned, what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::history::RunId;
use memopt::ledger::Ledger;
use memopt::plan::{Action, Plan, Step, exposed, plan, wants_merging};
use memopt::policy::{Goal, Policy};
use memopt::schedule::{Event, Moment, Notice, Schedule, Scheduler};
use memopt::situation::Situation;
use metrics::{DensityCounted, DensitySample};
use tokio::sync::watch;
use tokio::time::timeout;

use super::act::Actor;
use super::foreign::ForeignGuests;
use super::look::{Lookout, NOBODY, View, Which};
use super::records::Records;
use super::settings::{Change, SettingsFile};
use super::strangers::Strangers;
use super::survey::{self, Surveys, Wanted};
use super::tally::Tally;
use super::types::{Agenda, DensityStatus, NextRun, Remembered};
use crate::api::{ApiError, Reason};
use crate::cli::host::ForeignGuestsArg;
use crate::clock::{unix_ms, uptime};
use crate::durable;
use crate::state_dir::StateDir;

/// How long a run may take to end with the node, and between two looks whether it has.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(3);
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(20);

/// The largest file of what is remembered that is read, in bytes.
const LEDGER_BYTES_MAX: u64 = 16 << 20;

/// Memory optimization of this host.
#[derive(Debug)]
pub(crate) struct Density {
    state: StateDir,
    settings: Mutex<SettingsFile>,
    /// Guests' pages are looked at by one at a time.
    surveying: tokio::sync::Mutex<()>,
    /// One look at a time, and with it what is made of it.
    mind: tokio::sync::Mutex<Mind>,
    /// Whom else the kernel could merge guests with.
    pub(super) strangers: Strangers,
    /// What is put down of runs.
    pub(super) records: Records,
    scheduler: Mutex<Scheduler>,
    /// The run under way, and how it is called off.
    running: Mutex<Option<(RunId, watch::Sender<bool>)>>,
    pub(super) actor: Actor,
    /// What Prometheus sees.
    pub(super) tally: Tally,
}

/// Why nothing is taken from a guest.
#[derive(Debug)]
pub(super) struct Unremembered;

impl fmt::Display for Unremembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no balloon is inflated while what the node remembers cannot be written")
    }
}

/// What a plan knows of guests' pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// What is known anyhow.
    AsKnown,
    /// They are looked at first where that was not done lately.
    LookedAtFirst,
}

/// What looks find, and what is remembered of them.
#[derive(Debug)]
struct Mind {
    lookout: Lookout,
    ledger: Ledger,
    surveys: Surveys,
}

impl Density {
    /// Memory optimization of this host, as lighter.toml says.
    pub(crate) fn open(
        state: &StateDir,
        foreign: ForeignGuestsArg,
        counted: Arc<DensityCounted>,
    ) -> Self {
        let settings = SettingsFile::open(&state.settings_file());
        if let Err(error) = settings.policy() {
            tracing::error!("{error}");
        }
        let foreign = claim_foreign_guests(foreign);
        let actor = Actor::new(state.clone(), foreign.clone(), Arc::clone(&counted));
        if let Err(error) = actor.recover() {
            tracing::warn!("ksmd cannot be put back to how it was set: {error}");
        }
        let records = Records::open(state.density_history());
        let schedules = settings.settings.schedules.clone();
        let last_ticks = records.last_ticks(&schedules);
        let scheduler = Scheduler::new(schedules, &last_ticks, moment());
        let tally = Tally::new(counted, records.last_success());
        Self {
            state: state.clone(),
            settings: Mutex::new(settings),
            mind: tokio::sync::Mutex::new(Mind {
                lookout: Lookout::new(state.clone(), foreign),
                ledger: read_ledger(state),
                surveys: Surveys::default(),
            }),
            strangers: Strangers::new(),
            surveying: tokio::sync::Mutex::default(),
            scheduler: Mutex::new(scheduler),
            records,
            running: Mutex::default(),
            actor,
            tally,
        }
    }

    /// How the host and its guests stand.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(crate) async fn status(&self) -> Result<DensityStatus> {
        let (policy, file, file_error) = {
            let settings = self.settings();
            let file = settings.path().map(|path| path.display().to_string());
            (settings.settings.policy.clone(), file, settings.error.clone())
        };
        let (mut view, remembered, level) = {
            let mut mind = self.mind.lock().await;
            let mut view = mind.look(&policy, &NOBODY, &self.tally).await?;
            // Thousands for each guest, which nobody reads.
            let surveys = view.situation.guests.iter_mut().filter_map(|it| it.survey.as_mut());
            surveys.for_each(|survey| survey.chunks.clear());
            let remembered = remembered(&view.situation, &mind.ledger);
            (view, remembered, mind.ledger.level)
        };
        view.situation.host.strangers = self.strangers.last(&view.situation);
        Ok(DensityStatus {
            situation: view.situation,
            remembered,
            level,
            goal: policy.goal,
            file,
            file_error,
            missing: view.missing,
            running: self.running_now(),
        })
    }

    /// What Prometheus is shown, without another look.
    pub(crate) fn sample(&self) -> DensitySample {
        let are_settings_wrong = self.settings().error.is_some();
        let is_running = self.running().is_some();
        let sample = self.tally.sample(&self.scheduler());
        DensitySample { is_running, are_settings_wrong, ..sample }
    }

    /// What would be done now.
    ///
    /// # Errors
    /// The host cannot be looked at, or there is no policy.
    pub(super) async fn plan(
        &self,
        goal: Option<Goal>,
        policy: Option<Policy>,
        pages: Pages,
    ) -> Result<Plan> {
        let policy = policy.map_or_else(|| self.policy_of_runs(), Ok)?;
        let goal = goal.unwrap_or(policy.goal);
        if pages == Pages::LookedAtFirst {
            // Whose pages are not looked at in time is told in the plan.
            if let Ok(surveyed) =
                timeout(policy.merge.window, self.survey(&policy, Wanted::All)).await
            {
                surveyed?;
            }
        }
        self.think(&policy, &goal).await
    }

    /// A look at the host, and what is to be done about it.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn think(&self, policy: &Policy, goal: &Goal) -> Result<Plan> {
        let mut situation = self.look(policy, &NOBODY).await?;
        // Without the lock, so that relief does not wait.
        if wants_merging(&situation, policy) {
            situation.host.strangers = self.strangers.lately(&situation).await?;
        }
        self.tally.planned();
        Ok(plan(&situation, policy, &self.mind.lock().await.ledger, goal))
    }

    /// A look at the guests of these names, or all, and what is to be given back to those that need it. Whatever the policy's goal:
    /// what the host merely has to spare is a run's to give, or the watch would undo what runs for other goals have taken. And only
    /// what runs have taken: a balloon that an operator has set is the operator's.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn consider(
        &self,
        policy: &Policy,
        names: Option<&BTreeSet<String>>,
    ) -> Result<(Situation, Vec<Step>)> {
        let mut mind = self.mind.lock().await;
        let view = match names {
            Some(names) => {
                let view = mind.lookout.look_at_some(names).await?;
                mind.ledger.observe(&view.situation, policy);
                view
            }
            None => mind.look(policy, &NOBODY, &self.tally).await?,
        };
        let plan = plan(&view.situation, policy, &mind.ledger, &Goal::MaxDensity);
        let is_relief = |step: &Step| match &step.action {
            Action::SetBalloon { guest, from_bytes, to_bytes } => {
                let of_it = view.situation.guests.iter().find(|it| it.name == *guest);
                to_bytes > from_bytes && of_it.is_some_and(|it| mind.ledger.has_asked(it))
            }
            _ => false,
        };
        let steps = plan.steps.into_iter().filter(is_relief).collect();
        Ok((view.situation, steps))
    }

    /// A look at the host, with what the guests that are meant by `exactly` really cost.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn look(&self, policy: &Policy, exactly: &Which<'_>) -> Result<Situation> {
        Ok(self.mind.lock().await.look(policy, exactly, &self.tally).await?.situation)
    }

    /// Has guests' pages looked at. Whether there were any to look at. When it is dropped, what was found so far is kept.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn survey(&self, policy: &Policy, wanted: Wanted) -> Result<bool> {
        let _turn = self.surveying.lock().await;
        let begun = uptime();
        let situation = self.look(policy, &NOBODY).await?;
        let domains = survey::domains(&situation, policy, wanted);
        let mut asked = survey::survey(&self.state, &domains, policy);
        let mut waiting: usize = domains.iter().map(Vec::len).sum();
        while let Some(found) = asked.join_next().await {
            let found = found.context("a look at guests' pages broke down")?;
            self.tally.surveyed(found.len());
            waiting -= found.len();
            self.mind.lock().await.surveys.keep(found, begun);
        }
        self.tally.surveys_failed(waiting);
        Ok(!domains.is_empty())
    }

    /// Does a step, and remembers it. What is asked of a balloon is put down before: a node that is
    /// killed in between leaves one that the next node gives back. So nothing is taken as long as it
    /// cannot be put down; memory is given back all the same.
    ///
    /// # Errors
    /// It could not be done; [`Unremembered`] where the node is the cause, and not the guest.
    pub(super) async fn perform(&self, step: &Step) -> Result<()> {
        if let Action::SetBalloon { .. } = &step.action {
            let put_down = self.put_down(|ledger| ledger.intends(step)).await;
            match put_down.context(Unremembered) {
                Err(error) if step.action.inflates_a_balloon() => {
                    self.mind.lock().await.ledger.desists(step);
                    return Err(error);
                }
                Err(error) => tracing::warn!(step = %step.action, "{error:#}"),
                Ok(()) => {}
            }
        }
        self.actor.perform(step).await?;
        self.remember(|ledger| ledger.acted(step)).await;
        Ok(())
    }

    /// Who else lets the kernel merge pages at this moment, so that `step` must not have a domain merged.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn who_is_exposed(
        &self,
        step: &Step,
        policy: &Policy,
    ) -> Result<Option<String>> {
        let Action::DriveKsm { domain, .. } = &step.action else { return Ok(None) };
        let mut situation = self.look(policy, &NOBODY).await?;
        situation.host.strangers = self.strangers.now(&situation).await?;
        Ok(exposed(&situation, policy, domain).into_iter().next())
    }

    /// A step was done, or went wrong half-way: what is known of the guest's pages changes with it.
    pub(super) async fn note_step(&self, action: &Action, result: &Result<()>) {
        let surveys = &mut self.mind.lock().await.surveys;
        match (result, action.guest()) {
            (Ok(()), _) => surveys.acted(action),
            (Err(_), Some(guest)) => surveys.forget(guest),
            (Err(_), None) => {}
        }
    }

    /// Changes what is remembered, and puts it down for the next node.
    pub(super) async fn remember(&self, change: impl FnOnce(&mut Ledger)) {
        if let Err(error) = self.put_down(change).await {
            tracing::warn!(
                "cannot write what the node remembers of balloons and merging: {error:#}"
            );
        }
    }

    async fn put_down(&self, change: impl FnOnce(&mut Ledger)) -> Result<()> {
        let mut mind = self.mind.lock().await;
        change(&mut mind.ledger);
        let path = self.state.density_ledger();
        tokio::task::block_in_place(|| durable::write_json(&path, &mind.ledger))
    }

    /// How guests are looked at, and given back what they need.
    pub(super) fn policy(&self) -> Policy {
        self.settings().settings.policy.clone()
    }

    /// What may be done.
    ///
    /// # Errors
    /// lighter.toml has been wrong since it was first read.
    pub(super) fn policy_of_runs(&self) -> Result<Policy> {
        self.settings().policy().map_err(anyhow::Error::msg)
    }

    /// The schedule of this name.
    pub(super) fn schedule(&self, name: &str) -> Option<Schedule> {
        let settings = self.settings();
        settings.settings.schedules.iter().find(|schedule| schedule.name == name).cloned()
    }

    /// What runs, and the first `count` runs that are due then.
    pub(crate) fn agenda(&self, count: usize) -> Agenda {
        let upcoming = self.scheduler().next(count);
        let goal = |name: &str| {
            self.schedule(name).map(|schedule| schedule.goal.to_string()).unwrap_or_default()
        };
        let next = upcoming.into_iter().map(|next| NextRun {
            at_unix_seconds: next.tick,
            goal: goal(&next.schedule),
            schedule: next.schedule,
        });
        Agenda {
            next: next.collect(),
            running: self.running_now(),
            file_error: self.settings().error.clone(),
        }
    }

    /// Makes this the run under way; what is returned hears when it is called off.
    pub(super) fn set_running(&self, run: RunId) -> watch::Receiver<bool> {
        let (cancel, cancelled) = watch::channel(false);
        *self.running() = Some((run, cancel));
        cancelled
    }

    /// The run under way has ended.
    pub(super) fn end_running(&self) {
        *self.running() = None;
    }

    /// Calls a run off; it ends after the step under way.
    ///
    /// # Errors
    /// It is not under way.
    pub(crate) fn cancel(&self, id: RunId) -> Result<(), ApiError> {
        match &*self.running() {
            Some((run, cancel)) if *run == id => {
                cancel.send_replace(true);
                Ok(())
            }
            _ => Err(ApiError::new(Reason::WrongState, format!("run {id} is not under way"))),
        }
    }

    /// Calls the run under way off, and puts ksmd's settings back. What balloons hold stays.
    pub(crate) async fn shut_down(&self) {
        if let Some((_, cancel)) = &*self.running() {
            cancel.send_replace(true);
        }
        tokio::task::block_in_place(|| self.actor.end_window());
        let is_over = async {
            while self.running().is_some() {
                tokio::time::sleep(SHUT_DOWN_PAUSE).await;
            }
        };
        if timeout(SHUT_DOWN_PATIENCE, is_over).await.is_err() {
            tracing::warn!("a run is cut short");
        }
    }

    /// What time it is, and what is to be done about it.
    pub(super) fn handle(&self, event: Event) -> Vec<Notice> {
        self.scheduler().handle(moment(), event)
    }

    /// How long nothing will be due.
    pub(super) fn wait(&self) -> Duration {
        self.scheduler().wait(moment())
    }

    /// Looks whether lighter.toml says something else now.
    pub(super) fn refresh_settings(&self) {
        let change = self.settings().refresh();
        match change {
            Change::None => {}
            Change::New => {
                match self.settings().path() {
                    Some(_) => tracing::info!("lighter.toml has changed and holds from now on"),
                    None => tracing::info!(
                        "lighter.toml is gone: the preset `balanced` holds, and nothing is scheduled"
                    ),
                }
                self.schedule_anew();
            }
            Change::Wrong => {
                let settings = self.settings();
                match settings.policy() {
                    Ok(_) => {
                        let error = settings.error.as_deref().unwrap_or_default();
                        tracing::error!("{error}; what the file said before holds on");
                    }
                    Err(error) => tracing::error!("{error}"),
                }
            }
        }
    }

    fn schedule_anew(&self) {
        let schedules = self.settings().settings.schedules.clone();
        let last_ticks = self.records.last_ticks(&schedules);
        self.scheduler().replace(schedules, &last_ticks, moment());
        self.tally.scheduled_anew();
    }

    fn settings(&self) -> MutexGuard<'_, SettingsFile> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running_now(&self) -> Option<RunId> {
        self.running().as_ref().map(|(run, _)| *run)
    }

    fn running(&self) -> MutexGuard<'_, Option<(RunId, watch::Sender<bool>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mind {
    /// A look at all guests, which is remembered and shown.
    async fn look(&mut self, policy: &Policy, exactly: &Which<'_>, tally: &Tally) -> Result<View> {
        let mut view = self.lookout.look(exactly).await.inspect_err(|_| tally.look_failed())?;
        self.surveys.retain(&view.situation.guests);
        self.surveys.fill(&mut view.situation.guests);
        self.ledger.observe(&view.situation, policy);
        tally.looked(&view.situation, &self.ledger, policy);
        Ok(view)
    }
}

fn claim_foreign_guests(doing: ForeignGuestsArg) -> Option<Arc<ForeignGuests>> {
    if doing == ForeignGuestsArg::Off {
        return None;
    }
    let why_not = match ForeignGuests::claim(doing) {
        Ok(Some(claimed)) => return Some(Arc::new(claimed)),
        Ok(None) => "another node does".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    tracing::warn!("guests of QEMU and Cloud Hypervisor are not looked after: {why_not}");
    None
}

/// What the ledger has of the guests that are there.
fn remembered(situation: &Situation, ledger: &Ledger) -> BTreeMap<String, Remembered> {
    let known =
        situation.guests.iter().filter_map(|guest| ledger.guests.get_key_value(&guest.name));
    known.map(|(name, known)| (name.clone(), Remembered::of(known, ledger.uptime))).collect()
}

fn moment() -> Moment {
    Moment { wall: Duration::from_millis(unix_ms()), uptime: uptime() }
}

/// What the last node remembered, if that can be read.
fn read_ledger(state: &StateDir) -> Ledger {
    let path = state.density_ledger();
    let read = || -> Result<Option<Ledger>> {
        match regular_file::read_text(&path, LEDGER_BYTES_MAX) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).context("it is damaged")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    match read() {
        Ok(ledger) => ledger.unwrap_or_default(),
        Err(error) => {
            tracing::warn!("begins anew, since {} cannot be read: {error:#}", path.display());
            Ledger::default()
        }
    }
}
