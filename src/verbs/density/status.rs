//! `lighter density status`: the host's memory, and each guest's part of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use memopt::plan::SkipReason;
use memopt::service::{DensityStatus, Remembered, Spared};
use memopt::situation::{Guest, Vmm};

use super::left_alone::{grouped, listed};
use super::{answered, node};
use crate::cli::Output;
use crate::cli::density::StatusArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::{Table, facts_within};
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
        Output::Text => output::print(text(&status, output::columns()))?,
    }
    Ok(Exit::Done)
}

fn text(status: &DensityStatus, screen: Option<usize>) -> String {
    let mut text = host(status, screen);
    let (all, remembered) = (&status.situation.guests, &status.remembered);
    if !all.is_empty() {
        text.push('\n');
        text.push_str(&guests(all, remembered).render_within(screen, &EXPENDABLE));
    }
    let left_alone = grouped(all.iter().flat_map(|guest| {
        let known = remembered.get(&guest.name);
        reasons(guest, known).map(move |why| (why, guest.name.clone()))
    }));
    if !left_alone.is_empty() {
        let mut table = Table::new(&["LEFT ALONE", "WHY"]);
        for (why, guests) in left_alone {
            table.row([listed(&guests), why]);
        }
        text.push('\n');
        text.push_str(&table.render_within(screen, &[]));
    }
    text
}

fn host(status: &DensityStatus, screen: Option<usize>) -> String {
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
    facts_within(&lines, screen)
}

/// Columns of the guests that a narrow terminal does without, the least important first.
const EXPENDABLE: [&str; 6] = ["HUGE", "REPORTED", "MERGED", "VMM", "KEEPS", "GUEST SAYS"];

fn guests(guests: &[Guest], remembered: &BTreeMap<String, Remembered>) -> Table {
    let mut titles = vec![
        "NAME",
        "MEMORY",
        "COSTS",
        "KEEPS",
        "NEEDS",
        "REPORTED",
        "MERGED",
        "HUGE",
        "GUEST SAYS",
    ];
    // Without a column where all are lighter's own.
    if guests.iter().any(|guest| guest.vmm != Vmm::Lighter) {
        titles.push("VMM");
    }
    let mut table = Table::new(&titles);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), format_size);
    for guest in guests {
        let needs_bytes = remembered.get(&guest.name).and_then(|known| known.needs_bytes);
        let balloon = guest.balloon.as_ref();
        let statistics = balloon.and_then(|balloon| balloon.statistics);
        let free = statistics.and_then(|statistics| statistics.available_bytes);
        let reporting = balloon.filter(|balloon| balloon.reports_free_pages);
        let vmm = match guest.vmm {
            Vmm::Lighter => "lighter",
            Vmm::Qemu => "QEMU",
            Vmm::CloudHypervisor => "Cloud Hypervisor",
        };
        table.row([
            guest.name.clone(),
            format_size(guest.memory_bytes),
            format_size(guest.cost.proportional_bytes),
            size(balloon.map(|balloon| balloon.actual_bytes)),
            size(needs_bytes),
            size(reporting.map(|balloon| balloon.reported_bytes_total)),
            size(guest.cost.merged_bytes),
            format_size(guest.cost.huge_bytes),
            free.map_or_else(|| "-".to_owned(), |bytes| format!("{} free", format_size(bytes))),
            vmm.to_owned(),
        ]);
    }
    table
}

/// Returns why nothing is taken from a guest now, as a plan words it.
fn reasons(guest: &Guest, known: Option<&Remembered>) -> impl Iterator<Item = String> + use<> {
    let hindrance = guest.hindrance.map(|by| SkipReason::Hindered { by });
    let spared = known.and_then(|known| known.spared.as_ref());
    let spared = spared.map(|Spared { pressure, left_seconds }| SkipReason::Spared {
        pressure: pressure.clone(),
        left: Duration::from_secs(*left_seconds),
    });
    let left = known.and_then(|known| known.boots_seconds).map(Duration::from_secs);
    let booting = left.map(|left| SkipReason::Booting { left });
    hindrance.into_iter().chain(spared).chain(booting).map(|reason| reason.to_string())
}

