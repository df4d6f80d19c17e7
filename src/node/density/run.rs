//! One run: look, plan, act, wait until it shows, verify, and again until its goal is reached, nothing more can be done, its window is
//! over, or somebody calls it off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use memopt::history::{Found, RunId};
use memopt::plan::{Action, Plan, Step};
use memopt::policy::{Goal, Policy};
use memopt::schedule::Trigger;
use memopt::situation::{Guest, Situation};
use memopt::verify::{self, Expectation, Outcome, Verdict};
use tokio::sync::watch;

use super::look::NOBODY;
use super::service::{Density, Unremembered};
use super::survey::Wanted;
use super::types::RunEnd;
use crate::clock::uptime;

/// Between two looks at whether steps have settled.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// A run ends after so many rounds, however much there is still to do.
const ROUNDS_MAX: usize = 1000;

/// For so long a run waits for balloons alone. One that stands still is given up before, with the presets; one that creeps is waited for
/// no longer.
const BALLOON_PATIENCE: Duration = Duration::from_secs(300);

/// So often in a row it looks again when guests do not answer: on a busy host they may do so the next time.
const SILENT_LOOKS_MAX: u32 = 3;

/// What a run waits for when there is nothing to do now.
struct Waits {
    since: Duration,
    silent_looks: u32,
}

impl Waits {
    /// Something has just been done.
    fn begin() -> Self {
        Self { since: uptime(), silent_looks: 0 }
    }

    /// Whether it waits on, for guests that are left alone in `plan`.
    fn go_on(&mut self, plan: &Plan) -> bool {
        if plan.waits_for_balloons() {
            self.silent_looks = 0;
            return uptime().saturating_sub(self.since) < BALLOON_PATIENCE;
        }
        self.silent_looks += 1;
        plan.waits_for_answers() && self.silent_looks <= SILENT_LOOKS_MAX
    }
}

/// What a run is to do.
#[derive(Debug)]
pub(super) struct Task {
    /// What it was begun by.
    pub(super) trigger: Trigger,
    /// What for.
    pub(super) goal: Goal,
    /// What may be done.
    pub(super) policy: Policy,
    /// Nothing is done that is not in this plan, and only once.
    pub(super) only: Option<Plan>,
    /// When it ends in any case, as the host's uptime.
    pub(super) deadline: Option<Duration>,
}

/// A run under way.
#[derive(Debug)]
pub(super) struct Runner {
    density: Arc<Density>,
    task: Task,
    id: RunId,
    cancelled: watch::Receiver<bool>,
    /// What has come back so far.
    returned_bytes: i64,
    /// When it began, as the host's uptime.
    begun: Duration,
}

/// A step that was done, and waits to be checked.
#[derive(Debug)]
struct Pending {
    /// Its place in the run.
    index: u32,
    expectation: Expectation,
}

impl Runner {
    /// Makes the first plan, and puts the run down.
    ///
    /// # Errors
    /// The host cannot be looked at.
    pub(super) async fn begin(density: Arc<Density>, task: Task) -> Result<(Self, Plan)> {
        density.strangers.forget();
        let plan = density.think(&task.policy, &task.goal).await?;
        let (plan, _) = within(plan, task.only.as_ref());
        let id = density.records.begin(task.trigger.clone(), &plan);
        density.tally.run_began(&task.trigger);
        let cancelled = density.set_running(id);
        let runner = Self { density, task, id, cancelled, returned_bytes: 0, begun: uptime() };
        Ok((runner, plan))
    }

    /// Its number.
    pub(super) fn id(&self) -> RunId {
        self.id
    }

    /// Does it all, from the first plan on.
    pub(super) async fn carry_out(mut self, plan: Plan) -> RunEnd {
        let end = self.rounds(plan).await.unwrap_or_else(|error| {
            tracing::error!(run = %self.id, "a run ends early: {error:#}");
            self.density.records.put_down_error(self.id, &format!("{error:#}"));
            RunEnd::Failed
        });
        self.density.records.put_down_end(self.id, end);
        let took = uptime().saturating_sub(self.begun);
        self.density.tally.run_ended(&self.task.trigger, end, took);
        tracing::info!(run = %self.id, trigger = %self.task.trigger, %end, returned_bytes = self.returned_bytes, "a run is over");
        end
    }

    async fn rounds(&mut self, mut plan: Plan) -> Result<RunEnd> {
        let has_looked = self.look_at_pages().await?;
        if has_looked {
            plan = self.density.think(&self.task.policy, &self.task.goal).await?;
        }
        let (mut plan, left_out) = within(plan, self.task.only.as_ref());
        if has_looked {
            self.density.records.put_down_plan(self.id, &plan);
        }
        self.tell_left_out(&left_out);
        let (mut rounds, mut waits) = (0, Waits::begin());
        while rounds < ROUNDS_MAX {
            if let Some(end) = self.must_end() {
                return Ok(end);
            }
            if !plan.steps.is_empty() {
                self.round(&plan.steps).await?;
                (rounds, waits) = (rounds + 1, Waits::begin());
            } else if plan.wanted_bytes == Some(0) {
                return Ok(RunEnd::Reached);
            } else if self.task.only.is_none() && waits.go_on(&plan) {
                self.pause().await;
            } else {
                return Ok(RunEnd::Exhausted);
            }
            if self.task.only.is_some() {
                return Ok(RunEnd::Reached);
            }
            let goal = self.task.goal.less(self.returned_bytes);
            if matches!(goal, Goal::Free(0)) {
                return Ok(RunEnd::Reached);
            }
            plan = self.density.think(&self.task.policy, &goal).await?;
        }
        Ok(RunEnd::Exhausted)
    }

