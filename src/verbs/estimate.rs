//! `lighter migrate --estimate`: asks a guest's process how a migration would go, and formats the
//! answer.

use std::time::Duration;

use anyhow::{Result, bail};
use migrate::OnStall;
use migrate::estimate::{Estimate, Forecast, Measured, Path};

use super::summary::seconds;
use crate::api::migration::MigrationRequest;
use crate::api::{ApiClient, AskError, Reason};
use crate::names::GuestName;
use crate::table::facts_within;
use crate::units::{PAGE_BYTES, format_count, format_rate, format_size};

/// Longest wait for an estimate: three seconds of measurements, some of which wait for the other
/// host.
const PATIENCE: Duration = Duration::from_secs(60);
/// A longest downtime beyond this multiple of what is expected is shown.
const NOTABLY: f64 = 1.25;

/// Asks the guest's process for an estimate.
///
/// # Errors
/// If it is of an earlier version, or cannot estimate; the message says why.
pub(super) async fn ask(client: ApiClient, request: &MigrationRequest) -> Result<Estimate> {
    let client = client.with_patience(PATIENCE);
    match client.post("/v1/guest/migration/estimate", request).await {
        Err(AskError::Refused(refusal)) if refusal.reason == Reason::NotFound => bail!(
            "the guest's process is of an earlier version, which makes no estimates; it can still be migrated"
        ),
        answer => Ok(answer?),
    }
}

/// Formats an estimate for a terminal of `screen` characters.
pub(super) fn text(
    name: &GuestName,
    destination: &str,
    estimate: &Estimate,
    screen: Option<usize>,
) -> String {
    let Estimate { measured, downtime_limit_seconds, converges, forecast, .. } = estimate;
    let headline = match (forecast.arrives, converges) {
        (true, true) => format!("{name} would move to {destination}."),
        (true, false) => {
            let on_stall = forecast.on_stall;
            format!(
                "{name} would move to {destination}, but only by what --on-stall {on_stall} does."
            )
        }
        (false, _) => format!("{name} would not move to {destination}."),
    };
    let mut lines = outcome(forecast, *downtime_limit_seconds);
    let sizes = [measured.memory_pages, measured.disk_pages].map(|pages| pages * PAGE_BYTES);
    let what = if sizes[1] > 0 { "guest memory and disks" } else { "guest memory" };
    let size = format_size(sizes.iter().sum());
    if forecast.rounds > 0 {
        lines.push(("Sent", format!("{} for {size} of {what}", format_size(forecast.wire_bytes))));
    }
    let longer = estimate.without_timeout.as_ref().and_then(arrival);
    let longer = longer.map(|end| format!("a longer --timeout: {end}"));
    // Those that do not arrive may lack the same time.
    let lacks_time = longer.is_some();
    let others = estimate.alternatives.iter().filter(|other| other.arrives || !lacks_time);
    let later = estimate.converging_share.map(at_another_time);
    let others = longer.into_iter().chain(others.map(alternative)).chain(later);
    lines.extend(others.map(|text| ("Otherwise", text)));
    lines.push(("Writes", writes(measured)));
    lines.push(("Content", content(measured)));
    lines.push(("Path", path(&measured.path)));
    lines.push(("Pause", pause(measured)));
    format!("{headline}\n\n{}", facts_within(&lines, screen))
}

/// Formats how the migration would end.
fn outcome(forecast: &Forecast, limit: f64) -> Vec<(&'static str, String)> {
    let total = match forecast.total_seconds {
        Some(total) => format!("{}, in {} rounds", seconds(total), forecast.rounds),
        None => "no end in sight".to_owned(),
    };
    let mut lines = vec![("Total time", total)];
    if let Some(downtime) = downtime(forecast) {
        lines.push(("Downtime", format!("{downtime} (limit {})", seconds(limit))));
    }
    if let Some(why_not) = &forecast.why_not {
        lines.push(("Why not", why_not.clone()));
    }
    if forecast.arrives && forecast.throttle_percent > 0 {
        let percent = forecast.throttle_percent;
        lines.push(("Throttle", format!("its vCPUs would rest for up to {percent} % of the time")));
    }
    lines
}

/// Formats the downtime, and how long it may become if that is notably longer.
fn downtime(forecast: &Forecast) -> Option<String> {
    let downtime = forecast.downtime_seconds?;
    let longest = forecast.downtime_seconds_max.filter(|longest| *longest > downtime * NOTABLY);
    Some(match longest {
        Some(longest) => format!("{}, up to {}", seconds(downtime), seconds(longest)),
        None => seconds(downtime),
    })
}