#[cfg(test)]
mod tests {
    use memopt::ledger::Level;
    use memopt::policy::Goal;
    use memopt::situation::{Balloon, Cost, Hindrance, Host, Ksm, Pressure, Situation, Statistics};

    use super::*;
    use crate::golden;

    fn guest(name: &str, vmm: Vmm, hindrance: Option<Hindrance>) -> Guest {
        Guest { hindrance, ..Guest::unknown(name.to_owned(), vmm, 1) }
    }

    fn status(guests: Vec<Guest>, remembered: BTreeMap<String, Remembered>) -> DensityStatus {
        let host = Host {
            total_bytes: 64 << 30,
            available_bytes: 9 << 30,
            swap_used_bytes: 0,
            pressure: Some(Pressure {
                some_10s: 0.012,
                full_10s: 0.0,
                some_60s: 0.0,
                full_60s: 0.0,
            }),
            ksm: Some(Ksm { run: 1, profit_bytes: 3 << 30, ..Ksm::default() }),
            pools: Vec::new(),
            merged_domain: None,
            other_processes: Vec::new(),
        };
        DensityStatus {
            situation: Situation { unix_seconds: 0, uptime: Duration::ZERO, host, guests },
            level: Level::Amber,
            goal: Goal::Keep(0.2),
            file: Some("/var/lib/lighter/lighter.toml".to_owned()),
            file_error: None,
            missing: Vec::new(),
            running: None,
            remembered,
        }
    }

    fn under_pressure() -> Remembered {
        let pressure = "2 processes killed for want of memory".to_owned();
        Remembered {
            needs_bytes: Some(3 << 20),
            spared: Some(Spared { pressure, left_seconds: 90 }),
            boots_seconds: None,
        }
    }

    #[test]
    fn needs_and_the_reasons_why_guests_are_left_alone_are_shown() {
        let paused = Some(Hindrance::Paused);
        let all = vec![guest("db", Vmm::Qemu, paused), guest("web", Vmm::Lighter, paused)];
        let remembered = BTreeMap::from([("web".to_owned(), under_pressure())]);
        let text = text(&status(all, remembered), None);

        let row = |start: &str| {
            let found = text.lines().find(|line| line.starts_with(start));
            found.unwrap_or_else(|| panic!("no {start} in {text}"))
        };
        assert!(row("db ").ends_with("QEMU"), "{text}");
        assert!(row("web ").contains("3 MiB"), "{text}");
        assert!(row("db, web").ends_with("it is paused"), "{text}");
        let says = "spared for 1m 30s: 2 processes killed for want of memory";
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn the_status_fits_a_narrow_terminal() {
        let linux = |name: &str, used: u64| {
            let available_bytes = Some((4_u64 << 30) - used);
            Guest {
                memory_bytes: 4 << 30,
                cost: Cost {
                    proportional_bytes: used + (300 << 20),
                    merged_bytes: Some(210 << 20),
                    huge_bytes: 1 << 30,
                    ..Cost::default()
                },
                balloon: Some(Balloon {
                    has_driver: true,
                    target_bytes: 3 << 30,
                    is_set_by_steps: Some(true),
                    actual_bytes: 3 << 30,
                    reports_free_pages: true,
                    reported_bytes_total: 700 << 20,
                    statistics: Some(Statistics { available_bytes, ..Statistics::default() }),
                }),
                ..guest(name, Vmm::Lighter, None)
            }
        };
        let moving = Some(Hindrance::Migrating);
        let watched = Some(Hindrance::Watched);
        let all = vec![
            linux("billing-1", 1900 << 20),
            linux("build-1", 400 << 20),
            linux("build-2", 410 << 20),
            guest("legacy-1", Vmm::Qemu, watched),
            guest("legacy-2", Vmm::CloudHypervisor, watched),
            Guest { hindrance: moving, ..linux("web-1", 2100 << 20) },
        ];
        let booting = Remembered { boots_seconds: Some(72), ..Remembered::default() };
        let remembered = BTreeMap::from([
            ("billing-1".to_owned(), under_pressure()),
            ("build-1".to_owned(), booting.clone()),
            ("build-2".to_owned(), booting),
        ]);
        golden::matches(
            "density-status.txt",
            &text(&status(all, remembered), Some(golden::COLUMNS)),
        );
    }
}
