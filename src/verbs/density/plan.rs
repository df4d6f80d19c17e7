//! `lighter density plan`: shows the steps that a run would take now.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::plan::Plan;
use memopt::service::Settings;
use memopt::settings::FILE_BYTES_MAX;

use super::{answered, node, signed_size};
use crate::cli::Output;
use crate::cli::density::PlanArgs;
use crate::density::types::PlanRequest;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts};
use crate::units::{format_duration, format_size};
use crate::verbs::session::block_on;

/// How long the node may take to inspect the host's processes, which it does before it answers.
pub(super) const INSPECTION_PATIENCE: Duration = Duration::from_secs(90);

/// How long surveys of guests' pages may take: as long as a policy can allow.
pub(super) const SURVEY_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Shows the steps that a run would take.
///
/// # Errors
/// If no node answers, or the policy is invalid.
pub(super) fn run(state: &StateDir, args: &PlanArgs) -> Result<Exit> {
    let policy = args.policy.as_deref().map(policy).transpose()?;
    let (goal, survey) = (args.options.goal, args.survey);
    let request = PlanRequest { goal, policy, survey };
    if survey {
        output::note("the guests' pages are surveyed first");
    }
    let patience = if survey { SURVEY_PATIENCE } else { INSPECTION_PATIENCE };
    let client = node(state).with_patience(patience);
    let plan: Plan = block_on(async { answered(client.post("/v1/density/plan", &request).await) })?;
    match args.json.output() {
        Output::Json => output::print_json(&plan)?,
        Output::Text => output::print(text(&plan))?,
    }
    Ok(Exit::Done)
}

/// Reads a policy's file. It is checked here, since the node could not name the file in an error.
fn policy(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let text = regular_file::read_text(path, FILE_BYTES_MAX as u64)
        .with_context(|| format!("cannot read {name}"))?;
    Settings::parse(&text, &name)?;
    Ok(text)
}

/// Formats a plan for users.
pub(super) fn text(plan: &Plan) -> String {
    let wanted = plan.wanted_bytes.map_or_else(|| "as much as possible".to_owned(), format_size);
    let mut lines = vec![
        ("Goal", plan.goal.to_string()),
        ("Wanted", format!("{wanted} (the host is {})", plan.level)),
        ("Expected", signed_size(plan.expected_bytes)),
    ];
    if plan.later_bytes > 0 {
        lines.push(("Later", format!("up to {} in rounds to come", format_size(plan.later_bytes))));
    }
    if let Some(domain) = &plan.domain {
        lines.push(("Merging", format!("{}: {}", domain.domain, domain.reason)));
    }
    lines.extend(plan.advice.iter().map(|advice| ("Advice", advice.to_string())));
    let mut text = facts(&lines);
    if !plan.steps.is_empty() {
        let mut table = Table::new(&["STEP", "EXPECTED", "CPU", "WHY"]);
        for step in &plan.steps {
            table.row([
                step.action.to_string(),
                signed_size(step.expected_bytes),
                format_duration(step.cpu),
                step.reason.clone(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    if !plan.skipped.is_empty() {
        let mut table = Table::new(&["LEFT ALONE", "BY", "WHY"]);
        for skipped in &plan.skipped {
            let by = skipped.actuator.map_or_else(|| "all".to_owned(), |by| by.to_string());
            table.row([skipped.guest.clone(), by, skipped.skip_reason.to_string()]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}
