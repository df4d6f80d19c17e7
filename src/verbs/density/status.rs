//! `lighter density status`: the host's memory, and each guest's part of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use memopt::service::{DensityStatus, Remembered, Spared};
use memopt::situation::{Guest, Hindrance, Vmm};
use memopt::units::Span;

use super::{answered, node};
use crate::cli::Output;
use crate::cli::density::StatusArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts};
use crate::units::format_size;
use crate::verbs::session::block_on;

/// Shows the host and its guests.
///
/// # Errors
/// If no node answers.
pub(super) fn run(state: &StateDir, args: &StatusArgs) -> Result<Exit> {
    let status: DensityStatus = block_on(async { answered(node(state).get("/v1/density").await) })?;
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
        text.push_str(&guests(&status.situation.guests, &status.remembered));
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
        (
            "Settings",
            status.file.clone().unwrap_or_else(|| "defaults (no lighter.toml)".to_owned()),
        ),
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

fn guests(guests: &[Guest], remembered: &BTreeMap<String, Remembered>) -> String {
    let mut table = Table::new(&[
        "NAME",
        "MEMORY",
        "COSTS",
        "KEEPS",
        "NEEDS",
        "REPORTED",
        "MERGED",
        "HUGE",
        "GUEST SAYS",
        "NOTE",
    ]);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), format_size);
    for guest in guests {
        let known = remembered.get(&guest.name).cloned().unwrap_or_default();
        let balloon = guest.balloon.as_ref();
        let statistics = balloon.and_then(|balloon| balloon.statistics);
        let free = statistics.and_then(|statistics| statistics.available_bytes);
        let reporting = balloon.filter(|balloon| balloon.reports_free_pages);
        table.row([
            guest.name.clone(),
            format_size(guest.memory_bytes),
            format_size(guest.cost.proportional_bytes),
            size(balloon.map(|balloon| balloon.actual_bytes)),
            size(known.needs_bytes),
            size(reporting.map(|balloon| balloon.reported_bytes_total)),
            size(guest.cost.merged_bytes),
            format_size(guest.cost.huge_bytes),
            free.map_or_else(|| "-".to_owned(), |bytes| format!("{} free", format_size(bytes))),
            note(guest, known.spared.as_ref()),
        ]);
    }
    table.render()
}

fn note(guest: &Guest, spared: Option<&Spared>) -> String {
    let hindrance = guest.hindrance.map(|hindrance| match hindrance {
        Hindrance::Migrating => "migrating",
        Hindrance::Paused => "paused",
        Hindrance::Saving => "being saved",
        Hindrance::Unreachable => "does not answer",
        Hindrance::Watched => "watched only",
    });
    let vmm = match guest.vmm {
        Vmm::Lighter => None,
        Vmm::Qemu => Some("QEMU"),
        Vmm::CloudHypervisor => Some("Cloud Hypervisor"),
    };
    let left = |spared: &Spared| Span(Duration::from_secs(spared.left_seconds));
    let spared = spared.map(|it| format!("memory pressure: {}; spared for {}", it.pain, left(it)));
    let notes = vmm.into_iter().chain(hindrance).map(str::to_owned).chain(spared);
    notes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_guest_shows_its_needs_and_pain() {
        let guest = |name: &str| Guest {
            hindrance: Some(Hindrance::Paused),
            ..Guest::unknown(name.to_owned(), Vmm::Qemu, 1)
        };
        let pain = "2 processes killed for want of memory".to_owned();
        let known = Remembered {
            needs_bytes: Some(3 << 20),
            spared: Some(Spared { pain, left_seconds: 90 }),
        };
        let remembered = BTreeMap::from([("web".to_owned(), known)]);

        let text = guests(&[guest("db"), guest("web")], &remembered);

        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].starts_with("db") && rows[1].ends_with("QEMU, paused"), "{text}");
        let says = "QEMU, paused, memory pressure: 2 processes killed for want of memory; \
                    spared for 1m 30s";
        assert!(rows[2].contains("3 MiB") && rows[2].ends_with(says), "{text}");
    }
}
