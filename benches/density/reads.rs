//! The reading speed of guests that only read: splitting their huge pages slows them down.
//!
//! The vCPUs of all guests share few CPUs, so that pages are counted per second of the vCPU's CPU
//! time, not per second of real time.

use std::fs;

use anyhow::{Context, Result, ensure};

/// The pages that a guest has read so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Pages that the guest has read since it began.
    pub(crate) pages: u64,
    /// CPU seconds of the guest's vCPUs.
    pub(crate) vcpu_seconds: f64,
}

/// Pages per CPU second of the vCPUs, for each reading guest, between two samples.
pub(crate) fn paces(first: &[Sample], last: &[Sample]) -> Vec<f64> {
    let pace = |(first, last): (&Sample, &Sample)| {
        (last.pages - first.pages) as f64 / (last.vcpu_seconds - first.vcpu_seconds)
    };
    first.iter().zip(last).map(pace).collect()
}

/// `now` relative to `before`: the mean over the guests.
pub(crate) fn part(before: &[f64], now: &[f64]) -> f64 {
    let parts = before.iter().zip(now).map(|(before, now)| now / before);
    parts.sum::<f64>() / before.len() as f64
}

/// CPU seconds that the threads of a process whose names contain `mark` have used so far: the first
/// number of their `schedstat`, in ns.
///
/// # Errors
/// If there are no such threads, or they cannot be read.
pub(crate) fn vcpu_seconds(pid: u32, mark: &str) -> Result<f64> {
    let (mut threads, mut ns) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm")).unwrap_or_default().contains(mark) {
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let first = stat.split(' ').next().and_then(|number| number.parse::<u64>().ok());
            ns += first.context("a thread's schedstat has no number")?;
            threads += 1;
        }
    }
    ensure!(threads > 0, "process {pid} has no vCPU threads");
    Ok(ns as f64 / 1e9)
}
