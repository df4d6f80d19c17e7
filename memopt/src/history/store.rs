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
    runs: BTreeMap<RunId, Known>,
}

/// A run, as far as lists need it without its log.
#[derive(Debug)]
enum Known {
    /// It is under way.
    Live(Box<Live>),
    /// It is over; with the bytes of its log.
    Over(Box<Summary>, u64),
    /// It cannot be read; with the bytes of its log.
    Unreadable(u64),
}

impl Known {
    /// Bytes of its log.
    const fn bytes(&self) -> u64 {
        match self {
            Self::Live(live) => live.bytes(),
            Self::Over(_, bytes) | Self::Unreadable(bytes) => *bytes,
        }
    }

    /// All but its plan and its actions, if it, the run `id`, can be read.
    fn summary(&self, id: RunId) -> Option<Summary> {
        match self {
            Self::Live(live) => Some(live.record.summary(id)),
            Self::Over(summary, _) => Some((**summary).clone()),
            Self::Unreadable(_) => None,
        }
    }
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
            let (found, bytes) = folder.open_run(run)?;
            let known = match found {
                OnDisk::Over(record) => Known::Over(Box::new(record.summary(run)), bytes),
                OnDisk::LeftOpen(mut live) => {
                    // A crash may have come before it was kept.
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
            if let Trigger::Schedule { name, tick } = &live.record.beginning.trigger {
                open.ticks.keep(name, *tick)?;
            }
            open.runs.insert(run, Known::Live(Box::new(live)));
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
            let first = open.live_mut(run)?.0.record.deeds.len();
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
        self.with(|open| match open.live_mut(run)?.0.record.error(error) {
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
            let (live, folder) = open.live_mut(run)?;
            folder.add(run, live, Entry::Ended { ended, outcome })?;
            let over = Known::Over(Box::new(live.record.summary(run)), live.bytes());
            open.runs.insert(run, over);
            open.prune();
            Ok(())
        })
    }

    /// The last `count` runs, at most a thousand.
    ///
    /// # Errors
    /// The history is closed.
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

    /// One whole run.
    ///
    /// # Errors
    /// There is no such run, it cannot be read, or the history is closed.
    pub fn run(&mut self, run: RunId) -> Result<Run, HistoryError> {
        self.with(|open| match open.runs.get(&run) {
            Some(Known::Live(live)) => live.record.run(run),
            Some(_) => open.folder.read_run(run)?.run(run),
            None => Err(HistoryError::NoSuchRun(run)),
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
    /// The run, which is under way, and the folder that its log is in.
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

    /// Adds a line to a run that is under way.
    fn add(&mut self, run: RunId, entry: Entry) -> Result<(), HistoryError> {
        let (live, folder) = self.live_mut(run)?;
        folder.add(run, live, entry)
    }

    fn stored(&self) -> Stored {
        let bytes = self.runs.values().map(Known::bytes).sum();
        Stored { runs: self.runs.len() as u64, bytes }
    }

    /// Throws away the oldest runs while there are too many, or too large ones. Runs under way
    /// stay, and so does the last one: the number of the next one follows from it.
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
            // One that cannot be removed keeps no other.
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
