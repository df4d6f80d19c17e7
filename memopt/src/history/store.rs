//! The history itself. See [`History`].

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    AccessGuard, Database, ReadTransaction, ReadableDatabase as _, ReadableTable,
    ReadableTableMetadata as _, StorageError, WriteTransaction,
};

use super::draft::{Draft, end_interrupted, keep_tick, take_id, too_large};
use super::error::{Fault, HistoryError};
use super::json::{from_json, summary, to_json};
use super::limits::{ERROR_CHARS_MAX, ERRORS_MAX, LISTED_MAX, Limits};
use super::retention::prune;
use super::run::{Deed, Listing, Payloads, Run, RunId, State};
use super::tables::{self, DEEDS, HEADS, Head, META, META_BYTES, PLANS, TICKS, guarded};
use crate::schedule::Trigger;

/// Every run of a host, in one file.
///
/// Each call is one transaction: when it returns it is on disk as a whole, and when it fails
/// nothing of it is. After an error that speaks of the file ([`HistoryError::Full`],
/// [`HistoryError::Damaged`], [`HistoryError::Io`]) it is closed, and has to be opened again. Calls
/// wait for the disk.
pub struct History<P> {
    path: PathBuf,
    limits: Limits,
    /// Absent once it was closed for an error.
    database: Option<Database>,
    payloads: PhantomData<fn() -> P>,
}

/// A history that has been opened.
#[derive(Debug)]
pub struct Opened<P> {
    /// The history.
    pub history: History<P>,
    /// Runs that somebody died over; they are [`State::Interrupted`] now.
    pub interrupted: Vec<RunId>,
    /// Whether the disk did not keep the file as it was written. It is whole again; what was put
    /// down last may be missing.
    pub was_repaired: bool,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Runs.
    pub runs: u64,
    /// Bytes of their plans and actions.
    pub bytes: u64,
}

/// What was found out about an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The action's place in its run, from 0.
    pub index: u32,
    /// What came back, in bytes; absent when that cannot be said.
    pub verified_bytes: Option<i64>,
    /// Why it did not work.
    pub error: Option<String>,
}

impl Found {
    /// The action at `index` did not work.
    pub fn failed(index: u32, error: &str) -> Self {
        Self { index, verified_bytes: None, error: Some(error.to_owned()) }
    }
}

impl<P> fmt::Debug for History<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<P: Payloads> History<P> {
    /// Opens the history at `path`, or begins one where there is no file.
    ///
    /// # Errors
    /// Another process has it, it is damaged or of another format, or the system refuses. The file
    /// stays then, to be looked at.
    pub fn open(path: &Path, limits: Limits) -> Result<Opened<P>, HistoryError> {
        let (database, was_repaired) = tables::open(path, &limits)?;
        let path = path.to_owned();
        let mut history = Self { path, limits, database: Some(database), payloads: PhantomData };
        let interrupted = history.write(|path, write, _| {
            tables::prepare(path, write)?;
            end_interrupted(write)
        })?;
        Ok(Opened { history, interrupted, was_repaired })
    }

    /// Puts down a run that begins at `started` (Unix seconds), and throws away what is too old.
    ///
    /// # Errors
    /// The plan is too large, or the file's.
    pub fn begin(
        &mut self,
        trigger: Trigger,
        started: u64,
        plan: &P::Plan,
    ) -> Result<RunId, HistoryError> {
        let plan = to_json("a plan", plan, self.limits.plan_bytes_max)?;
        self.write(|_, write, limits| {
            let id = take_id(write)?;
            if let Trigger::Schedule { name, tick } = &trigger {
                keep_tick(write, name, *tick)?;
            }
            let head = Head {
                trigger,
                started,
                ended: None,
                state: State::Planned,
                actions: 0,
                expected_bytes: 0,
                verified_bytes: 0,
                outcome: None,
                errors: Vec::new(),
                bytes: 0,
            };
            let mut draft = Draft { write, limits, id: RunId(id), head };
            draft.grow(plan.len())?;
            write.open_table(PLANS)?.insert(id, plan.as_slice())?;
            draft.save()?;
            prune(write, limits)?;
            Ok(RunId(id))
        })
    }

    /// Puts down another plan for a run, which was made after a closer look.
    ///
    /// # Errors
    /// There is no such run, it has ended, the plan is too large, or the file's.
    pub fn plan_anew(&mut self, run: RunId, plan: &P::Plan) -> Result<(), HistoryError> {
        let plan = to_json("a plan", plan, self.limits.plan_bytes_max)?;
        self.write(|_, write, limits| {
            let mut draft = Draft::of(write, limits, run)?;
            let mut plans = write.open_table(PLANS)?;
            let before = plans.get(run.0)?.map_or(0, |plan| plan.value().len());
            draft.grow(plan.len().saturating_sub(before))?;
            plans.insert(run.0, plan.as_slice())?;
            draft.save()
        })
    }

