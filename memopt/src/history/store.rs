//! The history itself. See [`History`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::entry::{Beginning, Entry, cut, to_json};
use super::error::HistoryError;
use super::folder::{Folder, Live, OnDisk, is_of_one_file};
use super::limits::{LISTED_MAX, Limits, PRUNED_MAX};
use super::run::{Listing, Run, RunAction, RunEnd, RunId, StepResult, Summary};
use super::ticks::Ticks;
use crate::plan::Plan;
use crate::schedule::Trigger;
use crate::step::Step;

/// All recorded runs of a host, in one folder with a log for each run.
///
/// Everything that a call writes is on disk when it returns; a call that is refused writes nothing.
/// After a file system error ([`HistoryError::Full`], [`HistoryError::Io`]) the history is closed
/// and has to be opened again, which reveals how far that call got. Calls block on the disk.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    /// Absent after the history was closed because of an error.
    open: Option<Open>,
}

/// An open folder.
#[derive(Debug)]
struct Open {
    folder: Folder,
    ticks: Ticks,
    runs: BTreeMap<RunId, Known>,
}

/// A run, with what lists need so that they do not read its log.
#[derive(Debug)]
enum Known {
    /// In progress, with its open log.
    Live(Box<Live>),
    /// Ended; with the size of its log in bytes.
    Over(Box<Summary>, u64),
    /// Unreadable; with the size of its log in bytes.
    Unreadable(u64),
}

impl Known {
    /// Returns the size of its log in bytes.
    const fn bytes(&self) -> u64 {
        match self {
            Self::Live(live) => live.bytes(),
            Self::Over(_, bytes) | Self::Unreadable(bytes) => *bytes,
        }
    }

    /// Returns the run, numbered `id`, without its plan and its actions. `None` if it is
    /// unreadable.
    fn summary(&self, id: RunId) -> Option<Summary> {
        match self {
            Self::Live(live) => Some(live.record.summary(id)),
            Self::Over(summary, _) => Some((**summary).clone()),
            Self::Unreadable(_) => None,
        }
    }
}

/// An opened history, and the runs that need attention.
#[derive(Debug)]
pub struct Opened {
    /// The history, to which runs can be added.
    pub history: History,
    /// Runs that had not ended when their process died or lost its history; their state is now
    /// [`super::State::Interrupted`].
    pub interrupted: Vec<RunId>,
    /// Runs that cannot be read: another version wrote them, or their logs are damaged.
    pub unreadable: Vec<RunId>,
}

/// The size of a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Number of runs.
    pub runs: u64,
    /// Total size of their logs in bytes.
    pub bytes: u64,
}

impl History {
    /// Opens the history at `path`, or creates one. Runs without an end are marked as interrupted:
    /// the folder is locked, so no other process can be executing them.
    ///
    /// # Errors
    /// If another process uses the history, the last times of schedules are damaged, or the file
    /// system fails.
    pub fn open(path: &Path, limits: Limits) -> Result<Opened, HistoryError> {
        let folder = Folder::open(path, limits)?;
        let mut ticks = Ticks::open(&folder.ticks())?;
        let (mut runs, mut interrupted, mut unreadable) = (BTreeMap::new(), Vec::new(), Vec::new());
        for run in folder.runs()? {
            let (found, bytes) = folder.open_run(run)?;
            let known = match found {
                OnDisk::Over(record) => Known::Over(Box::new(record.summary(run)), bytes),
                OnDisk::LeftOpen(mut live) => {
                    // The process may have crashed before it recorded this time.
                    ticks.keep_later(&live.record.beginning.trigger)?;
                    match folder.add(run, &mut live, Entry::Interrupted) {
                        Err(HistoryError::Io { cause, .. }) if is_of_one_file(&cause) => {
                            unreadable.push(run);
                            Known::Unreadable(bytes)
                        }
                        added => {
                            added?;
                            interrupted.push(run);
                            Known::Over(Box::new(live.record.summary(run)), live.bytes())
                        }
                    }
                }
                OnDisk::Unreadable => {
                    unreadable.push(run);
                    Known::Unreadable(bytes)
                }
            };
            runs.insert(run, known);
        }
        interrupted.sort();
        unreadable.sort();
        let open = Open { folder, ticks, runs };
        let history = Self { path: path.to_owned(), open: Some(open) };
        Ok(Opened { history, interrupted, unreadable })
    }

