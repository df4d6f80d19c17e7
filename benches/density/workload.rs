//! The clones: lighter guests with the built-in workload.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::settings::{Case, Settings};
use support::bench::interruption;
use support::bench::program::{Run, lighter};

/// Share of each clone's pages that belong to the image, in percent; the pages that are neither
/// that nor zero are the guest's own.
pub(crate) const IMAGE_PERCENT: u64 = 35;
/// Hot guests write to one page in this many per second, anywhere in their memory.
pub(crate) const HOT_PAGES_PER_WRITE: u64 = 5;
/// Read rate of read-hot guests, in pages per second: more than any CPU manages, so that they read
/// as fast as they can.
const READ_RATE: u64 = 1_000_000_000;

/// Limit for a guest to fill its memory, or to check it.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const PAGES_PER_MIB: u64 = 256;

/// The activity of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heat {
    /// Writes all over its memory.
    Hot,
    /// Reads all over its memory, and writes nothing.
    ReadHot,
    /// Writes nothing, and reads 10,000 pages per second.
    Idle,
}

/// A clone, reached through the API of its process.
#[derive(Debug)]
pub(crate) struct Clone {
    socket: PathBuf,
    name: String,
}

impl Clone {
    /// Starts a clone in the state folder `state`; it then fills its memory.
    ///
    /// # Errors
    /// If lighter cannot start it.
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

    /// Waits until the clone's memory is filled.
    ///
    /// # Errors
    /// If it is not filled in time.
    pub(crate) fn await_work(&self) -> Result<()> {
        self.wait_for("it fills its memory", |report| report["phase"] == "working").map(drop)
    }

    /// Number of pages that the clone has read at random.
    ///
    /// # Errors
    /// If the clone does not answer.
    pub(crate) fn pages_read(&self) -> Result<u64> {
        self.ask("GET", None)?["pages_read"]
            .as_u64()
            .context("the workload does not say what it reads")
    }

    /// Starts a check of all the clone's memory; returns the number to pass to
    /// [`Self::await_check`].
    ///
    /// # Errors
    /// If the clone does not answer.
    pub(crate) fn begin_check(&self) -> Result<u64> {
        let checked = self.ask("PUT", Some(&json!({ "verify": true })))?;
        checked["verified_epoch"].as_u64().context("the workload says nothing of a check")
    }

    /// Waits until all the clone's memory is checked.
    ///
    /// # Errors
    /// If the check is not complete in time, or the memory is damaged.
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
