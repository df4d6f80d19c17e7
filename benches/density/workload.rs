//! The clones: guests of lighter's with the built-in workload.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::settings::{Case, Settings};
use support::bench::interruption;
use support::bench::program::{Run, lighter};

/// Share of each clone's pages that is the image's, percent; what is neither that nor zeros is the
/// guest's own.
pub(crate) const IMAGE_PERCENT: u64 = 35;
/// Hot guests write to one page in so many each second, anywhere in their memory.
pub(crate) const HOT_PAGES_PER_WRITE: u64 = 5;
/// Read-hot guests read as many pages each second as they can: more than any CPU does.
const READ_RATE: u64 = 1_000_000_000;

/// How long a guest may take to fill its memory, or to check it.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const PAGES_PER_MIB: u64 = 256;

/// What a clone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heat {
    /// Writes all over its memory.
    Hot,
    /// Reads all over its memory, and writes nothing.
    ReadHot,
    /// Writes nothing, and reads 10,000 pages a second.
    Idle,
}

/// A clone.
#[derive(Debug)]
pub(crate) struct Clone {
    socket: PathBuf,
    name: String,
}

impl Clone {
    /// Starts a clone in the state folder `state`; it fills its memory then.
    ///
    /// # Errors
    /// lighter does not start it.
    pub(crate) fn start(
        state: &Path,
        name: &str,
        heat: Heat,
        case: Case,
        settings: &Settings,
    ) -> Result<Self> {
        let pages_per_second = match heat {
            Heat::Hot => settings.memory_mib * PAGES_PER_MIB / HOT_PAGES_PER_WRITE,
            Heat::ReadHot | Heat::Idle => 0,
        };
        let reads = if heat == Heat::ReadHot { READ_RATE } else { 0 };
        let memory = format!("{}M", settings.memory_mib);
        lighter(state)
            .args(["run", "--detach", "--name", name, "--merge-domain", "clones"])
            .args(["--memory", &memory, "--hugepages", "thp"])
            .args(case.layout.options())
            .args(["--zero-share", &case.zero_percent.to_string()])
            .args(["--image-share", &IMAGE_PERCENT.to_string()])
            .args(["--dirty-rate", &pages_per_second.to_string()])
            .args(["--read-rate", &reads.to_string()])
            .args(["--working-set", &memory, "--write-order", "random"])
            .run()?;
        let socket = state.join("guests").join(name).join("api.sock");
        Ok(Self { socket, name: name.to_owned() })
    }

    /// Waits until its memory is filled.
    ///
    /// # Errors
    /// It is not in time.
    pub(crate) fn await_work(&self) -> Result<()> {
        self.wait_for("it fills its memory", |report| report["phase"] == "working").map(drop)
    }

    /// Pages that it has read at random.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn pages_read(&self) -> Result<u64> {
        self.ask("GET", None)?["pages_read"]
            .as_u64()
            .context("the workload does not say what it reads")
    }

    /// Begins to check all its memory; what [`Self::await_check`] waits for.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn begin_check(&self) -> Result<u64> {
        let told = self.ask("PUT", Some(&json!({ "verify": true })))?;
        told["verified_epoch"].as_u64().context("the workload says nothing of a check")
    }

    /// Waits until all its memory is checked.
    ///
    /// # Errors
    /// It is not in time, or its memory is not as it wrote it.
    pub(crate) fn await_check(&self, epoch: u64) -> Result<()> {
        let is_done = |report: &Value| report["verified_epoch"].as_u64() >= Some(epoch);
        let report = self.wait_for("it checks its memory", is_done)?;
        let is_intact = report["intact"] == true && report["bad_pages"] == 0;
        ensure!(is_intact, "the memory of {} is damaged: {report}", self.name);
        Ok(())
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            interruption::check()?;
            let report = self.ask("GET", None)?;
            if done(&report) {
                return Ok(report);
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("{} takes too long: {what}", self.name)
    }

    fn ask(&self, method: &str, body: Option<&Value>) -> Result<Value> {
        let answer = support::ask(&self.socket, method, "/v1/guest/workload", body)
            .with_context(|| format!("{} does not answer", self.name))?;
        answer.success().map_err(anyhow::Error::msg)
    }
}
