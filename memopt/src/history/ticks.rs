//! The last time that was decided on, for each schedule. It is kept longer than the runs.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use regular_file::log::{Lines, Log};

use super::error::HistoryError;
use crate::schedule::Trigger;

/// Maximum number of schedules whose last time is kept.
const SCHEDULES_MAX: usize = 256;
/// Size of the file in bytes, and the largest size that is read.
const ROOM_BYTES: usize = 16 << 10;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The last times in Unix seconds, by the schedule's name. They are stored in a log whose every
/// line holds all of them; the last intact line counts.
#[derive(Debug)]
pub(super) struct Ticks {
    log: Log,
    last: BTreeMap<String, u64>,
}

impl Ticks {
    /// Reads the log at `path`; without a file there are no times yet. The file is rewritten, so
    /// that a full disk is detected at once.
    ///
    /// # Errors
    /// If the file is damaged, or the file system fails.
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

    /// Records that `schedule` was decided on up to `tick`. If there are too many schedules,
    /// forgets the other one with the oldest time.
    ///
    /// # Errors
    /// If the file system fails.
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

    /// Like [`Self::keep`], for the schedule that started a run, unless a later time was decided
    /// on.
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

    /// Returns the last time of every schedule.
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
