//! The last time of each schedule that was decided on. It outlives the runs.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use regular_file::log::{Lines, Log};

use super::error::HistoryError;
use crate::schedule::Trigger;

/// Most schedules of which the last time is remembered.
const SCHEDULES_MAX: usize = 256;
/// Length of the file, and the longest that is read, in bytes.
const ROOM_BYTES: usize = 16 << 10;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The last times in Unix seconds, by the schedule's name: a log, each line of which has all of
/// them, and the last one that is intact counts.
#[derive(Debug)]
pub(super) struct Ticks {
    log: Log,
    last: BTreeMap<String, u64>,
}

impl Ticks {
    /// Those in the log at `path`; none when there is no such file. It is written anew, so that a
    /// disk that has no room is known at once.
    ///
    /// # Errors
    /// It is damaged, or the system's.
    pub(super) fn open(path: &Path) -> Result<Self, HistoryError> {
        let last = match Lines::read(path, FILE_BYTES_MAX) {
            Ok(lines) => last_intact(&lines),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let last = last.map_err(|cause| HistoryError::Damaged { path: path.to_owned(), cause })?;
        let log = to_line(&last).and_then(|line| Log::create(path, &line, ROOM_BYTES));
        let log = log.map_err(|cause| HistoryError::of(folder_of(path), cause))?;
        Ok(Self { log, last })
    }

    /// Remembers that `schedule` was decided on up to `tick`; of too many schedules, another one
    /// that was decided on longest ago is forgotten.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn keep(&mut self, schedule: &str, tick: u64) -> Result<(), HistoryError> {
        self.last.insert(schedule.to_owned(), tick);
        if self.last.len() > SCHEDULES_MAX {
            let others = self.last.iter().filter(|(name, _)| *name != schedule);
            let oldest = others.min_by_key(|(_, tick)| **tick).map(|(name, _)| name.clone());
            self.last.retain(|name, _| Some(name) != oldest.as_ref());
        }
        let kept = to_line(&self.last).and_then(|line| self.log.append(&line));
        kept.map_err(|cause| HistoryError::of(folder_of(self.log.path()), cause))
    }

    /// As [`Self::keep`] for what a run was begun by, if nothing later was decided.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub(super) fn keep_later(&mut self, trigger: &Trigger) -> Result<(), HistoryError> {
        match trigger {
            Trigger::Schedule { name, tick } if self.last.get(name).is_none_or(|it| it < tick) => {
                self.keep(name, *tick)
            }
            _ => Ok(()),
        }
    }

    /// All of them.
    pub(super) const fn all(&self) -> &BTreeMap<String, u64> {
        &self.last
    }
}

fn to_line(last: &BTreeMap<String, u64>) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(last)?)
}

fn last_intact(lines: &Lines) -> Result<BTreeMap<String, u64>, String> {
    let last = lines.iter().rev().find_map(Result::ok).ok_or("no line of it is intact")?;
    serde_json::from_slice(last).map_err(|error| error.to_string())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
