//! The cost of a process in CPU and memory, from `/proc`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// `sysconf(_SC_CLK_TCK)` on x86 Linux, the unit of CPU times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: u64 = 1024;

/// CPU seconds that a process has used so far, including its threads that have ended.
///
/// # Errors
/// If there is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(stat_ticks(&process(pid).join("stat"))? as f64 / TICKS_PER_SECOND)
}

/// CPU seconds that a guest's process has used so far, without its vCPU threads (those whose names
/// contain `vcpu_mark`).
///
/// # Errors
/// If there is no such process, or its vCPU threads have ended: their time can then no longer be
/// separated from the rest.
pub fn cpu_seconds_without_vcpus(pid: u32, vcpu_mark: &str) -> Result<f64> {
    let all = stat_ticks(&process(pid).join("stat"))?;
    let mut vcpus = 0;
    let mut vcpu_ticks = 0;
    for task in fs::read_dir(process(pid).join("task"))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.contains(vcpu_mark) {
            vcpus += 1;
            vcpu_ticks += stat_ticks(&task.join("stat"))?;
        }
    }
    ensure!(vcpus > 0, "process {pid} has no vCPU threads");
    Ok(all.saturating_sub(vcpu_ticks) as f64 / TICKS_PER_SECOND)
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// User and system time, fields 14 and 15 of proc(5).
fn stat_ticks(path: &PathBuf) -> Result<u64> {
    let stat = fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    // The second field is the process name in parentheses, which may contain any character.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let user = next().with_context(|| format!("no user time in {path:?}"))?;
    let system = next().with_context(|| format!("no system time in {path:?}"))?;
    Ok(user + system)
}

/// Resident bytes of a process without its guest's memory: only mappings smaller than `guest_bytes`
/// count.
///
/// # Errors
/// If there is no such process.
pub fn overhead_bytes(pid: u32, guest_bytes: u64) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut overhead = 0;
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(value) = kib(line, "Size:") {
            size = value;
        } else if let Some(resident) = kib(line, "Rss:") {
            overhead += if size < guest_bytes { resident } else { 0 };
        }
    }
    Ok(overhead)
}

fn kib(line: &str, field: &str) -> Option<u64> {
    let value = line.strip_prefix(field)?.trim().strip_suffix(" kB")?;
    Some(value.parse::<u64>().ok()? * KIB)
}