    /// Puts down actions that are about to be carried out, each with the bytes that are expected of
    /// it; returns the place of the first.
    ///
    /// # Errors
    /// There is no such run, it has ended, it has too many actions, one is too large, or the
    /// file's.
    pub fn act(&mut self, run: RunId, actions: &[(P::Action, i64)]) -> Result<u32, HistoryError> {
        let part_bytes_max = self.limits.part_bytes_max;
        let deeds = actions.iter().map(|(action, expected_bytes)| {
            let (expected_bytes, verified_bytes, error) = (*expected_bytes, None, None);
            let deed = Deed { action, expected_bytes, verified_bytes, error };
            Ok((to_json("an action", &deed, part_bytes_max)?, expected_bytes))
        });
        let deeds = deeds.collect::<Result<Vec<_>, HistoryError>>()?;
        self.write(|_, write, limits| {
            let mut draft = Draft::of(write, limits, run)?;
            let mut table = write.open_table(DEEDS)?;
            let first = draft.head.actions;
            for (json, expected_bytes) in &deeds {
                if draft.head.actions == limits.actions_max {
                    return Err(too_large("a run", format!("{} actions", limits.actions_max)));
                }
                draft.grow(json.len())?;
                table.insert((run.0, draft.head.actions), json.as_slice())?;
                draft.head.actions += 1;
                draft.head.expected_bytes =
                    draft.head.expected_bytes.saturating_add(*expected_bytes);
            }
            draft.head.state = State::Acting;
            draft.save()?;
            Ok(first)
        })
    }

    /// Puts down what was found out about actions.
    ///
    /// # Errors
    /// There is no such run or action, the run has ended, or the file's.
    pub fn verify(&mut self, run: RunId, found: &[Found]) -> Result<(), HistoryError> {
        self.write(|_, write, limits| {
            let mut draft = Draft::of(write, limits, run)?;
            let mut table = write.open_table(DEEDS)?;
            for Found { index, verified_bytes, error } in found {
                let key = (run.0, *index);
                let missing = || Fault::Wanted(HistoryError::NoSuchAction { run, index: *index });
                let old = table.get(key)?.ok_or_else(missing)?.value().to_vec();
                let mut deed: Deed<serde_json::Value> = from_json("an action", run, &old)?;
                let before = deed.verified_bytes.unwrap_or_default();
                let delta = verified_bytes.unwrap_or_default().saturating_sub(before);
                draft.head.verified_bytes = draft.head.verified_bytes.saturating_add(delta);
                deed.verified_bytes = *verified_bytes;
                deed.error = error.as_deref().map(cut);
                let new = to_json("an action", &deed, usize::MAX).map_err(Fault::Wanted)?;
                draft.grow(new.len().saturating_sub(old.len()))?;
                table.insert(key, new.as_slice())?;
            }
            draft.head.state = State::Verifying;
            draft.save()
        })
    }

    /// Puts down what went wrong with a run. Of very many errors the last are left out, and so is
    /// what is too long of one.
    ///
    /// # Errors
    /// There is no such run, it has ended, or the file's.
    pub fn note_error(&mut self, run: RunId, error: &str) -> Result<(), HistoryError> {
        self.write(|_, write, limits| {
            let mut draft = Draft::of(write, limits, run)?;
            if draft.head.errors.len() < ERRORS_MAX {
                draft.head.errors.push(cut(error));
            }
            draft.save()
        })
    }

    /// Puts down that a run has come to its end at `ended` (Unix seconds).
    ///
    /// # Errors
    /// There is no such run, it has ended before, the outcome is too large, or the file's.
    pub fn finish(
        &mut self,
        run: RunId,
        ended: u64,
        outcome: &P::Outcome,
    ) -> Result<(), HistoryError> {
        let outcome = to_json("an outcome", outcome, self.limits.part_bytes_max)?;
        self.write(|_, write, limits| {
            let mut draft = Draft::of(write, limits, run)?;
            draft.head.outcome = Some(from_json("an outcome", run, &outcome)?);
            draft.head.ended = Some(ended);
            draft.head.state = State::Done;
            draft.save()?;
            prune(write, limits)
        })
    }

    /// The last `count` runs, at most a thousand.
    ///
    /// # Errors
    /// The file's.
    pub fn last(&mut self, count: usize) -> Result<Listing<P::Outcome>, HistoryError> {
        self.list(count, |_| true)
    }

    /// The runs that began at `unix_seconds` or later; of more than a thousand, the last ones.
    ///
    /// # Errors
    /// The file's.
    pub fn since(&mut self, unix_seconds: u64) -> Result<Listing<P::Outcome>, HistoryError> {
        self.list(LISTED_MAX, |head| head.started >= unix_seconds)
    }

