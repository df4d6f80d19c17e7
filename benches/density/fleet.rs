//! All guests of one turn: started in the same way for every contender, and ended when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figures;
use super::linux::{LinuxGuest, SavedGuests};
use super::reads::{Sample, vcpu_seconds};
use super::settings::{Case, Settings};
use super::workload::{Clone, Heat};
use support::bench::program::{Run, lighter};
use support::bench::usage;

/// Part of the name of lighter's vCPU threads.
const VCPU_MARK: &str = "vcpu";
/// The lowest priority above idle work (setpriority(2)).
const NICE: i32 = 19;

/// All guests of one turn.
pub(crate) struct Fleet {
    state: PathBuf,
    names: Vec<String>,
    clones: Vec<Clone>,
    linux: Vec<LinuxGuest>,
    pids: Vec<u32>,
    /// Indices into `pids`, which has the clones first, then the Linux guests.
    hot: Vec<usize>,
    readers: Vec<usize>,
}

impl Fleet {
    /// Starts the guests in the state folder `state`, the hot ones first, and waits until all
    /// memory is filled.
    ///
    /// # Errors
    /// If they do not start.
    pub(crate) fn start(
        state: &Path,
        case: Case,
        settings: &Settings,
        saved: &SavedGuests,
    ) -> Result<Self> {
        let mut fleet = Self {
            state: state.to_owned(),
            names: Vec::new(),
            clones: Vec::new(),
            linux: Vec::new(),
            pids: Vec::new(),
            hot: (0..settings.hot(case)).collect(),
            readers: settings.readers(case),
        };
        let clones = settings.clones(case);
        for number in 0..clones {
            let heat = match number {
                _ if fleet.hot.contains(&number) => Heat::Hot,
                _ if fleet.readers.contains(&number) => Heat::ReadHot,
                _ => Heat::Idle,
            };
            let name = format!("clone-{}", number + 1);
            fleet.clones.push(Clone::start(state, &name, heat, case, settings)?);
            fleet.names.push(name);
        }
        for (name, guest) in saved.restore(state)? {
            fleet.linux.push(guest);
            fleet.names.push(name);
        }
        fleet.clones.iter().try_for_each(Clone::await_work)?;
        fleet.pids = fleet.names.iter().map(|name| pid(state, name)).collect::<Result<_>>()?;
        fleet.pids.iter().take(clones).try_for_each(|pid| yield_to_others(*pid))?;
        for place in &fleet.readers {
            if let Some(guest) = place.checked_sub(clones) {
                fleet.linux[guest].read_for_ever()?;
            }
        }
        Ok(fleet)
    }

    /// The state folder, for a node to manage the guests.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The guests' cost at this point.
    ///
    /// # Errors
    /// If one of the processes is gone.
    pub(crate) fn figures(&self) -> Result<Figures> {
        Figures::take(&self.pids, &self.hot, &self.readers)
    }

    /// The number of pages that each read-hot guest has read so far.
    ///
    /// # Errors
    /// If one of them does not answer.
    pub(crate) fn reads(&mut self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for place in &self.readers {
            let pages = match place.checked_sub(self.clones.len()) {
                None => self.clones[*place].pages_read()?,
                Some(guest) => self.linux[guest].pages_read()?,
            };
            let vcpu_seconds = vcpu_seconds(self.pids[*place], VCPU_MARK)?;
            samples.push(Sample { pages, vcpu_seconds });
        }
        Ok(samples)
    }

    /// CPU seconds of the guests' processes so far, without their vCPUs.
    ///
    /// # Errors
    /// If one of the processes is gone.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let of = |pid: &u32| usage::cpu_seconds_without_vcpus(*pid, VCPU_MARK);
        self.pids.iter().map(of).sum()
    }

    /// Has each guest check all its memory.
    ///
    /// # Errors
    /// If a guest does not answer, or its memory is damaged.
    pub(crate) fn check(&mut self) -> Result<()> {
        let epochs = self.clones.iter().map(Clone::begin_check).collect::<Result<Vec<_>>>()?;
        for (clone, epoch) in self.clones.iter().zip(epochs) {
            clone.await_check(epoch)?;
        }
        self.linux.iter_mut().try_for_each(LinuxGuest::check)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = lighter(&self.state).args(["destroy", name]).run() {
                eprintln!("{name} may still run: {error:#}");
            }
        }
        let start = Instant::now();
        let is_there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        while self.pids.iter().any(is_there) && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn pid(state: &Path, name: &str) -> Result<u32> {
    let answer = lighter(state).args(["show", name, "--json"]).run()?;
    let shown: Value = serde_json::from_str(&answer)?;
    let pid = shown["pid"].as_u64().or_else(|| shown["guest"]["pid"].as_u64());
    u32::try_from(pid.context("`lighter show` tells no pid")?).context("pid")
}

/// Gives the vCPUs of a clone the lowest priority, because its workload never halts, as idle guests
/// do: they then get only CPU time that no other task wants, both within their process and on the
/// host, where each session has its share of the CPUs.
fn yield_to_others(pid: u32) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.contains(VCPU_MARK) {
            let thread: i32 = task.file_name().to_string_lossy().parse()?;
            let thread = rustix::process::Pid::from_raw(thread);
            rustix::process::setpriority_process(thread, NICE)?;
        }
    }
    let group = format!("/proc/{pid}/autogroup");
    if Path::new(&group).exists() {
        fs::write(&group, NICE.to_string()).with_context(|| format!("cannot write {group}"))?;
    }
    Ok(())
}
