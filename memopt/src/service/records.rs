//! The records of runs for `lighter density history`. If its folder cannot be used, runs continue
//! without records.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Clock;
use super::error::ServiceError;
use crate::history::{
    History, HistoryError, HistoryEvent, Limits, Listing, LossyHistory, Run, RunEnd, RunId,
    StepResult, Summary,
};
use crate::plan::Plan;
use crate::schedule::{Schedule, Trigger};
use crate::step::Step;

/// Number of recent runs that are searched for the last successful one.
const SUCCESS_AMONG: usize = 1000;

/// The history of this host's runs.
#[derive(Debug)]
pub(super) struct Records {
    lossy_history: LossyHistory,
    /// A run with unrecorded steps: none of its results are recorded any more, because indices
    /// would not match.
    incomplete: Option<RunId>,
    clock: Arc<dyn Clock>,
}

impl Records {
    /// Opens the history in the folder at `path`.
    pub(super) fn open(path: PathBuf, clock: Arc<dyn Clock>) -> Self {
        let lossy_history = LossyHistory::open(path, Limits::default(), clock.now().uptime);
        let mut records = Self { lossy_history, incomplete: None, clock };
        records.log_news();
        records
    }

    /// Returns the last `count` runs, newest first.
    ///
    /// # Errors
    /// If there is no history.
    pub(super) fn runs(&mut self, count: usize) -> Result<Listing, ServiceError> {
        self.keep(|history| history.last(count)).ok_or(ServiceError::NoHistory)
    }

    /// Returns one run.
    ///
    /// # Errors
    /// If there is no run with this number, it cannot be read, or there is no history.
    pub(super) fn run(&mut self, id: RunId) -> Result<Run, ServiceError> {
        let run = self.keep(|history| match history.run(id) {
            Err(HistoryError::NoSuchRun(_)) => Ok(Err(ServiceError::NoSuchRun(id))),
            Err(error @ HistoryError::Unreadable { .. }) => {
                Ok(Err(ServiceError::Unreadable(error.to_string())))
            }
            other => other.map(Ok),
        });
        run.unwrap_or(Err(ServiceError::NoHistory))
    }

    /// Returns when each of `schedules` last ran or was due, in Unix seconds. New schedules start
    /// from now, which is recorded for the next node.
    pub(super) fn last_ticks(&mut self, schedules: &[Schedule]) -> BTreeMap<String, u64> {
        let now = self.unix_seconds();
        let mut ticks = self.keep(History::last_ticks).unwrap_or_default();
        for Schedule { name, .. } in schedules {
            ticks.entry(name.clone()).or_insert_with(|| {
                self.record_decided(name, now);
                now
            });
        }
        ticks
    }

    /// Returns when the last successful run ended, in Unix seconds. Reliefs do not count.
    pub(super) fn last_success(&mut self) -> Option<u64> {
        let listing = self.keep(|history| history.last(SUCCESS_AMONG))?;
        let well = |run: &Summary| {
            run.trigger != Trigger::Relief && run.outcome.is_some_and(RunEnd::is_success)
        };
        listing.runs.iter().find(|run| well(run)).and_then(|run| run.ended)
    }

    /// Starts the record of a run; without a history its number is [`RunId::UNRECORDED`].
    pub(super) fn begin(&mut self, trigger: Trigger, plan: &Plan) -> RunId {
        let started = self.unix_seconds();
        self.keep(|history| history.begin(trigger, started, plan)).unwrap_or(RunId::UNRECORDED)
    }

    /// Records that `plan` gave a guest memory back. This comes after the step, so that a guest in
    /// pressure does not wait for the host's disk.
    pub(super) fn record_relief(&mut self, plan: &Plan) {
        let run = self.begin(Trigger::Relief, plan);
        self.record_steps(run, &plan.steps);
        self.record_end(run, RunEnd::Reached);
    }

    /// Records a new plan of the run, made after a survey.
    pub(super) fn record_plan(&mut self, run: RunId, plan: &Plan) {
        self.keep(|history| history.replace_plan(run, plan));
    }

    /// Records steps that are about to be executed. Returns the index of the first one.
    pub(super) fn record_steps(&mut self, run: RunId, steps: &[Step]) -> u32 {
        let first = self.keep(|history| history.act(run, steps));
        if first.is_none() {
            self.incomplete = Some(run);
        }
        first.unwrap_or(0)
    }