    /// One whole run.
    ///
    /// # Errors
    /// There is no such run, another version wrote it, or the file's.
    pub fn run(&mut self, run: RunId) -> Result<Run<P>, HistoryError> {
        self.read(|read| {
            let heads = read.open_table(HEADS)?;
            let head = heads.get(run.0)?.ok_or(Fault::Wanted(HistoryError::NoSuchRun(run)))?;
            let summary = summary(run, head.value())?;
            let plan = read.open_table(PLANS)?.get(run.0)?;
            let plan = plan.ok_or(Fault::Wanted(HistoryError::NoSuchRun(run)))?;
            let plan = from_json("the plan", run, plan.value())?;
            let table = read.open_table(DEEDS)?;
            let mut deeds = Vec::new();
            for entry in table.range((run.0, 0)..=(run.0, u32::MAX))? {
                deeds.push(from_json("an action", run, entry?.1.value())?);
            }
            Ok(Run { summary, plan, deeds })
        })
    }

    /// Puts down that a schedule was decided on up to a time (Unix seconds) at which it did not
    /// run, so that the next scheduler decides on later ones alone.
    ///
    /// # Errors
    /// The file's.
    pub fn note_decided(&mut self, schedule: &str, tick: u64) -> Result<(), HistoryError> {
        self.write(|_, write, _| keep_tick(write, schedule, tick))
    }

    /// The last time of each schedule at which it ran or is known not to have run, by its name, in
    /// Unix seconds: what a [`crate::schedule::Scheduler`] begins with.
    ///
    /// # Errors
    /// The file's.
    pub fn last_ticks(&mut self) -> Result<BTreeMap<String, u64>, HistoryError> {
        self.read(|read| {
            let ticks = read.open_table(TICKS)?;
            let named =
                |entry: Result<(AccessGuard<'_, &str>, AccessGuard<'_, u64>), StorageError>| {
                    let (name, tick) = entry?;
                    Ok((name.value().to_owned(), tick.value()))
                };
            ticks.iter()?.map(named).collect()
        })
    }

    /// How much there is.
    ///
    /// # Errors
    /// The file's.
    pub fn stored(&mut self) -> Result<Stored, HistoryError> {
        self.read(|read| {
            let runs = read.open_table(HEADS)?.len()?;
            let bytes = read.open_table(META)?.get(META_BYTES)?.map_or(0, |bytes| bytes.value());
            Ok(Stored { runs, bytes })
        })
    }

    /// The last runs that `wanted` picks.
    fn list(
        &mut self,
        count: usize,
        wanted: impl Fn(&Head) -> bool,
    ) -> Result<Listing<P::Outcome>, HistoryError> {
        self.read(|read| {
            let mut listing = Listing::default();
            for entry in read.open_table(HEADS)?.iter()?.rev() {
                if listing.runs.len() >= count.min(LISTED_MAX) {
                    break;
                }
                let (id, head) = entry?;
                let id = RunId(id.value());
                if serde_json::from_slice(head.value()).is_ok_and(|head| !wanted(&head)) {
                    continue;
                }
                match summary(id, head.value()) {
                    Ok(summary) => listing.runs.push(summary),
                    Err(_) if listing.unreadable.len() == LISTED_MAX => break,
                    Err(_) => listing.unreadable.push(id),
                }
            }
            Ok(listing)
        })
    }

    fn read<T>(
        &mut self,
        body: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, HistoryError> {
        self.with(|_, database, _| body(&database.begin_read()?))
    }

    fn write<T>(
        &mut self,
        body: impl FnOnce(&Path, &WriteTransaction, &Limits) -> Result<T, Fault>,
    ) -> Result<T, HistoryError> {
        self.with(|path, database, limits| {
            let write = database.begin_write()?;
            let done = body(path, &write, limits)?;
            write.commit()?;
            Ok(done)
        })
    }

    /// Calls the store, and closes it after an error that it cannot be used after.
    fn with<T>(
        &mut self,
        body: impl FnOnce(&Path, &Database, &Limits) -> Result<T, Fault>,
    ) -> Result<T, HistoryError> {
        let Some(database) = &self.database else {
            return Err(HistoryError::Closed { path: self.path.clone() });
        };
        let result = guarded(&self.path, || body(&self.path, database, &self.limits));
        if result.as_ref().is_err_and(HistoryError::is_fatal) {
            self.close();
        }
        result
    }
}

impl<P> History<P> {
    /// Closes the file. The store may panic over what is damaged.
    fn close(&mut self) {
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

impl<P> Drop for History<P> {
    fn drop(&mut self) {
        self.close();
    }
}

fn cut(error: &str) -> String {
    error.chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
