//! `lighter density status`.

use anyhow::Result;
use memopt::situation::{Guest, Hindrance, Vmm};

use super::{heard, node};
use crate::cli::Output;
use crate::cli::density::StatusArgs;
use crate::exit::Exit;
use crate::node::density_types::DensityStatus;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts};
use crate::units::format_size;
use crate::verbs::session::block_on;

/// Shows the host and its guests.
///
/// # Errors
/// No node answers.
pub(super) fn run(state: &StateDir, args: &StatusArgs) -> Result<Exit> {
    let status: DensityStatus = block_on(async { heard(node(state).get("/v1/density").await) })?;
    match args.json.output() {
        Output::Json => output::print_json(&status)?,
        Output::Text => output::print(text(&status))?,
    }
    Ok(Exit::Done)
}

fn text(status: &DensityStatus) -> String {
    let mut text = host(status);
    if !status.situation.guests.is_empty() {
        text.push('\n');
        text.push_str(&guests(&status.situation.guests));
    }
    text
}

fn host(status: &DensityStatus) -> String {
    let host = &status.situation.host;
    let share = host.available_bytes as f64 * 100.0 / host.total_bytes.max(1) as f64;
    let (available, total) = (format_size(host.available_bytes), format_size(host.total_bytes));
    let mut lines = vec![
        ("Available", format!("{available} of {total} ({share:.0} %, {})", status.level)),
        ("Goal", status.goal.to_string()),
        ("Settings", status.file.clone().unwrap_or_else(|| "the usual ones".to_owned())),
    ];
    if let Some(error) = &status.file_error {
        lines.push(("NOT read", error.clone()));
    }
    if let Some(pressure) = host.pressure {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let (some, full) = (percent(pressure.some_10s), percent(pressure.full_10s));
        lines.push(("Waited for memory", format!("some {some}, all {full} of the last 10 s")));
    }
    if let Some(ksm) = host.ksm {
        let running = if ksm.run == 1 { "running" } else { "stopped" };
        let saved = super::signed_size(ksm.profit_bytes);
        lines.push(("Merging", format!("{running}, {saved} saved")));
    }
    lines.extend(status.missing.iter().map(|missing| ("Missing", missing.clone())));
    if let Some(run) = status.running {
        lines.push(("Run under way", format!("{run}: `lighter density history {run}`")));
    }
    facts(&lines)
}

fn guests(guests: &[Guest]) -> String {
    let mut table =
        Table::new(&["NAME", "MEMORY", "COSTS", "KEEPS", "MERGED", "HUGE", "GUEST SAYS", "NOTE"]);
    for guest in guests {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), format_size);
        let balloon = guest.balloon.as_ref();
        let statistics = balloon.and_then(|balloon| balloon.statistics);
        let free = statistics.and_then(|statistics| statistics.available_bytes);
        table.row([
            guest.name.clone(),
            format_size(guest.memory_bytes),
            format_size(guest.cost.proportional_bytes),
            size(balloon.map(|balloon| balloon.actual_bytes)),
            size(guest.cost.merged_bytes),
            format_size(guest.cost.huge_bytes),
            free.map_or_else(|| "-".to_owned(), |bytes| format!("{} free", format_size(bytes))),
            note(guest),
        ]);
    }
    table.render()
}

fn note(guest: &Guest) -> String {
    let hindrance = guest.hindrance.map(|hindrance| match hindrance {
        Hindrance::Migrating => "migrating",
        Hindrance::Paused => "paused",
        Hindrance::Saving => "being saved",
        Hindrance::Unreachable => "does not answer",
    });
    let vmm = match guest.vmm {
        Vmm::Lighter => None,
        Vmm::Qemu => Some("QEMU"),
        Vmm::CloudHypervisor => Some("Cloud Hypervisor"),
    };
    let notes: Vec<&str> = vmm.into_iter().chain(hindrance).collect();
    notes.join(", ")
}