    /// Records a run that starts at `started` (Unix seconds), and prunes old runs.
    ///
    /// # Errors
    /// If the plan is too large, or the file system fails.
    pub fn begin(
        &mut self,
        trigger: Trigger,
        started: u64,
        plan: &Plan,
    ) -> Result<RunId, HistoryError> {
        self.with(|open| {
            let plan = to_json("a plan", plan, open.folder.limits().plan_bytes_max)?;
            let last = open.runs.last_key_value().map(|(&last, _)| last);
            let (run, live) = open.folder.begin(last, Beginning { trigger, started, plan })?;
            open.ticks.keep_later(&live.record.beginning.trigger)?;
            open.runs.insert(run, Known::Live(Box::new(live)));
            open.prune();
            Ok(run)
        })
    }

    /// Records a new plan for a run, made after a survey.
    ///
    /// # Errors
    /// If there is no such run, it has ended, the plan is too large, or the file system fails.
    pub fn replace_plan(&mut self, run: RunId, plan: &Plan) -> Result<(), HistoryError> {
        self.with(|open| {
            let plan = to_json("a plan", plan, open.folder.limits().plan_bytes_max)?;
            open.add(run, Entry::Planned(plan))
        })
    }

    /// Records actions that are about to be executed. Returns the index of the first one.
    ///
    /// # Errors
    /// If there is no such run, it has ended, the run or an action is too large, or the file system
    /// fails.
    pub fn act(&mut self, run: RunId, actions: &[Step]) -> Result<u32, HistoryError> {
        self.with(|open| {
            let Limits { part_bytes_max, actions_max, .. } = open.folder.limits();
            let first = open.live_mut(run)?.0.record.steps.len();
            if first.saturating_add(actions.len()) > actions_max as usize {
                let max = format!("{actions_max} actions");
                return Err(HistoryError::TooLarge { what: "a run", max });
            }
            let steps = actions.iter().map(|step| {
                let action = to_json("an action", step, part_bytes_max)?;
                let expected_bytes = step.expected_bytes;
                Ok(RunAction { action, expected_bytes, verified_bytes: None, error: None })
            });
            let steps = steps.collect::<Result<Vec<_>, HistoryError>>()?;
            open.add(run, Entry::Acting(steps))?;
            Ok(u32::try_from(first).unwrap_or(u32::MAX))
        })
    }

    /// Records results of actions.
    ///
    /// # Errors
    /// If there is no such run or action, the run has ended, it is too large, or the file system
    /// fails.
    pub fn verify(&mut self, run: RunId, found: &[StepResult]) -> Result<(), HistoryError> {
        let short = |found: &StepResult| StepResult {
            error: found.error.as_deref().map(cut),
            ..found.clone()
        };
        self.with(|open| open.add(run, Entry::Found(found.iter().map(short).collect())))
    }

    /// Records an error of a run. Texts are truncated, and errors beyond the maximum per run are
    /// dropped.
    ///
    /// # Errors
    /// If there is no such run, it has ended, it is too large, or the file system fails.
    pub fn note_error(&mut self, run: RunId, error: &str) -> Result<(), HistoryError> {
        self.with(|open| match open.live_mut(run)?.0.record.error(error) {
            Some(entry) => open.add(run, entry),
            None => Ok(()),
        })
    }

    /// Records that a run ended at `ended` (Unix seconds).
    ///
    /// # Errors
    /// If there is no such run, it has already ended, or the file system fails.
    pub fn finish(&mut self, run: RunId, ended: u64, outcome: RunEnd) -> Result<(), HistoryError> {
        self.with(|open| {
            let (live, folder) = open.live_mut(run)?;
            folder.add(run, live, Entry::Ended { ended, outcome })?;
            let over = Known::Over(Box::new(live.record.summary(run)), live.bytes());
            open.runs.insert(run, over);
            open.prune();
            Ok(())
        })
    }