/// Formats what would come of another way to deal with a stall.
fn alternative(other: &Forecast) -> String {
    let how = format!("--on-stall {}", other.on_stall);
    let Some(end) = arrival(other) else { return format!("{how} would not help either") };
    match other.on_stall {
        OnStall::Throttle | OnStall::Postcopy => format!("{how}: {end}"),
        OnStall::Force | OnStall::Cancel | OnStall::Wait => {
            let needed = other.downtime_seconds_max.or(other.downtime_seconds).unwrap_or_default();
            format!("{how}, or --downtime {}: {end}", seconds(needed))
        }
    }
}

/// Formats how a migration whose guest arrives would go.
fn arrival(forecast: &Forecast) -> Option<String> {
    let (total, pause) = (seconds(forecast.total_seconds?), downtime(forecast)?);
    let rests = forecast.throttle_percent;
    Some(match forecast.on_stall {
        OnStall::Throttle if rests > 0 => {
            format!("{total} in all, with its vCPUs resting for up to {rests} % of the time")
        }
        OnStall::Postcopy => format!(
            "{total} in all, with a pause of {pause}; the guest is lost if a host fails meanwhile"
        ),
        _ => format!("{total} in all, with a pause of {pause}"),
    })
}

/// Formats at what share of its present writes the guest would move by itself.
fn at_another_time(share: f64) -> String {
    match (share * 100.0).floor() {
        percent if percent >= 1.0 => {
            format!("at another time, when it writes no more than {percent} % of what it does now")
        }
        _ => "at another time, when it writes hardly anything".to_owned(),
    }
}

/// Formats how many pages the guest wrote.
fn writes(measured: &Measured) -> String {
    if !measured.is_running {
        return "none: the guest is paused".to_owned();
    }
    let size = |pages: u64| format_size(pages.saturating_mul(PAGE_BYTES));
    let windows = measured.written.iter();
    let windows =
        windows.map(|window| format!("{} within {}", size(window.pages), seconds(window.seconds)));
    let windows = windows.collect::<Vec<_>>().join(", ");
    match measured.written.last() {
        // An earlier release does not tell them apart.
        Some(last) if last.hot_pages > 0 => format!(
            "{} again and again, {} now and then: {windows}",
            size(last.hot_pages),
            size(last.pages.saturating_sub(last.hot_pages))
        ),
        _ => windows,
    }
}

/// Formats a share as a percentage.
fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

fn content(measured: &Measured) -> String {
    format!(
        "{} of {} pages are zero, {} of the others compress",
        percent(measured.zero_ratio),
        format_count(measured.memory_pages),
        percent(measured.compressible_ratio)
    )
}

fn path(path: &Path) -> String {
    let round_trip = seconds(path.round_trip_seconds);
    let rate = format_rate(path.bytes_per_second as u64);
    if !path.is_measured {
        return format!(
            "round trip {round_trip}; {rate} as given by --bandwidth, since the node there is of an earlier version and cannot \
             measure it"
        );
    }
    let lost = path.lost_ratio * 100.0;
    let answer = seconds(path.answer_seconds);
    format!(
        "{rate} sent, round trip {round_trip}, an answer in {answer}, {lost:.2} % of packets lost"
    )
}

/// Formats the parts of the downtime that do not depend on memory.
fn pause(measured: &Measured) -> String {
    let dry_run = &measured.dry_run;
    format!(
        "{} to pause it and save its state (it stood for {}), {} to flush its disks, {} to change a record",
        seconds(dry_run.pause_and_save_seconds),
        seconds(dry_run.stood_seconds),
        seconds(dry_run.flush_seconds),
        seconds(dry_run.record_change_seconds)
    )
}

#[cfg(test)]
mod tests {
    use migrate::estimate::{DryRun, Written};

    use super::*;
    use crate::golden;

    fn forecast(on_stall: OnStall, total: f64, downtime: f64) -> Forecast {
        Forecast {
            on_stall,
            arrives: true,
            total_seconds: Some(total),
            downtime_seconds: Some(downtime),
            downtime_seconds_max: Some(downtime * 2.5),
            wire_bytes: 1200 << 20,
            rounds: 7,
            throttle_percent: 0,
            forced: false,
            why_not: None,
        }
    }

