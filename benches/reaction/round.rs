//! One run: the guest reads, its balloon is inflated, it reads again, and the node has to notice.

use std::time::{Duration, Instant};

use super::linux::{ALL_BYTES, Linux};
use support::{Host, NodePlan, wait};

/// Leaves the guest half of what its cache needs. A fault that waits for the disk takes 40 ms and
/// more where KVM emulates the guest's kernel: there are 12 to 20 per second, and the default
/// policy takes a hundred for memory pressure. Here it is four. While the driver inflates the
/// balloon, which takes half a minute, it does not answer requests: that must not end the squeeze
/// before the guest reads.
const POLICY: &str = r#"
goal = "max density"
actuators = ["balloon"]
[balloon]
dead-band-min = "2MiB"
reserve-min = "8MiB"
reserve = "10%"
floor = "10%"
step = "50%"
timeout = "5m"
[pressure]
major-faults = 4
"#;
/// The node's log message when it returns memory to a guest under memory pressure.
const PRESSURE: &str = "under memory pressure: ";
/// How long the node monitors the guest before anything happens.
const QUIET: Duration = Duration::from_secs(3);
/// Limit of the node's reaction.
const PATIENCE: Duration = Duration::from_secs(60);

/// The measurements of a run.
#[derive(Debug)]
pub(crate) struct Round {
    /// Pages per second that the guest reads while its cache holds all of them.
    pub(crate) at_ease: f64,
    /// Pages per second that the guest reads from its beginning until its balloon's target was
    /// raised.
    pub(crate) under_pressure: f64,
    /// The reason in the node's log.
    pub(crate) cause: String,
    /// Time from the guest's beginning to read until its balloon's target was all its memory.
    pub(crate) raise_time: Duration,
    /// Time from the guest's beginning to read until its balloon was empty.
    pub(crate) empty: Duration,
}

/// One of the guest's lines, ten of which it prints per second: the time since it began, by its own
/// clock, and the number of pages that it has read since.
#[derive(Debug, Clone, Copy)]
struct Sample {
    time: Duration,
    pages: f64,
}

/// Executes one run with a guest that has just booted.
pub(crate) fn play(host: &mut Host, linux: &Linux) -> Round {
    linux.type_letter('M');
    linux.await_text("cached ends", 1);
    let at_ease = median(&paces(&samples(&linux.said())));
    std::fs::write(host.state_dir().join("lighter.toml"), POLICY).expect("a file");
    host.start_node(&NodePlan::default());
    linux.await_squeeze(host);
    std::thread::sleep(QUIET);
    assert!(!host.logs().contains(PRESSURE), "no memory pressure yet: {}", host.logs());

    linux.type_letter('m');
    linux.await_text("cached begins", 2);
    let start = Instant::now();
    let cause = wait::within(PATIENCE, "the node notices", || {
        let logs = host.logs();
        let cause = logs.split(PRESSURE).nth(1).and_then(|rest| rest.split(" step=").next());
        cause.map(str::to_owned).ok_or(logs)
    });
    let raise_time = start.elapsed();
    linux.await_actual(ALL_BYTES);
    let empty = start.elapsed();
    linux.await_text("cached ends", 2);
    host.kill_node();

    let under_pressure = until(&samples(&linux.said()), raise_time);
    Round { at_ease, under_pressure, cause, raise_time, empty }
}

/// The guest's lines since it last began to read.
fn samples(said: &str) -> Vec<Sample> {
    let last = said.rsplit("cached begins").next().unwrap_or_default();
    let sample = |line: &str| {
        let fields = line.trim().strip_prefix("cached pages=")?;
        let (pages, us) = fields.split_once(" us=")?;
        Some(Sample { time: Duration::from_micros(us.parse().ok()?), pages: pages.parse().ok()? })
    };
    last.lines().filter_map(sample).collect()
}

/// Pages per second between each two consecutive samples.
fn paces(samples: &[Sample]) -> Vec<f64> {
    let pace = |pair: &[Sample]| {
        let time = (pair[1].time - pair[0].time).as_secs_f64();
        (pair[1].pages - pair[0].pages) / time.max(1e-6)
    };
    samples.windows(2).map(pace).collect()
}

/// Pages per second from the beginning until the first sample at or after `time`.
fn until(samples: &[Sample], time: Duration) -> f64 {
    let last = samples.iter().find(|sample| sample.time >= time);
    last.map_or(0.0, |sample| sample.pages / sample.time.as_secs_f64())
}

fn median(paces: &[f64]) -> f64 {
    let mut sorted = paces.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
