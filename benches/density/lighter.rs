//! lighter's own turn: its node manages the guests, and is told to optimize their memory.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memopt::observe::{Sources, ksmd_time};
use memopt::policy::Policy;
use serde_json::Value;

use super::drive::{Allowance, Spent};
use super::fleet::Fleet;
use support::bench::interruption;
use support::bench::program::{Node, Run, lighter};
use support::bench::usage;

/// The same goals for which others drive ksmd: equal pages, including zeros; and huge pages.
const POLICY: &str = "goal = \"max density\"\nactuators = [\"merge\", \"huge\", \"zeros\"]\n";
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(20);

/// Has lighter's node optimize the guests once, with `ksmd_seconds` of CPU time for ksmd, or the
/// default. Returns what it used, also as an allowance for the others.
///
/// # Errors
/// If lighter fails.
pub(crate) fn optimize(fleet: &Fleet, ksmd_seconds: Option<u32>) -> Result<(Spent, Allowance)> {
    let state = fleet.state();
    lighter(state).args(["certs", "init", "localhost"]).run()?;
    let budget = ksmd_seconds.map(|seconds| format!("[merge]\ncpu-time = \"{seconds}s\"\n"));
    std::fs::write(state.join("lighter.toml"), POLICY.to_owned() + &budget.unwrap_or_default())?;
    let node = Node::start(state)?;
    await_policy(fleet)?;
    let sources = Sources::system();
    let ksmd = ksmd_time(&sources)?;
    let (guests, node_before) = (fleet.cpu_seconds()?, usage::cpu_seconds(node.pid())?);
    let begun = Instant::now();
    let run = apply(fleet)?;
    let spent = Spent {
        ksmd: ksmd_time(&sources)?.saturating_sub(ksmd).as_secs_f64(),
        sampling: fleet.cpu_seconds()? - guests,
        node: usage::cpu_seconds(node.pid())? - node_before,
        elapsed: begun.elapsed(),
    };
    drop(node);
    let (cpu_share, pages_per_second) = pace(&run);
    let cpu_seconds = spent.cpu_seconds();
    Ok((spent, Allowance { cpu_seconds, cpu_share, pages_per_second }))
}

/// The default pace of ksmd in a window, for runs in which lighter opened none.
pub(crate) fn usual_pace() -> (f64, u64) {
    let merge = Policy::default().merge;
    (merge.cpu, merge.pages_per_s)
}

/// The pace that lighter allowed ksmd in this run.
fn pace(run: &Value) -> (f64, u64) {
    let steps = run["steps"].as_array().into_iter().flatten();
    let actions = steps.map(|step| &step["action"]["action"]);
    let pace = |action: &Value| action["cpu"].as_f64().zip(action["pages_per_s"].as_u64());
    actions.filter_map(pace).next().unwrap_or_else(usual_pace)
}

fn await_policy(fleet: &Fleet) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let status = lighter(fleet.state()).args(["density", "status", "--json"]).run();
        if status.is_ok_and(|status| status.contains("max density")) {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
    anyhow::bail!("the node has not read its policy")
}

/// Runs `lighter density apply`, which Ctrl-C ends.
fn apply(fleet: &Fleet) -> Result<Value> {
    let mut command = lighter(fleet.state());
    command.args(["density", "apply", "--json"]);
    let output = fleet.state().join("run.json");
    let child = command
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&output)?)
        .spawn()
        .context("cannot start lighter")?;
    let mut child = Ended(child);
    loop {
        if let Some(status) = child.0.try_wait()? {
            ensure!(status.success(), "`lighter density apply` ended with {status}");
            return Ok(serde_json::from_slice(&std::fs::read(&output)?)?);
        }
        interruption::check()?;
        thread::sleep(POLL_INTERVAL);
    }
}

/// A process that is killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // In most cases the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
