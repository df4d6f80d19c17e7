//! `lighter balloon`: a guest's balloon, its memory statistics, and what the guest costs the host.

use std::time::Duration;

use anyhow::{Context, Result};
use vmm_core::virtio::balloon::{SetBy, Statistics};

use super::session::{block_on, guest_client};
use crate::api::types::{BalloonInfo, BalloonRequest};
use crate::cli::Output;
use crate::cli::guest::BalloonArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::facts;
use crate::units::{format_count, format_duration, format_size};

/// Shows a guest's balloon, after setting its target if one is given.
///
/// # Errors
/// If there is no such guest, it has no balloon, or the size is out of its range.
pub(crate) fn run(state: &StateDir, args: &BalloonArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let info: BalloonInfo = block_on(async {
        let answer = match args.size {
            Some(target_bytes) => {
                client.put_json("/v1/guest/balloon", &request(target_bytes)).await
            }
            None => client.get("/v1/guest/balloon").await,
        };
        answer.with_context(|| format!("cannot use the balloon of {}", args.name))
    })?;
    match args.json.output() {
        Output::Json => output::print_json(&info)?,
        Output::Text => output::print(text(&info))?,
    }
    Ok(Exit::Done)
}

fn request(target_bytes: u64) -> BalloonRequest {
    BalloonRequest { target_bytes, set_by: None }
}

fn text(info: &BalloonInfo) -> String {
    let mut lines = vec![
        ("Memory", format_size(info.memory_bytes)),
        ("Target", target(info)),
        ("Actual", actual(info)),
        ("Says when migrated what is free", if info.gives_hints { "yes" } else { "no" }.to_owned()),
        ("Reports free pages", if info.reporting { "yes" } else { "no" }.to_owned()),
    ];
    let sizes = [("Resident", info.resident_bytes), ("Costs the host", info.proportional_bytes)];
    lines.extend(sizes.into_iter().filter_map(|(label, bytes)| Some((label, format_size(bytes?)))));
    let discarded = [
        ("Inflated so far", info.inflated_bytes_total),
        ("Reported so far", info.reported_bytes_total),
    ];
    lines.extend(discarded.map(|(label, bytes)| (label, format_size(bytes))));
    if let Some(statistics) = &info.statistics {
        let age = match statistics.age_ms {
            0..1000 => "just now".to_owned(),
            age_ms => format!("{} ago", format_duration(Duration::from_millis(age_ms))),
        };
        lines.push(("The guest says", age));
        lines.extend(statistics_lines(&statistics.values));
    }
    facts(&lines)
}

fn target(info: &BalloonInfo) -> String {
    let size = format_size(info.target_bytes);
    match info.set_by {
        Some(SetBy::Optimizer) => format!("{size}, set by density"),
        Some(SetBy::Operator) | None => size,
    }
}

fn actual(info: &BalloonInfo) -> String {
    let actual = format_size(info.actual_bytes);
    if info.has_driver { actual } else { format!("{actual} (the guest has no driver yet)") }
}

fn statistics_lines(statistics: &Statistics) -> impl Iterator<Item = (&'static str, String)> {
    let sizes = [
        ("  total", statistics.total_bytes),
        ("  available", statistics.available_bytes),
        ("  free", statistics.free_bytes),
        ("  caches", statistics.cache_bytes),
        ("  swapped in", statistics.swap_in_bytes),
        ("  swapped out", statistics.swap_out_bytes),
        ("  reclaimed", statistics.background_reclaim_bytes),
        ("  reclaimed waiting", statistics.direct_reclaim_bytes),
    ];
    let counts = [
        ("  major faults", statistics.major_faults),
        ("  stalls", statistics.allocation_stalls),
        ("  killed for memory", statistics.oom_kills),
    ];
    let sizes = sizes.into_iter().filter_map(|(label, bytes)| Some((label, format_size(bytes?))));
    let counts =
        counts.into_iter().filter_map(|(label, count)| Some((label, format_count(count?))));
    sizes.chain(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::BalloonStatistics;

    fn info() -> BalloonInfo {
        BalloonInfo {
            has_driver: true,
            reporting: true,
            gives_hints: false,
            memory_bytes: 1 << 30,
            target_bytes: 512 << 20,
            set_by: Some(SetBy::Operator),
            actual_bytes: 600 << 20,
            inflated_bytes_total: 424 << 20,
            reported_bytes_total: 0,
            resident_bytes: Some(300 << 20),
            proportional_bytes: None,
            statistics: Some(BalloonStatistics {
                age_ms: 1500,
                values: Statistics { oom_kills: Some(1234), ..Statistics::default() },
            }),
        }
    }

    #[test]
    fn unknown_values_are_not_shown() {
        let text = text(&info());
        for shown in ["512 MiB", "600 MiB", "300 MiB", "1.50 s ago", "1,234"] {
            assert!(text.contains(shown), "{shown}:\n{text}");
        }
        assert!(!text.contains("Costs the host") && !text.contains("swapped"), "{text}");
    }

    #[test]
    fn a_guest_without_a_driver_is_reported() {
        let text = text(&BalloonInfo { has_driver: false, statistics: None, ..info() });
        assert!(text.contains("the guest has no driver yet"), "{text}");
    }

    #[test]
    fn targets_set_by_the_optimizer_are_marked() {
        assert!(!text(&info()).contains("density"));
        let text = text(&BalloonInfo { set_by: Some(SetBy::Optimizer), ..info() });
        assert!(text.contains("512 MiB, set by density"), "{text}");
    }
}
