//! What is put down of runs for `lighter density history`. When its file cannot be used, runs go on without.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use memopt::history::{
    Chronicle, Found, History, HistoryError, Limits, Listing, News, Run, RunId, Summary,
};
use memopt::plan::{Plan, Step};
use memopt::schedule::{Schedule, Trigger};

use super::types::{Kept, RunEnd};
use crate::api::{ApiError, Reason};
use crate::clock::{unix_ms, uptime};

/// Among so many runs the last is looked for that ended well.
const SUCCESS_AMONG: usize = 1000;

/// The history of this host's runs.
#[derive(Debug)]
pub(crate) struct Records(Mutex<Chronicle<Kept>>);

impl Records {
    /// The history in this file.
    pub(super) fn open(path: PathBuf) -> Self {
        let records = Self(Mutex::new(Chronicle::open(path, Limits::default(), uptime())));
        records.tell_news();
        records
    }

    /// The last runs, the newest first.
    ///
    /// # Errors
    /// No history is kept.
    pub(crate) fn runs(&self, count: usize) -> Result<Listing<RunEnd>, ApiError> {
        self.keep(|history| history.last(count)).ok_or_else(not_kept)
    }

    /// A run.
    ///
    /// # Errors
    /// There is none of this number, or no history is kept.
    pub(crate) fn run(&self, id: RunId) -> Result<Run<Kept>, ApiError> {
        let run = self.keep(|history| match history.run(id) {
            Err(HistoryError::NoSuchRun(_)) => Ok(None),
            other => other.map(Some),
        });
        match run {
            Some(Some(run)) => Ok(run),
            Some(None) => Err(ApiError::new(Reason::NotFound, format!("there is no run {id}"))),
            None => Err(not_kept()),
        }
    }

    /// When each of `schedules` last ran or was due, in Unix seconds. New ones begin now, also for the next node.
    pub(super) fn last_ticks(&self, schedules: &[Schedule]) -> BTreeMap<String, u64> {
        let mut ticks = self.keep(History::last_ticks).unwrap_or_default();
        for Schedule { name, .. } in schedules {
            ticks.entry(name.clone()).or_insert_with(|| {
                let now = unix_ms() / 1000;
                self.put_down_decided(name, now);
                now
            });
        }
        ticks
    }

    /// When the last run ended that did what it could, in Unix seconds.
    pub(super) fn last_success(&self) -> Option<u64> {
        let listing = self.keep(|history| history.last(SUCCESS_AMONG))?;
        let well = |run: &Summary<RunEnd>| run.outcome.is_some_and(RunEnd::is_success);
        listing.runs.iter().find(|run| well(run)).and_then(|run| run.ended)
    }

    /// Begins to put down a run; without a history it goes without a number.
    pub(super) fn begin(&self, trigger: Trigger, plan: &Plan) -> RunId {
        let started = unix_ms() / 1000;
        self.keep(|history| history.begin(trigger, started, plan)).unwrap_or(RunId::UNRECORDED)
    }

    /// Puts down another plan, which was made after a look at pages.
    pub(super) fn put_down_plan(&self, run: RunId, plan: &Plan) {
        self.keep(|history| history.plan_anew(run, plan));
    }

    /// Puts down steps that are about to be done; returns the place of the first.
    pub(super) fn put_down(&self, run: RunId, steps: &[Step]) -> u32 {
        let deeds: Vec<(Step, i64)> =
            steps.iter().map(|step| (step.clone(), step.expected_bytes)).collect();
        self.keep(|history| history.act(run, &deeds)).unwrap_or(0)
    }

    /// Puts down what came of them.
    pub(super) fn put_down_found(&self, run: RunId, found: &[Found]) {
        self.keep(|history| history.verify(run, found));
    }

    /// Puts down what went wrong.
    pub(super) fn put_down_error(&self, run: RunId, error: &str) {
        self.keep(|history| history.note_error(run, error));
    }

    /// Puts down how it ended.
    pub(super) fn put_down_end(&self, run: RunId, end: RunEnd) {
        self.keep(|history| history.finish(run, unix_ms() / 1000, &end));
    }

    /// Puts down that it was decided over a schedule at this time (Unix seconds): that is where its next time counts from.
    pub(super) fn put_down_decided(&self, schedule: &str, tick: u64) {
        self.keep(|history| history.note_decided(schedule, tick));
    }

    fn keep<T>(
        &self,
        body: impl FnOnce(&mut History<Kept>) -> Result<T, HistoryError>,
    ) -> Option<T> {
        let done = tokio::task::block_in_place(|| {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).with(uptime(), body)
        });
        self.tell_news();
        done
    }

    fn tell_news(&self) {
        let news = self.0.lock().unwrap_or_else(PoisonError::into_inner).take_news();
        news.into_iter().for_each(tell);
    }
}

fn not_kept() -> ApiError {
    ApiError::new(Reason::NotFound, "no history is kept of runs: the node's log says why")
}

fn tell(news: News) {
    match news {
        News::Lost(error) => tracing::warn!("no history is kept: {error}"),
        News::Refused(error) => tracing::warn!("not in the history: {error}"),
        News::Kept { interrupted, was_repaired } => {
            if was_repaired {
                tracing::warn!("the history was not closed properly, and has been repaired");
            }
            for run in interrupted {
                tracing::warn!("run {run} was interrupted: the node died over it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_schedule_is_known_to_the_next_node() {
        const SCHEDULE: &str =
            "[[schedule]]\nname = \"night\"\ncron = \"0 3 * * *\"\ngoal = \"max density\"\n";
        let schedules = memopt::schedule::read(SCHEDULE, "f", |_| Ok(())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let records = Records::open(path.clone());
        assert!(records.last_ticks(&[]).is_empty());
        let begun = records.last_ticks(&schedules);
        assert!(begun["night"].abs_diff(unix_ms() / 1000) < 60);
        records.put_down_decided("night", 7);
        drop(records);
        // No node ran at that time, nor since.
        assert_eq!(Records::open(path).last_ticks(&schedules)["night"], 7);
    }
}
