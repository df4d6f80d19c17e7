//! `lighter density apply`: starts a run and follows it to its end.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use memopt::history::{Run, RunEnd, RunId};
use memopt::plan::Plan;
use memopt::service::DensityStatus;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::plan::{INSPECTION_PATIENCE, SURVEY_PATIENCE};
use super::{answered, history, node, signed_size};
use crate::api::ApiClient;
use crate::cli::Output;
use crate::cli::density::ApplyArgs;
use crate::density::types::{PLAN_BYTES_MAX, PlanRequest, RunRequest, RunStarted};
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::verbs::follow::interrupts;
use crate::verbs::session::block_on;

/// Pause between two requests for a run that has just made progress. Each answer contains the whole
/// run, and a run spends most of its time waiting.
const POLL_PAUSE: Duration = Duration::from_millis(250);

/// The longest such pause, reached while the run makes no progress.
const POLL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pause of `--watch` between two checks for work.
const WATCH_PAUSE: Duration = Duration::from_secs(10);

/// Starts a run and follows it; with `--watch`, again and again.
///
/// # Errors
/// If no node answers, another run is under way, or the plan's file cannot be read.
pub(super) fn run(state: &StateDir, args: &ApplyArgs) -> Result<Exit> {
    let request = RunRequest { goal: args.options.goal, plan: plan(args)? };
    block_on(async {
        let client = node(state);
        let mut interrupts = interrupts()?;
        let output = args.json.output();
        if !args.watch {
            return one(&client, &request, output, &mut interrupts).await;
        }
        output::note("a run begins whenever there is something to do; Ctrl-C ends it");
        loop {
            if has_work(&client, &request).await? {
                let exit = one(&client, &request, output, &mut interrupts).await?;
                if exit != Exit::Done {
                    return Ok(exit);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_PAUSE) => {}
                _ = interrupts.recv() => return Ok(Exit::Cancelled),
            }
        }
    })
}

fn plan(args: &ApplyArgs) -> Result<Option<Plan>> {
    let Some(path) = &args.plan else { return Ok(None) };
    let name = path.display();
    let text = regular_file::read_text(path, PLAN_BYTES_MAX as u64)
        .with_context(|| format!("cannot read {name}"))?;
    parse(&text)
        .map(Some)
        .with_context(|| format!("{name} is not a plan: `lighter density plan --json` writes one"))
}

fn parse(text: &str) -> Result<Plan> {
    // Checked here: `null` would parse as no plan, and a run without a plan does whatever the
    // policy allows.
    let value: Value = serde_json::from_str(text)?;
    if !value.is_object() {
        bail!("it is not a JSON object");
    }
    Ok(serde_json::from_str(text)?)
}

/// Follows one run to its end.
async fn one(
    client: &ApiClient,
    request: &RunRequest,
    output: Output,
    interrupts: &mut UnboundedReceiver<()>,
) -> Result<Exit> {
    let patient = client.clone().with_patience(INSPECTION_PATIENCE);
    let RunStarted { run: id } = answered(patient.post("/v1/density/runs", request).await)?;
    if id == RunId::UNRECORDED {
        return unrecorded(client, interrupts).await;
    }
    let run = follow(client, id, output, interrupts).await?;
    match output {
        Output::Json => output::print_json(&run)?,
        Output::Text => output::print(history::text(&run, output::columns()))?,
    }
    Ok(match run.summary.outcome {
        Some(RunEnd::Cancelled) => Exit::Cancelled,
        Some(RunEnd::Failed) | None => Exit::Failed,
        Some(RunEnd::Reached | RunEnd::Exhausted | RunEnd::WindowOver) => Exit::Done,
    })
}

/// Waits for the run's end, and prints its steps meanwhile. Ctrl-C cancels it.
async fn follow(
    client: &ApiClient,
    id: RunId,
    output: Output,
    interrupts: &mut UnboundedReceiver<()>,
) -> Result<Run> {
    let (mut printed, mut pause) = (0, POLL_PAUSE);
    loop {
        let run: Run = answered(client.get(&run_path(id)).await)?;
        if output == Output::Text {
            for step in run.steps.iter().skip(printed) {
                let expected = signed_size(step.expected_bytes);
                output::note(format!("{} (expected: {expected})", step.action.action));
            }
        }
        pause = match run.steps.len() == printed {
            true => (pause * 2).min(POLL_PAUSE_MAX),
            false => POLL_PAUSE,
        };
        printed = run.steps.len();
        if run.summary.state.is_final() {
            return Ok(run);
        }
        wait(client, id, pause, interrupts).await;
    }
}

/// Waits for `pause`. Ctrl-C cancels the run; returns whether that happened.
async fn wait(
    client: &ApiClient,
    id: RunId,
    pause: Duration,
    interrupts: &mut UnboundedReceiver<()>,
) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => false,
        _ = interrupts.recv() => {
            // The run may have ended already; the next request shows that.
            let _cancelled: Result<RunStarted, _> = client.delete(&run_path(id)).await;
            true
        }
    }
}

fn run_path(id: RunId) -> String {
    format!("/v1/density/runs/{id}")
}

/// Waits for the end of a run without a history.
async fn unrecorded(client: &ApiClient, interrupts: &mut UnboundedReceiver<()>) -> Result<Exit> {
    output::note(
        "the run has begun, but no history is kept: the node's log says why, and what it does",
    );
    let mut is_called_off = false;
    loop {
        let status: DensityStatus = answered(client.get("/v1/density").await)?;
        if status.running != Some(RunId::UNRECORDED) {
            output::note("the run is over");
            return Ok(if is_called_off { Exit::Cancelled } else { Exit::Done });
        }
        is_called_off |= wait(client, RunId::UNRECORDED, POLL_PAUSE_MAX, interrupts).await;
    }
}

/// Whether a plan made now has any step.
async fn has_work(client: &ApiClient, request: &RunRequest) -> Result<bool> {
    let request = PlanRequest { goal: request.goal, survey: true, policy: None };
    let client = client.clone().with_patience(SURVEY_PATIENCE);
    let plan: Plan = answered(client.post("/v1/density/plan", &request).await)?;
    Ok(!plan.steps.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_plans_are_refused_with_a_message() {
        for text in ["[]", "null", "7"] {
            assert_eq!(parse(text).unwrap_err().to_string(), "it is not a JSON object", "{text}");
        }
        assert!(parse("{}").unwrap_err().to_string().contains("missing field"));
        assert!(parse("").is_err());
    }
}
