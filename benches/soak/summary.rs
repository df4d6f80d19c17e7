//! The figures of a soak.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use serde_json::Value;

use super::actions::Performed;
use super::stage::Side;
use super::story::{Kind, caught};

/// The runs of one host's schedule.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    done: u64,
    interrupted: u64,
    others: u64,
    actions: u64,
    verified_bytes: i64,
    /// The errors of the runs, with their numbers.
    errors: BTreeMap<String, u64>,
}

impl Runs {
    /// Counts a run from the density history.
    pub(crate) fn add(&mut self, run: &Value) {
        let is_ours = run["trigger"]["schedule"]["name"] == "soak";
        match run["state"].as_str() {
            Some("done") if is_ours => self.done += 1,
            Some("interrupted") if is_ours => self.interrupted += 1,
            _ => self.others += 1,
        }
        self.actions += run["actions"].as_u64().expect("a count");
        self.verified_bytes += run["verified_bytes"].as_i64().expect("a size");
        for error in run["errors"].as_array().expect("a list") {
            *self.errors.entry(error.as_str().expect("a text").to_owned()).or_default() += 1;
        }
    }

    /// Asserts that there was about one run per minute, and that only runs whose node was killed
    /// are interrupted.
    ///
    /// # Panics
    /// If that is not so.
    pub(crate) fn are_enough(&self, time: Duration, kills: u64) {
        let minutes = time.as_secs() / 60;
        let all = self.done + self.interrupted;
        assert!(all * 4 >= (minutes - 1) * 3, "{all} runs in {minutes} minutes: {self:#?}");
        assert!(all <= minutes + 2, "{all} runs in {minutes} minutes: {self:#?}");
        assert!(self.interrupted <= kills, "interrupted, and the node was not killed: {self:#?}");
        assert_eq!(self.others, 0, "runs of nobody: {self:#?}");
    }
}

/// The results of the whole soak.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// How long the soak lasted.
    pub(crate) time: Duration,
    /// The failures, each with what was being done.
    pub(crate) failures: Vec<String>,
    /// The runs of each host.
    pub(crate) runs: Vec<Runs>,
    /// The resource usage of the nodes.
    pub(crate) nodes: Option<[String; 2]>,
    actions: BTreeMap<Kind, u64>,
    refused: u64,
}

impl Summary {
    /// Counts an action and whether it was refused.
    pub(crate) fn count(&mut self, kind: Kind, done: &Performed) {
        *self.actions.entry(kind).or_default() += 1;
        self.refused += u64::from(done.is_refused);
    }

    /// Calls `act` and records a panic as a failure.
    pub(crate) fn guarded<T>(&mut self, what: &str, act: impl FnOnce() -> T) -> Option<T> {
        caught(act).map_err(|failure| self.failures.push(format!("{what}: {failure}"))).ok()
    }

    /// How often a node was killed.
    pub(crate) fn kills(&self) -> u64 {
        self.of(Kind::KillNode)
    }

    fn of(&self, kind: Kind) -> u64 {
        self.actions.get(&kind).copied().unwrap_or_default()
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | how much |\n| --- | --- |")?;
        writeln!(f, "| minutes | {:.1} |", self.time.as_secs_f64() / 60.0)?;
        for (kind, count) in &self.actions {
            writeln!(f, "| {kind} | {count} |")?;
        }
        writeln!(f, "| migrations | {} |", self.of(Kind::Move) + self.of(Kind::MoveAndPause))?;
        writeln!(f, "| refused by design | {} |", self.refused)?;
        for (side, runs) in Side::ALL.iter().zip(&self.runs) {
            let Runs { done, interrupted, actions, verified_bytes, .. } = runs;
            let mib = *verified_bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "| runs of {side:?} | {done} done, {interrupted} interrupted; {actions} actions, {mib:.1} MiB verified |"
            )?;
            for (error, count) in &runs.errors {
                writeln!(f, "| errors in runs of {side:?} | {count} times: {error} |")?;
            }
        }
        for (side, node) in Side::ALL.iter().zip(self.nodes.iter().flatten()) {
            writeln!(f, "| node of {side:?} | {node} |")?;
        }
        if self.failures.is_empty() {
            return writeln!(f, "\nsoak: held");
        }
        for failure in &self.failures {
            writeln!(f, "\nfailed: {failure}")?;
        }
        Ok(())
    }
}
