//! One run: inspect, plan, act, wait for the effects, verify, and repeat until the goal is reached,
//! nothing more can be done, the window is over, or the run is cancelled.

mod settle;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use super::core::{Core, Handle, Reply, refuse};
use super::error::ServiceError;
use super::events::Event;
use super::steps::StepError;
use super::surveyor::{Asked, Wanted};
use super::view::{Filter, none};
use crate::history::{RunEnd, RunId, StepResult};
use crate::plan::{Plan, exposed, wants_merging};
use crate::policy::{Goal, Policy};
use crate::schedule::Trigger;
use crate::situation::Situation;
use crate::step::{Action, Step};
use crate::verify::{self, Expectation, Outcome};

/// Pause between two inspections that check whether steps have settled.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Maximum number of rounds of a run, even if there is more to do.
const ROUNDS_MAX: usize = 1000;

/// How long a run waits when only balloons are still moving. With the presets, a balloon that does
/// not move is given up before that; this limits the wait for one that creeps.
const BALLOON_PATIENCE: Duration = Duration::from_secs(300);

/// How often in a row a run inspects the host again because guests did not answer. On a busy host
/// they may answer the next time.
const SILENT_MAX: u32 = 3;

/// What a run waits for when it has nothing to do.
struct Waits {
    since: Duration,
    silent: u32,
}

impl Waits {
    /// Starts counting from `now`, at the beginning of the run or just after a round.
    const fn begin(now: Duration) -> Self {
        Self { since: now, silent: 0 }
    }

    /// Whether to keep waiting for guests that `plan` skips.
    fn go_on(&mut self, plan: &Plan, now: Duration) -> bool {
        if plan.waits_for_balloons() {
            self.silent = 0;
            return now.saturating_sub(self.since) < BALLOON_PATIENCE;
        }
        self.silent += 1;
        plan.waits_for_answers() && self.silent <= SILENT_MAX
    }
}

/// The instructions for a run.
#[derive(Debug)]
pub(super) struct Order {
    /// What started the run.
    pub(super) trigger: Trigger,
    /// The goal of the run.
    pub(super) goal: Goal,
    /// The policy that limits the run.
    pub(super) policy: Policy,
    /// If present, the run executes only what is in this plan, and only one round.
    pub(super) only: Option<Plan>,
    /// Host uptime at which the run ends in any case.
    pub(super) deadline: Option<Duration>,
}

/// A run in progress.
struct Run {
    handle: Handle,
    order: Order,
    id: RunId,
    cancelled: watch::Receiver<bool>,
    /// Bytes that the host got back so far.
    returned_bytes: i64,
}

/// An executed step that waits to be checked.
#[derive(Debug)]
struct Pending {
    /// Index of the step in the run.
    index: u32,
    expectation: Expectation,
}

impl Handle {
    /// Inspects the host, and returns a plan.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn think(&self, policy: &Policy, goal: &Goal) -> Result<Plan, ServiceError> {
        let mut situation = self.inspect(policy, none()).await?.situation;
        if wants_merging(&situation, policy) {
            situation.host.other_processes = self.shared.other_processes.lately(&situation).await?;
        }
        let (policy, goal) = (policy.clone(), *goal);
        Ok(self.call(move |core| core.plan(&situation, &policy, &goal)).await)
    }
}

/// Executes a run. `asker` receives its number once it has begun, or the reason why it could not
/// begin.
pub(super) async fn run(handle: Handle, order: Order, asker: Option<Reply<RunId>>) {
    let trigger = order.trigger.clone();
    match Run::begin(handle.clone(), order).await {
        Ok((run, plan)) => {
            if let Some(asker) = asker {
                // The caller may no longer wait.
                let _unwanted = asker.send(Ok(run.id));
            }
            run.carry_out(plan).await;
        }
        Err(error) => {
            handle.notice(&Event::RunNotBegun(&trigger));
            match asker {
                Some(asker) => refuse(asker, error),
                None => tracing::error!(%trigger, "a run cannot begin: {error}"),
            }
        }
    }
}

