//! `lighter density plan`: shows the steps that a run would take now.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use memopt::plan::{Missed, Plan, Skipped};
use memopt::service::Settings;
use memopt::settings::FILE_BYTES_MAX;

use super::left_alone::{grouped, listed};
use super::{answered, node, signed_size};
use crate::cli::Output;
use crate::cli::density::PlanArgs;
use crate::density::types::PlanRequest;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts_within};
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
        Output::Text => {
            let screen = output::columns();
            output::print(text(&plan, screen) + &survey_hint(&plan, screen))?;
        }
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

/// Returns what a survey would add to the plan, and what it would read; empty if it adds nothing.
fn survey_hint(plan: &Plan, screen: Option<usize>) -> String {
    if plan.survey_bytes == 0 {
        return String::new();
    }
    let read = format_size(plan.survey_bytes);
    let hint = format!(
        "merging is estimated only with --survey, which would read up to {read} of guest memory"
    );
    format!("\n{}", facts_within(&[("Survey", hint)], screen))
}

/// Formats a plan for a terminal of `screen` characters.
pub(super) fn text(plan: &Plan, screen: Option<usize>) -> String {
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
    let mut text = facts_within(&lines, screen);
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
        text.push_str(&table.render_within(screen, &["CPU"]));
    }
    if !plan.skipped.is_empty() {
        text.push('\n');
        text.push_str(&left_alone(&plan.skipped).render_within(screen, &[]));
    }
    if let Some(Missed { bytes, reason }) = &plan.missed {
        let missed = format!("{} of the {wanted} that are wanted ({reason})", format_size(*bytes));
        text.push('\n');
        text.push_str(&facts_within(&[("Missed", missed)], screen));
    }
    text
}

/// Lists the guests that are left alone: one row for all guests with one reason, and for all
/// actuators that leave the same guests alone for it.
fn left_alone(skipped: &[Skipped]) -> Table {
    let by_actuator = grouped(skipped.iter().map(|skipped| {
        let by = skipped.actuator.map_or_else(|| "all".to_owned(), |by| by.to_string());
        ((by, skipped.skip_reason.to_string()), skipped.guest.clone())
    }));
    let by_guests = by_actuator.into_iter().map(|((by, why), guests)| ((guests, why), by));
    let mut table = Table::new(&["LEFT ALONE", "BY", "WHY"]);
    for ((guests, why), by) in grouped(by_guests) {
        table.row([listed(&guests), by.join(", "), why]);
    }
    table
}

#[cfg(test)]
mod tests {
    use memopt::ledger::Level;
    use memopt::plan::{Advice, SkipReason};
    use memopt::policy::{Actuator, Goal};
    use memopt::step::{Action, Step};

    use super::*;
    use crate::golden;

    fn shrink(guest: &str, [from, to]: [u64; 2], gain: i64, reason: &str) -> Step {
        let (from_bytes, to_bytes) = (from << 20, to << 20);
        Step {
            action: Action::SetBalloon { guest: guest.to_owned(), from_bytes, to_bytes },
            expected_bytes: gain << 20,
            cpu: Duration::from_micros(12_600),
            reason: reason.to_owned(),
            pid: Some(812),
        }
    }

    fn skipped(guest: &str, actuator: Actuator, skip_reason: SkipReason) -> Skipped {
        Skipped { guest: guest.to_owned(), actuator: Some(actuator), skip_reason }
    }

    fn plan() -> Plan {
        let why = "the goal asks for memory; it needs 2.10 GiB and is to keep 2.52 GiB";
        let names = (1..=12).map(|index| format!("build-{index}"));
        let alone = names.flat_map(|name| {
            let left = Duration::from_secs(72);
            [
                skipped(&name, Actuator::Balloon, SkipReason::Booting { left }),
                skipped(&name, Actuator::Merge, SkipReason::NoDomain),
            ]
        });
        let web = [Actuator::Merge, Actuator::Huge, Actuator::Zeros];
        let web = web.map(|actuator| skipped("web-1", actuator, SkipReason::NotSurveyed));
        Plan {
            unix_seconds: 0,
            uptime: Duration::ZERO,
            goal: Goal::MaxDensity,
            level: Level::Green,
            wanted_bytes: None,
            expected_bytes: 456 << 20,
            later_bytes: 5 << 30,
            missed: None,
            survey_bytes: 11 << 30,
            domain: None,
            steps: vec![
                shrink("db-1", [8192, 7936], 256, why),
                shrink("web-1", [4096, 3896], 200, why),
            ],
            skipped: alone.chain(web).collect(),
            advice: vec![Advice::EnableReporting { guest: "db-1".to_owned(), free_bytes: 3 << 30 }],
        }
    }

    #[test]
    fn a_plan_fits_a_narrow_terminal() {
        let screen = Some(golden::COLUMNS);
        let text = text(&plan(), screen) + &survey_hint(&plan(), screen);
        golden::matches("density-plan.txt", &text);
    }

    #[test]
    fn guests_left_alone_for_one_reason_share_a_row() {
        let text = text(&plan(), None);
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("build-1,")).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert!(rows.iter().all(|row| row.contains("build-4 and 8 more")), "{text}");
        assert!(text.contains("web-1   ") && text.contains("merge, huge, zeros"), "{text}");
    }

    #[test]
    fn a_goal_out_of_reach_ends_the_plan_with_what_is_missing() {
        let reason = "12 guests: no driver in the guest serves the balloon".to_owned();
        let missed = Some(Missed { bytes: 3 << 30, reason });
        let text = text(&Plan { wanted_bytes: Some(20 << 30), missed, ..plan() }, None);
        let last = text.lines().last().unwrap();
        let why = "(12 guests: no driver in the guest serves the balloon)";
        assert_eq!(last, format!("Missed  3 GiB of the 20 GiB that are wanted {why}"));
    }

    #[test]
    fn a_survey_is_suggested_only_where_it_adds_something() {
        assert!(survey_hint(&plan(), None).contains("--survey, which would read up to 11 GiB"));
        let surveyed = Plan { survey_bytes: 0, ..plan() };
        assert_eq!(survey_hint(&surveyed, None), "");
    }
}
