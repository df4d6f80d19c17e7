//! The history itself. See [`History`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::entry::{Beginning, Entry, cut, to_json};
use super::error::HistoryError;
use super::folder::{Folder, Live, OnDisk, is_of_one_file};
use super::limits::{LISTED_MAX, Limits, PRUNED_MAX};
use super::run::{Deed, Found, Listing, Run, RunEnd, RunId, Summary};
use super::ticks::Ticks;
use crate::plan::Plan;
use crate::schedule::Trigger;
use crate::step::Step;

/// Every run of a host, in one folder: a log each.
///
/// What a call has written is on disk when it returns; a call that is refused writes nothing. After
/// an error of the file system ([`HistoryError::Full`], [`HistoryError::Io`]) the history is
/// closed, and has to be opened again, which tells how far that call came. Calls wait for the disk.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    /// Absent once it was closed for an error.
    open: Option<Open>,
}

/// A folder that is open.
#[derive(Debug)]
struct Open {
    folder: Folder,
    ticks: Ticks,
    runs: BTreeMap<RunId, Cached>,
    live: BTreeMap<RunId, Live>,
}

/// Of each run, so that lists are made without its log.
#[derive(Debug)]
struct Cached {
    /// As of a run that is over; absent if it cannot be read, or is under way.
    summary: Option<Summary>,
    /// Bytes of its log.
    bytes: u64,
}

/// A history that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// The history.
    pub history: History,
    /// Runs that somebody died over; they are [`super::State::Interrupted`] now.
    pub interrupted: Vec<RunId>,
    /// Runs that cannot be read: another version wrote them, or their logs are damaged.
    pub unreadable: Vec<RunId>,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Runs.
    pub runs: u64,
    /// Bytes of their logs.
    pub bytes: u64,
}

impl History {
    /// Opens the history at `path`, or begins one where there is none. Runs that were left open are
    /// interrupted: no other process has the folder.
    ///
    /// # Errors
    /// Another process has it, the last times of schedules are damaged, or the system's.
    pub fn open(path: &Path, limits: Limits) -> Result<Opened, HistoryError> {
        let folder = Folder::open(path, limits)?;
        let mut ticks = Ticks::open(&folder.ticks())?;
        let (mut runs, mut interrupted, mut unreadable) = (BTreeMap::new(), Vec::new(), Vec::new());
        for run in folder.runs()? {
            let (found, mut bytes) = folder.open_run(run)?;
            let summary = match found {
                OnDisk::Over(record) => Some(record.summary(run)),
                OnDisk::LeftOpen(mut live) => {
                    // A crash may have come before it was kept.
                    ticks.keep_later(&live.record.beginning.trigger)?;
                    match folder.add(run, &mut live, Entry::Interrupted) {
                        Err(HistoryError::Io { cause, .. }) if is_of_one_file(&cause) => {
                            unreadable.push(run);
                            None
                        }
                        added => {
                            added?;
                            interrupted.push(run);
                            bytes = live.bytes();
                            Some(live.record.summary(run))
                        }
                    }
                }
                OnDisk::Unreadable => {
                    unreadable.push(run);
                    None
                }
            };
            runs.insert(run, Cached { summary, bytes });
        }
        interrupted.sort();
        unreadable.sort();
        let open = Open { folder, ticks, runs, live: BTreeMap::new() };
        let history = Self { path: path.to_owned(), open: Some(open) };
        Ok(Opened { history, interrupted, unreadable })
    }

