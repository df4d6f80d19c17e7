//! The memory and files of a node's process, soon after its start and at its end.

use std::fmt::{self, Display};
use std::fs;
use std::time::{Duration, Instant};

use support::Pid;

/// Growth beyond this is a leak.
const GROWTH_KIB_MAX: u64 = 32 << 10;
const GROWTH_FILES_MAX: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Usage {
    resident_kib: u64,
    files: usize,
}

impl Usage {
    fn of(pid: Pid) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.0)).expect("a live node");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let resident_kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let files = fs::read_dir(format!("/proc/{}/fd", pid.0)).expect("its files").count();
        Self { resident_kib, files }
    }
}

impl Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB and {} files", self.resident_kib as f64 / 1024.0, self.files)
    }
}

/// The resource usage of a node's process over its life.
#[derive(Debug)]
pub(crate) struct Life {
    pid: Pid,
    begun: Instant,
    warm_up: Duration,
    early: Option<Usage>,
}

impl Life {
    /// Creates the record of a process that has just started and needs `warm_up` until its usage is
    /// stable.
    pub(crate) fn of(pid: Pid, warm_up: Duration) -> Self {
        Self { pid, begun: Instant::now(), warm_up, early: None }
    }

    /// Returns the process's present usage, together with that after the warm-up.
    ///
    /// # Panics
    /// If the process has ended, or its usage has grown too much.
    pub(crate) fn check(&mut self) -> String {
        let now = Usage::of(self.pid);
        if self.begun.elapsed() < self.warm_up {
            return now.to_string();
        }
        let early = *self.early.get_or_insert(now);
        let has_grown = now.resident_kib > early.resident_kib + GROWTH_KIB_MAX
            || now.files > early.files + GROWTH_FILES_MAX;
        assert!(!has_grown, "the node {} leaks: {early} early, {now} now", self.pid.0);
        format!("{early} early, {now} at the end")
    }
}