    fn estimate() -> Estimate {
        let window = |seconds, pages| Written { seconds, pages, hot_pages: pages * 3 / 4 };
        Estimate {
            measured: Measured {
                is_running: true,
                memory_pages: 1 << 18,
                zero_ratio: 0.31,
                compressible_ratio: 0.48,
                zero_page_seconds: 2e-7,
                disk_pages: 0,
                disk_content_pages: 0,
                written: vec![
                    window(0.03, 600),
                    window(0.1, 2000),
                    window(0.3, 6000),
                    window(1.0, 16_384),
                    window(2.0, 16_384),
                ],
                log_seconds: 0.001,
                collect_seconds: 0.0001,
                dry_run: DryRun {
                    pause_and_save_seconds: 0.0041,
                    stood_seconds: 0.0052,
                    flush_seconds: 0.001,
                    record_seconds: 0.0033,
                    record_change_seconds: 0.0011,
                },
                path: Path {
                    is_measured: true,
                    connect_seconds: 0.002,
                    round_trip_seconds: 0.0003,
                    answer_seconds: 0.0006,
                    bytes_per_second: 112.0 * 1024.0 * 1024.0,
                    page_bytes: 4097.0,
                    lost_ratio: 0.0001,
                },
            },
            downtime_limit_seconds: 0.3,
            converges: true,
            forecast: forecast(OnStall::Throttle, 12.4, 0.0312),
            alternatives: Vec::new(),
            without_timeout: None,
            converging_share: None,
        }
    }

    fn shown(estimate: &Estimate, screen: Option<usize>) -> String {
        text(&"web-1".parse().unwrap(), "host-b", estimate, screen)
    }

    #[test]
    fn an_estimate_fits_a_narrow_terminal() {
        golden::matches("estimate.txt", &shown(&estimate(), Some(golden::COLUMNS)));
    }

    #[test]
    fn what_would_help_is_said() {
        let throttled =
            Forecast { throttle_percent: 88, ..forecast(OnStall::Throttle, 30.0, 0.02) };
        let stuck = Forecast {
            arrives: false,
            total_seconds: None,
            downtime_seconds: None,
            why_not: Some("rounds do not end".to_owned()),
            ..forecast(OnStall::Wait, 0.0, 0.0)
        };
        let stays = Estimate {
            converges: false,
            forecast: stuck,
            alternatives: vec![throttled.clone(), forecast(OnStall::Force, 25.0, 2.28)],
            converging_share: Some(0.376),
            ..estimate()
        };
        let text = shown(&stays, None);
        for words in [
            "web-1 would not move to host-b.",
            "no end in sight",
            "rounds do not end",
            "--on-stall throttle: 30.00 s in all, with its vCPUs resting for up to 88 %",
            "--on-stall force, or --downtime 5.70 s: 25.00 s in all, with a pause of 2.28 s, up to 5.70 s",
            "at another time, when it writes no more than 37 % of what it does now",
        ] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
        let moves = Estimate { converges: false, forecast: throttled, ..estimate() };
        let text = shown(&moves, None);
        assert!(text.contains("but only by what --on-stall throttle does."), "{text}");
        assert!(text.contains("rest for up to 88 % of the time"), "{text}");
    }

    #[test]
    fn more_time_is_all_that_a_slow_migration_lacks() {
        let late = Forecast {
            arrives: false,
            downtime_seconds: None,
            wire_bytes: 0,
            rounds: 0,
            why_not: Some("it is not over within 1 h".to_owned()),
            ..forecast(OnStall::Throttle, 3600.0, 0.0)
        };
        let forced = Forecast { on_stall: OnStall::Force, total_seconds: None, ..late.clone() };
        let late = Estimate {
            converges: false,
            forecast: late,
            alternatives: vec![forced],
            without_timeout: Some(forecast(OnStall::Throttle, 11_520.0, 0.02)),
            ..estimate()
        };
        let text = shown(&late, None);
        let words = "a longer --timeout: 3h 12m in all, with a pause of 20.0 ms, up to 50.0 ms";
        assert!(text.contains(words), "{text}");
        assert!(!text.contains("Sent") && !text.contains("--on-stall"), "{text}");
    }

    #[test]
    fn what_an_earlier_release_does_not_tell_is_not_said() {
        let mut older = estimate();
        older.forecast.downtime_seconds_max = None;
        older.measured.written.iter_mut().for_each(|window| window.hot_pages = 0);
        let text = shown(&older, None);
        assert!(text.contains("31.2 ms (limit 300.0 ms)"), "{text}");
        assert!(text.contains("64 MiB within 2.00 s") && !text.contains("again"), "{text}");
    }

    #[test]
    fn a_path_that_was_not_measured_says_whose_figure_it_is() {
        let mut older = estimate();
        older.measured.path.is_measured = false;
        older.measured.is_running = false;
        let text = shown(&older, None);
        assert!(text.contains("as given by --bandwidth"), "{text}");
        assert!(text.contains("none: the guest is paused"), "{text}");
    }
}