    /// Puts down a run that begins at `started` (Unix seconds), and throws away what is too old.
    ///
    /// # Errors
    /// The plan is too large, or the file system's.
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
            let trigger = live.record.beginning.trigger.clone();
            open.runs.insert(run, Cached { summary: None, bytes: live.bytes() });
            open.live.insert(run, live);
            if let Trigger::Schedule { name, tick } = trigger {
                open.ticks.keep(&name, tick)?;
            }
            open.prune();
            Ok(run)
        })
    }

    /// Puts down another plan for a run, which was made after a closer look.
    ///
    /// # Errors
    /// There is no such run, it has ended, the plan is too large, or the file system's.
    pub fn plan_anew(&mut self, run: RunId, plan: &Plan) -> Result<(), HistoryError> {
        self.with(|open| {
            let plan = to_json("a plan", plan, open.folder.limits().plan_bytes_max)?;
            open.add(run, Entry::Planned(plan))
        })
    }

    /// Puts down actions that are about to be carried out; returns the place of the first.
    ///
    /// # Errors
    /// There is no such run, it has ended, it or an action is too large, or the file system's.
    pub fn act(&mut self, run: RunId, actions: &[Step]) -> Result<u32, HistoryError> {
        self.with(|open| {
            let Limits { part_bytes_max, actions_max, .. } = open.folder.limits();
            let first = open.live(run)?.record.deeds.len();
            if first.saturating_add(actions.len()) > actions_max as usize {
                let max = format!("{actions_max} actions");
                return Err(HistoryError::TooLarge { what: "a run", max });
            }
            let deeds = actions.iter().map(|step| {
                let action = to_json("an action", step, part_bytes_max)?;
                let expected_bytes = step.expected_bytes;
                Ok(Deed { action, expected_bytes, verified_bytes: None, error: None })
            });
            let deeds = deeds.collect::<Result<Vec<_>, HistoryError>>()?;
            open.add(run, Entry::Acting(deeds))?;
            Ok(u32::try_from(first).unwrap_or(u32::MAX))
        })
    }

    /// Puts down what was found out about actions.
    ///
    /// # Errors
    /// There is no such run or action, the run has ended, it is too large, or the file system's.
    pub fn verify(&mut self, run: RunId, found: &[Found]) -> Result<(), HistoryError> {
        let short =
            |found: &Found| Found { error: found.error.as_deref().map(cut), ..found.clone() };
        self.with(|open| open.add(run, Entry::Found(found.iter().map(short).collect())))
    }

    /// Puts down what went wrong with a run. Of very many errors the last are left out, and so is
    /// what is too long of one.
    ///
    /// # Errors
    /// There is no such run, it has ended, it is too large, or the file system's.
    pub fn note_error(&mut self, run: RunId, error: &str) -> Result<(), HistoryError> {
        self.with(|open| match open.live(run)?.record.error(error) {
            Some(entry) => open.add(run, entry),
            None => Ok(()),
        })
    }

    /// Puts down that a run has come to its end at `ended` (Unix seconds).
    ///
    /// # Errors
    /// There is no such run, it has ended before, or the file system's.
    pub fn finish(&mut self, run: RunId, ended: u64, outcome: RunEnd) -> Result<(), HistoryError> {
        self.with(|open| {
            open.add(run, Entry::Ended { ended, outcome })?;
            if let (Some(live), Some(cached)) = (open.live.remove(&run), open.runs.get_mut(&run)) {
                cached.summary = Some(live.record.summary(run));
            }
            open.prune();
            Ok(())
        })
    }

    /// The last `count` runs, at most a thousand.
    ///
    /// # Errors
    /// The history is closed.
    pub fn last(&mut self, count: usize) -> Result<Listing, HistoryError> {
        self.list(count, 0)
    }

    /// The runs that began at `unix_seconds` or later; of more than a thousand, the last ones.
    ///
    /// # Errors
    /// The history is closed.
    pub fn since(&mut self, unix_seconds: u64) -> Result<Listing, HistoryError> {
        self.list(LISTED_MAX, unix_seconds)
    }

    /// One whole run.
    ///
    /// # Errors
    /// There is no such run, it cannot be read, or the history is closed.
    pub fn run(&mut self, run: RunId) -> Result<Run, HistoryError> {
        self.with(|open| {
            open.expect(run)?;
            match open.live.get(&run) {
                Some(live) => live.record.run(run),
                None => open.folder.read_run(run)?.run(run),
            }
        })
    }

    /// Puts down that a schedule was decided on up to a time (Unix seconds) at which it did not
    /// run, so that the next scheduler decides on later ones alone.
    ///
    /// # Errors
    /// The file system's.
    pub fn note_decided(&mut self, schedule: &str, tick: u64) -> Result<(), HistoryError> {
        self.with(|open| open.ticks.keep(schedule, tick))
    }

    /// The last time of each schedule at which it ran or is known not to have run, by its name, in
    /// Unix seconds: what a [`crate::schedule::Scheduler`] begins with.
    ///
    /// # Errors
    /// The history is closed.
    pub fn last_ticks(&mut self) -> Result<BTreeMap<String, u64>, HistoryError> {
        self.with(|open| Ok(open.ticks.all().clone()))
    }

    /// How much there is.
    ///
    /// # Errors
    /// The history is closed.
    pub fn stored(&mut self) -> Result<Stored, HistoryError> {
        self.with(|open| Ok(open.stored()))
    }

    /// The last runs that began at `since` (Unix seconds) or later.
    fn list(&mut self, count: usize, since: u64) -> Result<Listing, HistoryError> {
        self.with(|open| {
            let mut listing = Listing::default();
            for (&run, cached) in open.runs.iter().rev() {
                if listing.runs.len() >= count.min(LISTED_MAX) {
                    break;
                }
                let live = open.live.get(&run).map(|live| live.record.summary(run));
                match live.or_else(|| cached.summary.clone()) {
                    Some(summary) if summary.started < since => {}
                    Some(summary) => listing.runs.push(summary),
                    None if listing.unreadable.len() == LISTED_MAX => break,
                    None => listing.unreadable.push(run),
                }
            }
            Ok(listing)
        })
    }

    /// Does something with the history, and closes it after an error that it cannot be used after.
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
    /// The run, which is under way.
    fn live(&self, run: RunId) -> Result<&Live, HistoryError> {
        self.live.get(&run).ok_or_else(|| self.not_live(run))
    }

    /// Adds a line to a run that is under way.
    fn add(&mut self, run: RunId, entry: Entry) -> Result<(), HistoryError> {
        let Self { folder, runs, live, .. } = self;
        let (Some(live), Some(cached)) = (live.get_mut(&run), runs.get_mut(&run)) else {
            return Err(self.not_live(run));
        };
        folder.add(run, live, entry)?;
        cached.bytes = live.bytes();
        Ok(())
    }

    /// Why nothing can be put down for a run.
    fn not_live(&self, run: RunId) -> HistoryError {
        match self.expect(run).and_then(|()| self.folder.read_run(run)) {
            Ok(record) => HistoryError::Ended { run, state: record.state },
            Err(error) => error,
        }
    }

    fn expect(&self, run: RunId) -> Result<(), HistoryError> {
        self.runs.get(&run).map(drop).ok_or(HistoryError::NoSuchRun(run))
    }

    fn stored(&self) -> Stored {
        let bytes = self.runs.values().map(|cached| cached.bytes).sum();
        Stored { runs: self.runs.len() as u64, bytes }
    }

    /// Throws away the oldest runs while there are too many, or too large ones. Runs under way
    /// stay, and so does the last one: the number of the next one follows from it.
    fn prune(&mut self) {
        let (Stored { mut runs, mut bytes }, limits) = (self.stored(), self.folder.limits());
        let last = self.runs.last_key_value().map(|(&last, _)| last);
        let may_go = |run: &RunId| !self.live.contains_key(run) && Some(*run) != last;
        let old: Vec<RunId> = self.runs.keys().copied().filter(may_go).take(PRUNED_MAX).collect();
        for run in old {
            if runs <= limits.runs_max && bytes <= limits.bytes_max {
                break;
            }
            // One that cannot be removed keeps no other.
            if self.folder.remove(run) {
                let cached = self.runs.remove(&run);
                bytes = bytes.saturating_sub(cached.map_or(0, |cached| cached.bytes));
                runs -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