    /// Returns the last `count` runs, at most a thousand.
    ///
    /// # Errors
    /// If the history is closed.
    pub fn last(&mut self, count: usize) -> Result<Listing, HistoryError> {
        self.with(|open| {
            let mut listing = Listing::default();
            for (&run, known) in open.runs.iter().rev() {
                if listing.runs.len() >= count.min(LISTED_MAX) {
                    break;
                }
                match known.summary(run) {
                    Some(summary) => listing.runs.push(summary),
                    None if listing.unreadable.len() == LISTED_MAX => break,
                    None => listing.unreadable.push(run),
                }
            }
            Ok(listing)
        })
    }

    /// Returns one whole run.
    ///
    /// # Errors
    /// If there is no such run, it cannot be read, or the history is closed.
    pub fn run(&mut self, run: RunId) -> Result<Run, HistoryError> {
        self.with(|open| match open.runs.get(&run) {
            Some(Known::Live(live)) => live.record.run(run),
            Some(_) => open.folder.read_run(run)?.run(run),
            None => Err(HistoryError::NoSuchRun(run)),
        })
    }

    /// Records that a schedule was decided on up to `tick` (Unix seconds), at which it did not run.
    /// The next scheduler then decides only on later times.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn note_decided(&mut self, schedule: &str, tick: u64) -> Result<(), HistoryError> {
        self.with(|open| open.ticks.keep(schedule, tick))
    }

    /// Returns the last time of each schedule at which it ran or is known not to have run, by its
    /// name, in Unix seconds. A [`crate::schedule::Scheduler`] starts from these.
    ///
    /// # Errors
    /// If the history is closed.
    pub fn last_ticks(&mut self) -> Result<BTreeMap<String, u64>, HistoryError> {
        self.with(|open| Ok(open.ticks.all().clone()))
    }

    /// Returns the number of runs and the size of their logs.
    ///
    /// # Errors
    /// If the history is closed.
    pub fn stored(&mut self) -> Result<Stored, HistoryError> {
        self.with(|open| Ok(open.stored()))
    }

    /// Runs `body` on the open history, and closes it after a fatal error.
    fn with<T>(
        &mut self,
        body: impl FnOnce(&mut Open) -> Result<T, HistoryError>,
    ) -> Result<T, HistoryError> {
        let Some(open) = &mut self.open else {
            return Err(HistoryError::Closed { path: self.path.clone() });
        };
        let result = body(open);
        if result.as_ref().is_err_and(HistoryError::is_fatal) {
            self.open = None;
        }
        result
    }
}

impl Open {
    /// Returns a run in progress, and the folder of its log.
    fn live_mut(&mut self, run: RunId) -> Result<(&mut Live, &Folder), HistoryError> {
        match self.runs.get_mut(&run) {
            Some(Known::Live(live)) => Ok((live, &self.folder)),
            Some(Known::Over(summary, _)) => Err(HistoryError::Ended { run, state: summary.state }),
            Some(Known::Unreadable(_)) => {
                Err(self.folder.read_run(run).err().unwrap_or(HistoryError::NoSuchRun(run)))
            }
            None => Err(HistoryError::NoSuchRun(run)),
        }
    }

    /// Appends an entry to a run in progress.
    fn add(&mut self, run: RunId, entry: Entry) -> Result<(), HistoryError> {
        let (live, folder) = self.live_mut(run)?;
        folder.add(run, live, entry)
    }

    fn stored(&self) -> Stored {
        let bytes = self.runs.values().map(Known::bytes).sum();
        Stored { runs: self.runs.len() as u64, bytes }
    }

    /// Removes the oldest runs while the limits on their number or size are exceeded. Runs in
    /// progress stay, and so does the last run, because the next run number follows from it.
    fn prune(&mut self) {
        let (Stored { mut runs, mut bytes }, limits) = (self.stored(), self.folder.limits());
        let last = self.runs.last_key_value().map(|(&last, _)| last);
        let may_go = |(run, known): &(&RunId, &Known)| {
            !matches!(known, Known::Live(_)) && Some(**run) != last
        };
        let old = self.runs.iter().filter(may_go).take(PRUNED_MAX);
        let old: Vec<(RunId, u64)> = old.map(|(&run, known)| (run, known.bytes())).collect();
        for (run, freed) in old {
            if runs <= limits.runs_max && bytes <= limits.bytes_max {
                break;
            }
            // A log that cannot be removed does not stop the pruning of others.
            if self.folder.remove(run) {
                self.runs.remove(&run);
                bytes = bytes.saturating_sub(freed);
                runs -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
