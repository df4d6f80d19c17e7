//! `lighter density`: the state, plans, runs and history of memory optimization. The node does all
//! the work; these commands send requests and show the answers.
//!
//! Each command is a file; start at [`plan`].

mod apply;
mod history;
mod left_alone;
mod plan;
mod status;

use anyhow::{Context, Result};
use memopt::history::RunId;
use memopt::service::Agenda;
use migrate::quic::calendar_time;

use super::session::block_on;
use crate::api::{ApiClient, AskError};
use crate::cli::Output;
use crate::cli::density::{CancelRunArgs, DensityArgs, DensityVerb, NextArgs};
use crate::density::types::RunStarted;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::Table;

/// Runs one of the `lighter density` commands.
///
/// # Errors
/// If no node answers, or it refuses.
pub(crate) fn run(state: &StateDir, args: &DensityArgs) -> Result<Exit> {
    match &args.verb {
        DensityVerb::Status(args) => status::run(state, args),
        DensityVerb::Plan(args) => plan::run(state, args),
        DensityVerb::Apply(args) => apply::run(state, args),
        DensityVerb::History(args) => history::run(state, args),
        DensityVerb::Next(args) => next(state, args),
        DensityVerb::Cancel(args) => cancel(state, args),
    }
}

/// Returns a client of this host's node.
fn node(state: &StateDir) -> ApiClient {
    ApiClient::new(&state.client_socket())
}

/// Returns the node's answer, or an error that says what to do.
fn answered<T>(answer: Result<T, AskError>) -> Result<T> {
    match answer {
        Err(error) if error.is_gone() => Err(error).context(
            "no node serves this host: start it (`systemctl start lighter-node`, or \
                 `lighter node`)",
        ),
        Err(error) if error.is_forbidden() => Err(error).context(
            "permission denied: run as the node's user (root); `lighter --readonly` with \
                 density status, history and next works for all users",
        ),
        Err(error) if error.is_unanswered() => Err(error).context("no answer from the node"),
        answer => answer.context("the node refuses"),
    }
}

fn next(state: &StateDir, args: &NextArgs) -> Result<Exit> {
    let path = format!("/v1/density/next?count={}", args.count);
    let agenda: Agenda = block_on(async { answered(node(state).get(&path).await) })?;
    if let Some(error) = agenda.file_error {
        output::note(format!("not read, and what it said before holds: {error}"));
    }
    if let Some(run) = agenda.running {
        output::note(format!("run {run} is under way: see `lighter density history {run}`"));
    }
    match args.json.output() {
        Output::Json => output::print_json(&agenda.next)?,
        Output::Text if agenda.next.is_empty() => {
            output::note("nothing is scheduled: see [[schedule]] of lighter.toml");
        }
        Output::Text => {
            let mut table = Table::new(&["AT", "SCHEDULE", "GOAL"]);
            for run in &agenda.next {
                table.row([
                    calendar_time(run.at_unix_seconds.cast_signed()),
                    run.schedule.clone(),
                    run.goal.clone(),
                ]);
            }
            output::print(table.render_within(output::columns(), &[]))?;
        }
    }
    Ok(Exit::Done)
}

fn cancel(state: &StateDir, args: &CancelRunArgs) -> Result<Exit> {
    let RunStarted { run } = block_on(async {
        let node = node(state);
        let run = match args.run {
            Some(run) => RunId(run),
            None => answered(node.get::<Agenda>("/v1/density/next?count=0").await)?
                .running
                .context("no run is under way")?,
        };
        answered(node.delete(&format!("/v1/density/runs/{run}")).await)
    })?;
    output::note(format!(
        "run {run} ends after the step that it is at: see `lighter density history {run}`"
    ));
    Ok(Exit::Done)
}

/// Formats bytes that were freed or saved; negative if guests got memory back, or if merging costs
/// more than it saves: `-1.5 GiB`.
fn signed_size(bytes: i64) -> String {
    let size = crate::units::format_size(bytes.unsigned_abs());
    if bytes < 0 { format!("-{size}") } else { size }
}