    /// Tells what was agreed to and makes no sense any more.
    fn tell_left_out(&self, steps: &[Step]) {
        for step in steps {
            let error = format!("{}: left out, since nothing of it would be done now", step.action);
            tracing::warn!(run = %self.id, "{error}");
            self.density.records.put_down_error(self.id, &error);
        }
    }

    /// Has guests' pages looked at where that is not known, or not any more, within the time that the policy gives to ksmd.
    async fn look_at_pages(&mut self) -> Result<bool> {
        if self.task.only.as_ref().is_some_and(|plan| !plan.steps.iter().any(is_of_chunks)) {
            return Ok(false);
        }
        let now = uptime();
        let window = self.task.policy.merge.window;
        let left = self.task.deadline.map_or(window, |end| end.saturating_sub(now).min(window));
        tokio::select! {
            surveyed = self.density.survey(&self.task.policy, Wanted::Due) => surveyed,
            () = tokio::time::sleep(left) => {
                tracing::warn!(run = %self.id, "not all guests' pages were looked at in time");
                Ok(true)
            }
            _ = self.cancelled.changed() => Ok(false),
        }
    }

    /// Why it must not go on.
    fn must_end(&self) -> Option<RunEnd> {
        let is_over = self.task.deadline.is_some_and(|deadline| deadline <= uptime());
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

    /// Does the steps of one plan, waits until they have settled, and checks what came of them.
    async fn round(&mut self, steps: &[Step]) -> Result<()> {
        let policy = &self.task.policy.clone();
        let is_concerned =
            |guest: &Guest| steps.iter().any(|step| verify::concerns(step, guest, policy));
        // What guests cost before is held against what they cost afterwards: both exactly.
        let mut before = self.density.look(policy, &is_concerned).await?;
        let concerned = before.guests.iter().filter(|guest| is_concerned(guest));
        let names: BTreeSet<String> = concerned.map(|guest| guest.name.clone()).collect();
        let first = self.density.records.put_down(self.id, steps);
        let (mut pending, mut has_given) = (Vec::<Pending>::new(), false);
        let mut outcome = Ok(());
        for (index, step) in (first..).zip(steps) {
            if self.must_end().is_some() {
                break;
            }
            // What guests have given back by now is not what merging brings.
            let gives = is_given_at_once(&step.action);
            if std::mem::replace(&mut has_given, gives) && !gives {
                before = self.density.look(policy, &is_concerned).await?;
                let is_given = |it: &Pending| is_given_at_once(&it.expectation.step.action);
                let (given, rest) = pending.into_iter().partition(is_given);
                self.check_all(given, &before).await;
                pending = rest;
            }
            let exposed = self.density.who_is_exposed(step, policy).await;
            let reason = match exposed {
                Ok(other) => {
                    other.map(|it| format!("{it} could share pages with the merge domain"))
                }
                Err(error) => Some(format!("cannot tell who could share pages with it: {error:#}")),
            };
            if let Some(reason) = reason {
                // What was marked for this window is not merged now.
                let (marked, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_of_window);
                self.refused(index, &marked, &reason);
                pending = rest;
                continue;
            }
            let expectation = Expectation::of(step, &before, policy);
            let done = self.density.perform(step).await;
            self.density.note_step(&step.action, &done).await;
            match done {
                Ok(()) => {
                    tracing::info!(run = %self.id, step = %step.action, expected_bytes = step.expected_bytes, "{}", step.reason);
                    self.density.tally.step_done(&step.action);
                    pending.push(Pending { index, expectation });
                }
                Err(error) if error.is::<Unremembered>() => {
                    let error = error.context(step.action.to_string());
                    self.record_error(index, &format!("{error:#}"));
                    outcome = Err(error);
                    break;
                }
                Err(error) => self.failed(index, step, format!("{error:#}")).await,
            }
        }
        self.settle(pending, &names).await.and(outcome)
    }

    /// Records a failure that does not count against what the step would be done with.
    fn record_error(&self, index: u32, error: &str) {
        self.density.records.put_down_found(self.id, &[Found::failed(index, error)]);
    }

    /// Tells of a window that may not be opened while another process lets the kernel merge pages, and
    /// of what was `marked` for it. This does not count against merging.
    fn refused(&self, window: u32, marked: &[Pending], reason: &str) {
        tracing::warn!(run = %self.id, "no window of ksmd is opened: {reason}");
        let steps = marked.iter().map(|step| step.index).chain([window]);
        let refused = |index| Found::failed(index, reason);
        self.density.records.put_down_found(self.id, &steps.map(refused).collect::<Vec<_>>());
    }

    /// A step that could not be done counts against what it was done with.
    async fn failed(&self, index: u32, step: &Step, error: String) {
        tracing::warn!(run = %self.id, step = %step.action, "it could not be done: {error}");
        self.density.tally.step_failed(&step.action);
        let found = Found::failed(index, &error);
        self.conclude(found, &Outcome::failed(step, error)).await;
    }

    /// Looks again and again until each step has shown what it brings, and checks it then. When the run must end, it is checked as it is.
    async fn settle(&mut self, mut pending: Vec<Pending>, names: &BTreeSet<String>) -> Result<()> {
        while !pending.is_empty() {
            self.pause().await;
            let must_end = self.must_end().is_some();
            if must_end {
                tokio::task::block_in_place(|| self.density.actor.end_window());
            }
            if !must_end && self.nothing_shows_yet(&pending) {
                continue;
            }
            self.note_window_end().await;
            let mut now = self.density.look(&self.task.policy, &NOBODY).await?;
            let is_over = |pending: &Pending, now: &Situation| {
                must_end || pending.expectation.is_settled(now) || self.window_is_over(pending)
            };
            if pending.iter().any(|pending| is_over(pending, &now)) {
                let is_concerned = |guest: &Guest| names.contains(&guest.name);
                now = self.density.look(&self.task.policy, &is_concerned).await?;
            }
            let (over, rest): (Vec<_>, Vec<_>) =
                pending.into_iter().partition(|pending| is_over(pending, &now));
            pending = rest;
            self.check_all(over, &now).await;
        }
        Ok(())
    }

    /// Whether a look would tell nothing of these steps: a window shows what it brings when it is over, and all others but those of
    /// balloons are simply given their time. Looks at all guests, each second, would take a fifth as much CPU time as ksmd does. Guests
    /// in pain are seen to all the same (`watch`).
    fn nothing_shows_yet(&self, pending: &[Pending]) -> bool {
        let (now, drives_ksm) = (uptime(), self.density.actor.drives_ksm());
        pending.iter().all(|pending| {
            let is_of_balloon =
                matches!(pending.expectation.step.action, Action::SetBalloon { .. });
            let shows_by_itself = is_of_balloon || (is_of_window(pending) && !drives_ksm);
            !shows_by_itself && pending.expectation.due > now
        })
    }

    async fn note_window_end(&mut self) {
        let Some(outcome) = self.density.actor.take_outcome() else { return };
        let policy = &mut self.task.policy.merge;
        // What is left is for windows to come.
        policy.cpu_time = policy.cpu_time.saturating_sub(outcome.cpu.unwrap_or_default());
        let policy = &*policy;
        self.density
            .remember(|ledger| ledger.ksm.ended(outcome.end.into(), uptime(), policy))
            .await;
    }

    /// What ksmd was to do, and it has ended its window.
    fn window_is_over(&self, pending: &Pending) -> bool {
        is_of_window(pending) && !self.density.actor.drives_ksm()
    }

    async fn check_all(&mut self, steps: Vec<Pending>, now: &Situation) {
        for step in steps {
            self.check(&step, now).await;
        }
    }

    async fn check(&mut self, pending: &Pending, now: &Situation) {
        let outcome = pending.expectation.check(now);
        tracing::info!(run = %self.id, expected_bytes = outcome.expected_bytes, verified_bytes = outcome.returned_bytes, "{outcome}");
        self.density.tally.verified(&outcome);
        self.returned_bytes = self.returned_bytes.saturating_add(outcome.returned_bytes);
        let error = (outcome.verdict == Verdict::Nothing).then(|| outcome.reason.clone());
        let found =
            Found { index: pending.index, verified_bytes: Some(outcome.returned_bytes), error };
        self.conclude(found, &outcome).await;
    }

    /// Puts down what came of a step, and has it remembered.
    async fn conclude(&self, found: Found, outcome: &Outcome) {
        self.density.records.put_down_found(self.id, &[found]);
        let policy = &self.task.policy;
        self.density.remember(|ledger| ledger.verified(outcome, policy)).await;
    }
}

/// Whether ksmd's window brings what a step promises.
fn is_of_window(pending: &Pending) -> bool {
    let action = &pending.expectation.step.action;
    matches!(action, Action::DriveKsm { .. } | Action::Merge { .. })
}

/// Whether memory is back as soon as the step is done.
fn is_given_at_once(action: &Action) -> bool {
    matches!(action, Action::RemergeTemplate { .. } | Action::DropZeros { .. })
}

/// Whether guests' pages decide about a step.
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

/// What of `plan` is done by a run that does nothing but `only`, and what of that is left out.
fn within(plan: Plan, only: Option<&Plan>) -> (Plan, Vec<Step>) {
    match only {
        Some(only) => plan.within(only),
        None => (plan, Vec::new()),
    }
}
