//! `lighter density history`: the past runs, or one of them.

use anyhow::Result;
use memopt::history::{Listing, Run, RunAction, Summary};
use migrate::quic::calendar_time;

use super::{answered, node, plan, signed_size};
use crate::cli::Output;
use crate::cli::density::HistoryArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts_within};
use crate::verbs::session::block_on;

/// Shows all runs, or one in detail.
///
/// # Errors
/// If no node answers, or there is no such run.
pub(super) fn run(state: &StateDir, args: &HistoryArgs) -> Result<Exit> {
    match args.run {
        Some(run) => one(state, args, run),
        None => all(state, args),
    }
}

fn all(state: &StateDir, args: &HistoryArgs) -> Result<Exit> {
    let path = format!("/v1/density/runs?count={}", args.count);
    let listing: Listing = block_on(async { answered(node(state).get(&path).await) })?;
    match args.json.output() {
        Output::Json => output::print_json(&listing)?,
        Output::Text => {
            output::print(table(&listing.runs, output::columns()))?;
            for run in &listing.unreadable {
                output::note(format!(
                    "run {run} cannot be read: see `lighter density history {run}`"
                ));
            }
        }
    }
    Ok(Exit::Done)
}

fn table(runs: &[Summary], screen: Option<usize>) -> String {
    let mut table =
        Table::new(&["RUN", "BEGUN BY", "STARTED", "STATE", "STEPS", "EXPECTED", "VERIFIED"]);
    for run in runs {
        table.row([
            run.id.to_string(),
            run.trigger.to_string(),
            calendar_time(run.started.cast_signed()),
            state_of(run),
            run.actions.to_string(),
            signed_size(run.expected_bytes),
            signed_size(run.verified_bytes),
        ]);
    }
    table.render_within(screen, &["STEPS", "EXPECTED", "BEGUN BY"])
}

/// Formats the state as in `done: goal reached`.
fn state_of(run: &Summary) -> String {
    match run.outcome {
        Some(end) => format!("{}: {end}", run.state),
        None => run.state.to_string(),
    }
}

fn one(state: &StateDir, args: &HistoryArgs, run: u64) -> Result<Exit> {
    let path = format!("/v1/density/runs/{run}");
    let run: Run = block_on(async { answered(node(state).get(&path).await) })?;
    match args.json.output() {
        Output::Json => output::print_json(&run)?,
        Output::Text => output::print(text(&run, output::columns()))?,
    }
    Ok(Exit::Done)
}

/// Formats all details of a run.
pub(super) fn text(run: &Run, screen: Option<usize>) -> String {
    let summary = &run.summary;
    let mut lines = vec![
        ("Run", summary.id.to_string()),
        ("Begun by", summary.trigger.to_string()),
        ("Started", calendar_time(summary.started.cast_signed())),
        ("State", state_of(summary)),
        ("Goal", run.plan.goal.to_string()),
        ("Expected", signed_size(summary.expected_bytes)),
        ("Verified", signed_size(summary.verified_bytes)),
    ];
    lines.extend(summary.errors.iter().map(|error| ("Error", error.clone())));
    let mut text = facts_within(&lines, screen);
    if run.steps.is_empty() {
        text.push('\n');
        text.push_str(&plan::text(&run.plan, screen));
        return text;
    }
    let mut table = Table::new(&["STEP", "EXPECTED", "VERIFIED", "WHY"]);
    for step in &run.steps {
        table.row(row(step));
    }
    text.push('\n');
    text.push_str(&table.render_within(screen, &[]));
    text
}

fn row(step: &RunAction) -> [String; 4] {
    let verified = step.verified_bytes.map_or_else(|| "-".to_owned(), signed_size);
    let reason = &step.action.reason;
    let why = match &step.error {
        Some(error) => format!("{reason}; {error}"),
        None => reason.clone(),
    };
    [step.action.action.to_string(), signed_size(step.expected_bytes), verified, why]
}