impl Run {
    /// Makes the first plan, and records the start of the run.
    async fn begin(handle: Handle, order: Order) -> Result<(Self, Plan), ServiceError> {
        handle.shared.other_processes.forget();
        let plan = handle.think(&order.policy, &order.goal).await?;
        let (plan, _) = within(plan, order.only.as_ref());
        let (trigger, recorded) = (order.trigger.clone(), plan.clone());
        let begin = move |core: &mut Core<'_>| {
            let id = core.records.begin(trigger, &recorded);
            (id, core.run_begun(id))
        };
        let (id, cancelled) = handle.call(begin).await;
        Ok((Self { handle, order, id, cancelled, returned_bytes: 0 }, plan))
    }

    /// Executes the run from its first plan on.
    async fn carry_out(mut self, plan: Plan) {
        let end = match self.rounds(plan).await {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(run = %self.id, "a run ends early: {error}");
                self.record_error(error.to_string()).await;
                RunEnd::Failed
            }
        };
        self.handle.call(move |core| core.run_over(end)).await;
        tracing::info!(run = %self.id, trigger = %self.order.trigger, %end, returned_bytes = self.returned_bytes, "a run is over");
    }

    async fn inspect(&self, measured: Filter) -> Result<Situation, ServiceError> {
        Ok(self.handle.inspect(&self.order.policy, measured).await?.situation)
    }

    async fn think(&self, goal: &Goal) -> Result<Plan, ServiceError> {
        self.handle.think(&self.order.policy, goal).await
    }

    async fn record_error(&self, error: String) {
        let id = self.id;
        self.handle.call(move |core| core.records.record_error(id, &error)).await;
    }

    /// Logs and records an error after which the run continues.
    async fn warn(&self, error: String) {
        tracing::warn!(run = %self.id, "{error}");
        self.record_error(error).await;
    }

    async fn record_results(&self, found: Vec<StepResult>) {
        let id = self.id;
        self.handle.call(move |core| core.records.record_results(id, &found)).await;
    }

    async fn rounds(&mut self, mut plan: Plan) -> Result<RunEnd, ServiceError> {
        let has_surveyed = self.survey().await?;
        if has_surveyed {
            plan = self.think(&self.order.goal).await?;
        }
        let (mut plan, left_out) = within(plan, self.order.only.as_ref());
        if has_surveyed {
            let (id, plan) = (self.id, plan.clone());
            self.handle.call(move |core| core.records.record_plan(id, &plan)).await;
        }
        self.report_omitted(&left_out).await;
        let (mut rounds, mut waits) = (0, Waits::begin(self.handle.uptime()));
        while rounds < ROUNDS_MAX {
            if let Some(end) = self.must_end() {
                return Ok(end);
            }
            if !plan.steps.is_empty() {
                self.round(&plan.steps).await?;
                (rounds, waits) = (rounds + 1, Waits::begin(self.handle.uptime()));
            } else if plan.wanted_bytes == Some(0) {
                return Ok(RunEnd::Reached);
            } else if self.order.only.is_none() && waits.go_on(&plan, self.handle.uptime()) {
                self.pause().await;
            } else {
                return Ok(RunEnd::Exhausted);
            }
            if self.order.only.is_some() {
                return Ok(RunEnd::Reached);
            }
            let goal = self.order.goal.less(self.returned_bytes);
            if matches!(goal, Goal::Free(0)) {
                return Ok(RunEnd::Reached);
            }
            plan = self.think(&goal).await?;
        }
        Ok(RunEnd::Exhausted)
    }

    /// Logs and records the agreed steps that no longer apply.
    async fn report_omitted(&self, steps: &[Step]) {
        for step in steps {
            let error = format!("{}: left out, since nothing of it would be done now", step.action);
            self.warn(error).await;
        }
    }

    /// Surveys guests whose surveys are missing or old, within the duration of a ksmd window and
    /// the deadline of the run. Returns whether the plan has to be made again.
    async fn survey(&mut self) -> Result<bool, ServiceError> {
        if self.order.only.as_ref().is_some_and(|plan| !plan.steps.iter().any(is_of_chunks)) {
            return Ok(false);
        }
        let now = self.handle.uptime();
        let window = self.order.policy.merge.window;
        let left = self.order.deadline.map_or(window, |end| end.saturating_sub(now).min(window));
        tokio::select! {
            asked = self.handle.survey(&self.order.policy, Wanted::Due) => {
                let Asked { guests, failed } = asked?;
                if failed > 0 {
                    let error = format!(
                        "the pages of {failed} of {guests} guests could not be surveyed (see the node's log)"
                    );
                    self.record_error(error).await;
                }
                Ok(guests > 0)
            }
            () = tokio::time::sleep(left) => {
                self.warn("not all guests' pages were surveyed in time".to_owned()).await;
                Ok(true)
            }
            _ = self.cancelled.changed() => Ok(false),
        }
    }

    /// Returns the reason why the run must end now, if there is one.
    fn must_end(&self) -> Option<RunEnd> {
        let is_over = self.order.deadline.is_some_and(|deadline| deadline <= self.handle.uptime());
        match *self.cancelled.borrow() {
            true => Some(RunEnd::Cancelled),
            false if is_over => Some(RunEnd::WindowOver),
            false => None,
        }
    }

    async fn pause(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(SETTLE_PAUSE) => {}
            _ = self.cancelled.changed() => {}
        }
    }

    /// Executes the steps of one plan, waits until they have settled, and checks their outcomes.
    async fn round(&mut self, steps: &[Step]) -> Result<(), ServiceError> {
        // The verification compares the cost before and after, so both are measured exactly.
        let mut before = self.inspect(self.concerned(steps)).await?;
        let is_concerned = self.concerned(steps);
        let concerned = before.guests.iter().filter(|guest| is_concerned(guest));
        let names: BTreeSet<String> = concerned.map(|guest| guest.name.clone()).collect();
        let (id, recorded) = (self.id, steps.to_vec());
        let first = self.handle.call(move |core| core.records.record_steps(id, &recorded)).await;
        let (mut pending, mut has_given) = (Vec::<Pending>::new(), false);
        let mut outcome = Ok(());
        for (index, step) in (first..).zip(steps) {
            if self.must_end().is_some() {
                break;
            }
            // Memory that guests have already returned must not be credited to merging.
            let gives = is_given_at_once(&step.action);
            if std::mem::replace(&mut has_given, gives) && !gives {
                before = self.inspect(self.concerned(steps)).await?;
                let is_given = |it: &Pending| is_given_at_once(&it.expectation.step.action);
                let (given, rest) = pending.into_iter().partition(is_given);
                self.check_all(given, &before).await;
                pending = rest;
            }
            if let Some(reason) = self.refusal(step).await {
                // Memory marked for this window will not be merged now.
                let (marked, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_of_window);
                self.refused(index, &marked, &reason).await;
                pending = rest;
                continue;
            }
            let expectation = Expectation::of(step, &before, &self.order.policy);
            match self.perform(step).await {
                Ok(()) => pending.push(Pending { index, expectation }),
                Err(error @ StepError::Unremembered(_)) => {
                    let error = format!("{}: {error}", step.action);
                    self.record_results(vec![StepResult::failed(index, &error)]).await;
                    outcome = Err(ServiceError::Unremembered(error));
                    break;
                }
                Err(StepError::Failed(error)) => {
                    self.failed(index, step, format!("{error:#}")).await;
                }
            }
        }
        self.settle(pending, &names).await.and(outcome)
    }

    /// Selects the guests that show the effects of `steps`.
    fn concerned(&self, steps: &[Step]) -> Filter {
        let (steps, policy) = (steps.to_vec(), self.order.policy.clone());
        Box::new(move |guest| steps.iter().any(|step| verify::concerns(step, guest, &policy)))
    }

    /// Executes a step, and updates the survey of the guest. After a failure the survey is dropped,
    /// because the step may have had a partial effect.
    async fn perform(&self, step: &Step) -> Result<(), StepError> {
        let done = self.handle.perform(step).await;
        let (action, is_done) = (step.action.clone(), done.is_ok());
        let note = move |core: &mut Core<'_>| {
            let uptime = core.now().uptime;
            match (is_done, action.guest()) {
                (true, _) => core.surveys.acted(&action, uptime),
                (false, Some(guest)) => core.surveys.forget(guest, uptime),
                (false, None) => {}
            }
        };
        self.handle.call(note).await;
        done?;
        tracing::info!(run = %self.id, step = %step.action, expected_bytes = step.expected_bytes, "{}", step.reason);
        self.handle.notice(&Event::StepDone(&step.action));
        Ok(())
    }

    /// Returns why a ksmd window must not be opened: another process or guest whose pages the
    /// kernel could merge with the domain's now. `None` for other steps.
    async fn refusal(&self, step: &Step) -> Option<String> {
        let Action::DriveKsm { domain, .. } = &step.action else { return None };
        match self.exposed(domain).await {
            Ok(other) => other.map(|it| format!("{it} could share pages with the merge domain")),
            Err(error) => Some(format!("cannot tell who could share pages with it: {error}")),
        }
    }

    async fn exposed(&self, domain: &str) -> Result<Option<String>, ServiceError> {
        let mut situation = self.inspect(none()).await?;
        situation.host.other_processes = self.handle.shared.other_processes.now(&situation).await?;
        Ok(exposed(&situation, &self.order.policy, domain).into_iter().next())
    }

    /// Records a window that was not opened because another process lets the kernel merge its
    /// pages, and the steps that were `marked` for it. This does not count against merging.
    async fn refused(&self, window: u32, marked: &[Pending], reason: &str) {
        tracing::warn!(run = %self.id, "no window of ksmd is opened: {reason}");
        let steps = marked.iter().map(|step| step.index).chain([window]);
        let refused = |index| StepResult::failed(index, reason);
        self.record_results(steps.map(refused).collect()).await;
    }

    /// Records a step that failed, which counts against its actuator.
    async fn failed(&self, index: u32, step: &Step, error: String) {
        tracing::warn!(run = %self.id, step = %step.action, "it could not be done: {error}");
        self.handle.notice(&Event::StepFailed(&step.action));
        let found = StepResult::failed(index, &error);
        self.conclude(found, &Outcome::failed(step, error)).await;
    }
}

/// Whether the effect of the step depends on ksmd's window.
fn is_of_window(pending: &Pending) -> bool {
    let action = &pending.expectation.step.action;
    matches!(action, Action::DriveKsm { .. } | Action::Merge { .. })
}

/// Whether the memory comes back as soon as the step is executed.
fn is_given_at_once(action: &Action) -> bool {
    matches!(action, Action::RemergeTemplate { .. } | Action::DropZeros { .. })
}

/// Whether the step is decided by the content of guests' pages.
fn is_of_chunks(step: &Step) -> bool {
    matches!(
        step.action,
        Action::Merge { .. }
            | Action::Unmerge { .. }
            | Action::MakeHuge { .. }
            | Action::RemergeTemplate { .. }
            | Action::DropZeros { .. }
            | Action::DriveKsm { .. }
    )
}

/// Returns the part of `plan` that a run limited to `only` executes, and the steps of `only` that
/// are left out.
fn within(plan: Plan, only: Option<&Plan>) -> (Plan, Vec<Step>) {
    match only {
        Some(only) => plan.within(only),
        None => (plan, Vec::new()),
    }
}
