//! The lines of a run's log, and the state of the run that they add up to.

use regular_file::log::Lines;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::HistoryError;
use super::limits::{ERROR_CHARS_MAX, ERRORS_MAX};
use super::run::{Run, RunAction, RunEnd, RunId, State, StepResult, Summary};
use crate::schedule::Trigger;

/// One line of the log: an event of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Entry {
    /// The run began: the first line of every log.
    Began(Beginning),
    /// The run has a new plan.
    Planned(Box<RawValue>),
    /// These actions are about to be executed.
    Acting(Vec<RunAction<Box<RawValue>>>),
    /// Results of actions.
    Found(Vec<StepResult>),
    /// An error of the run.
    Error(String),
    /// The run ended at `ended` (Unix seconds).
    Ended { ended: u64, outcome: RunEnd },
    /// The process that executed the run died, or lost its history.
    Interrupted,
}

/// The start of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Beginning {
    pub(super) trigger: Trigger,
    /// When the run began, in Unix seconds.
    pub(super) started: u64,
    pub(super) plan: Box<RawValue>,
}

/// A run as recorded in its log.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) beginning: Beginning,
    ended: Option<u64>,
    pub(super) state: State,
    pub(super) steps: Vec<RunAction<Box<RawValue>>>,
    outcome: Option<RunEnd>,
    errors: Vec<String>,
}

impl Record {
    pub(super) fn new(beginning: Beginning) -> Self {
        Self {
            beginning,
            ended: None,
            state: State::Planned,
            steps: Vec::new(),
            outcome: None,
            errors: Vec::new(),
        }
    }

    /// Replays the `lines` of a run's log. A crash can leave a torn line, which may be followed
    /// only by the entry that the run was interrupted.
    ///
    /// # Errors
    /// If the lines are damaged or inconsistent; the text says how.
    pub(super) fn replay(lines: &Lines) -> Result<Self, String> {
        let mut record: Option<Self> = None;
        let mut torn: Option<&str> = None;
        for line in lines.iter() {
            let line = match line {
                Ok(line) => line,
                Err(what) => {
                    torn = Some(what);
                    continue;
                }
            };
            let entry: Entry = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            if let Some(what) = torn.filter(|_| !matches!(entry, Entry::Interrupted)) {
                return Err(what.to_owned());
            }
            match (&mut record, entry) {
                (None, Entry::Began(beginning)) => record = Some(Self::new(beginning)),
                (Some(record), entry) => record.apply(entry).map_err(no_action)?,
                (None, _) => break,
            }
        }
        record.ok_or_else(|| torn.unwrap_or("its log does not say how it began").to_owned())
    }

    /// Applies one more entry.
    ///
    /// # Errors
    /// If the entry refers to an action that the run does not have; returns the index of that
    /// action and changes nothing.
    pub(super) fn apply(&mut self, entry: Entry) -> Result<(), u32> {
        match entry {
            Entry::Began(beginning) => *self = Self::new(beginning),
            Entry::Planned(plan) => self.beginning.plan = plan,
            Entry::Acting(steps) => {
                self.steps.extend(steps);
                self.state = State::Acting;
            }
            Entry::Found(found) => {
                let is_missing = |found: &&StepResult| found.index as usize >= self.steps.len();
                if let Some(missing) = found.iter().find(is_missing) {
                    return Err(missing.index);
                }
                for StepResult { index, verified_bytes, error } in found {
                    let step = &mut self.steps[index as usize];
                    (step.verified_bytes, step.error) = (verified_bytes, error);
                }
                self.state = State::Verifying;
            }
            Entry::Error(error) => self.errors.push(error),
            Entry::Ended { ended, outcome } => {
                (self.ended, self.outcome) = (Some(ended), Some(outcome));
                self.state = State::Done;
            }
            Entry::Interrupted => {
                (self.ended, self.outcome) = (None, None);
                self.state = State::Interrupted;
            }
        }
        Ok(())
    }

    /// Returns the entry for an error, or `None` when the run has too many already.
    pub(super) fn error(&self, error: &str) -> Option<Entry> {
        (self.errors.len() < ERRORS_MAX).then(|| Entry::Error(cut(error)))
    }

    /// Returns the run, numbered `id`, without its plan and its actions.
    pub(super) fn summary(&self, id: RunId) -> Summary {
        let sum = |bytes: fn(&RunAction<Box<RawValue>>) -> i64| {
            self.steps.iter().map(bytes).fold(0, i64::saturating_add)
        };
        Summary {
            id,
            trigger: self.beginning.trigger.clone(),
            started: self.beginning.started,
            ended: self.ended,
            state: self.state,
            actions: u32::try_from(self.steps.len()).unwrap_or(u32::MAX),
            expected_bytes: sum(|step| step.expected_bytes),
            verified_bytes: sum(|step| step.verified_bytes.unwrap_or_default()),
            outcome: self.outcome,
            errors: self.errors.clone(),
        }
    }

    /// Returns the whole run, numbered `id`.
    ///
    /// # Errors
    /// If another version wrote its plan or an action.
    pub(super) fn run(&self, id: RunId) -> Result<Run, HistoryError> {
        let plan = read("plan", id, &self.beginning.plan)?;
        let step = |step: &RunAction<Box<RawValue>>| {
            let action = read("action", id, &step.action)?;
            let (verified_bytes, error) = (step.verified_bytes, step.error.clone());
            Ok(RunAction { action, expected_bytes: step.expected_bytes, verified_bytes, error })
        };
        let steps = self.steps.iter().map(step).collect::<Result<_, HistoryError>>()?;
        Ok(Run { summary: self.summary(id), plan, steps })
    }
}

/// Encodes a value as JSON of at most `bytes_max` bytes.
///
/// # Errors
/// If the JSON is longer, or the value cannot be written as JSON.
pub(super) fn to_json(
    what: &'static str,
    value: &impl Serialize,
    bytes_max: usize,
) -> Result<Box<RawValue>, HistoryError> {
    let json = serde_json::value::to_raw_value(value);
    let json = json.map_err(|cause| HistoryError::Unwritable { what, cause })?;
    if json.get().len() > bytes_max {
        return Err(HistoryError::TooLarge { what, max: format!("{bytes_max} bytes") });
    }
    Ok(json)
}

/// The error text for a log that refers to an action that its run does not have.
fn no_action(index: u32) -> String {
    format!("it has no action {index}")
}

fn read<T: DeserializeOwned>(what: &str, run: RunId, json: &RawValue) -> Result<T, HistoryError> {
    serde_json::from_str(json.get())
        .map_err(|error| HistoryError::Unreadable { run, cause: format!("its {what}: {error}") })
}

/// Truncates an error text to the maximum length.
pub(super) fn cut(error: &str) -> String {
    error.chars().take(ERROR_CHARS_MAX).collect()
}
