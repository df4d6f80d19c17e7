//! How fast guests read that do nothing but read: breaking up their huge pages costs them time.
//!
//! The vCPUs of all guests share few CPUs, so that pages are counted for each second of CPU time of
//! the vCPU and not of the clock.

use std::fs;

use anyhow::{Context, Result, ensure};

/// What a guest has read so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Pages.
    pub(crate) pages: u64,
    /// CPU seconds of its vCPUs.
    pub(crate) vcpu_seconds: f64,
}

/// Pages for each CPU second of the vCPUs, of each guest that reads, between two samples.
pub(crate) fn paces(first: &[Sample], last: &[Sample]) -> Vec<f64> {
    let pace = |(first, last): (&Sample, &Sample)| {
        (last.pages - first.pages) as f64 / (last.vcpu_seconds - first.vcpu_seconds)
    };
    first.iter().zip(last).map(pace).collect()
}

/// `now` as a part of `before`: the mean over the guests.
pub(crate) fn part(before: &[f64], now: &[f64]) -> f64 {
    let parts = before.iter().zip(now).map(|(before, now)| now / before);
    parts.sum::<f64>() / before.len() as f64
}

/// CPU seconds so far of the threads of a process whose names hold `mark`: the first number of
/// their `schedstat`, in ns.
///
/// # Errors
/// There are none.
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