    /// Records the results of steps.
    pub(super) fn record_results(&mut self, run: RunId, found: &[StepResult]) {
        if self.incomplete == Some(run) {
            return;
        }
        self.keep(|history| history.verify(run, found));
    }

    /// Records an error of a run.
    pub(super) fn record_error(&mut self, run: RunId, error: &str) {
        self.keep(|history| history.note_error(run, error));
    }

    /// Records how a run ended.
    pub(super) fn record_end(&mut self, run: RunId, end: RunEnd) {
        let now = self.unix_seconds();
        self.keep(|history| history.finish(run, now, end));
    }

    /// Records that a schedule was decided on at this time (Unix seconds), from which its next time
    /// is calculated.
    pub(super) fn record_decided(&mut self, schedule: &str, tick: u64) {
        self.keep(|history| history.note_decided(schedule, tick));
    }

    fn keep<T>(&mut self, body: impl FnOnce(&mut History) -> Result<T, HistoryError>) -> Option<T> {
        let done = self.lossy_history.with(self.clock.now().uptime, body);
        self.log_news();
        done
    }

    fn log_news(&mut self) {
        self.lossy_history.take_news().into_iter().for_each(log_event);
    }

    fn unix_seconds(&self) -> u64 {
        self.clock.now().wall.as_secs()
    }
}

fn log_event(news: HistoryEvent) {
    match news {
        HistoryEvent::Lost(error) => tracing::warn!("no history is kept: {error}"),
        HistoryEvent::Refused(error) => tracing::warn!("not in the history: {error}"),
        HistoryEvent::Kept { interrupted, unreadable } => {
            for run in interrupted {
                tracing::warn!("run {run} was interrupted: the node died over it");
            }
            if let Some(first) = unreadable.first() {
                let runs = unreadable.len();
                tracing::warn!(runs, "the history has runs that cannot be read: {first} is one");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::samples::{plan, step};
    use crate::schedule::Moment;

    const NOW: u64 = 1_790_000_000;

    #[derive(Debug)]
    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Moment {
            let wall = Duration::from_secs(NOW);
            Moment { wall, uptime: Duration::from_secs(60) }
        }
    }

    fn clock() -> Arc<dyn Clock> {
        Arc::new(Stopped)
    }

    #[test]
    fn a_new_schedule_is_known_to_the_next_node() {
        const SCHEDULE: &str =
            "[[schedule]]\nname = \"night\"\ncron = \"0 3 * * *\"\ngoal = \"max density\"\n";
        let schedules = crate::schedule::read(SCHEDULE, "f", |_| Ok(())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let mut records = Records::open(path.clone(), clock());
        assert!(records.last_ticks(&[]).is_empty());
        let begun = records.last_ticks(&schedules);
        assert_eq!(begun["night"], NOW);
        records.record_decided("night", 7);
        drop(records);
        // No node has run at that time or since.
        assert_eq!(Records::open(path, clock()).last_ticks(&schedules)["night"], 7);
    }

    #[test]
    fn findings_on_unrecorded_steps_are_not_attributed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path().join("history"), clock());
        let run = records.begin(Trigger::Manual, &plan(""));
        assert_eq!(records.record_steps(run, &[step("db", 1)]), 0);
        records.record_results(run, &[StepResult::failed(0, "first")]);
        // Longer than the limit for a recorded step.
        records.record_steps(run, &[step(&"x".repeat(1 << 20), 1)]);
        records.record_results(run, &[StepResult::failed(0, "second")]);
        let kept = records.run(run).unwrap();
        assert_eq!(kept.steps.len(), 1);
        assert_eq!(kept.steps[0].error.as_deref(), Some("first"));
    }

    #[test]
    fn a_run_whose_log_is_damaged_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let mut records = Records::open(path.clone(), clock());
        let run = records.begin(Trigger::Manual, &plan(""));
        records.record_end(run, RunEnd::Reached);
        drop(records);
        std::fs::write(path.join("1.log"), "damaged").unwrap();
        let mut records = Records::open(path, clock());
        let error = records.run(run).unwrap_err();
        assert!(matches!(error, ServiceError::Unreadable(_)), "{error}");
        assert_eq!(error.to_string(), "run 1 cannot be read: a line too short");
        assert_eq!(records.runs(10).unwrap().unreadable, [run]);
    }
}
