//! Formats a migration's report for users, and maps it to an exit code.

use std::time::Duration;

use migrate::report::{Outcome, Standstill};
use migrate::{Reason, Report};

use super::progress::average_rate;
use crate::exit::{Exit, ExitWith};
use crate::table::facts;
use crate::units::{format_count, format_duration, format_rate, format_size};

/// Formats the figures of a migration, one per line.
pub(crate) fn figures(report: &Report) -> String {
    let transfer = &report.transfer;
    let mut lines = vec![("Total time", seconds(report.total_seconds))];
    if let Some(downtime) = report.downtime_seconds {
        let expected =
            report.expected_downtime_seconds.map(|s| format!(" (expected {})", seconds(s)));
        lines.push(("Downtime", format!("{}{}", seconds(downtime), expected.unwrap_or_default())));
    }
    if let Some(parts) = &report.standstill {
        lines.push(("Spent on", standstill(parts)));
    }
    if report.dry_run_seconds > 0.0 {
        let stood = seconds(report.dry_run_seconds);
        lines.push(("Dry runs", format!("{}, which stopped it for {stood}", report.dry_runs)));
    }
    lines.push(("Rounds", report.rounds_total.to_string()));
    let memory = report.memory_bytes.saturating_add(report.disk_bytes);
    let percent =
        if memory == 0 { 0.0 } else { transfer.wire_bytes as f64 * 100.0 / memory as f64 };
    let what = if report.disk_bytes > 0 { "guest memory and disks" } else { "guest memory" };
    let sent = format_size(transfer.wire_bytes);
    lines.push(("Sent", format!("{sent} for {} of {what} ({percent:.0} %)", format_size(memory))));
    if report.disk_bytes > 0 {
        let (sent, size) = (format_size(transfer.disk_wire_bytes), format_size(report.disk_bytes));
        lines.push(("Disks", format!("{sent} of this for disks of {size}")));
    }
    lines.push((
        "Rate",
        format!("{} of memory", format_rate(average_rate(transfer, report.total_seconds))),
    ));
    let pages = format!(
        "{} as they are, {} compressed, {} zero",
        format_count(transfer.raw_pages),
        format_count(transfer.lz4_pages),
        format_count(transfer.zero_pages)
    );
    let hinted = match transfer.hinted_pages {
        0 => String::new(),
        pages => format!("; {} not sent: free, says the guest", format_count(pages)),
    };
    lines.push(("Pages", pages + &hinted));
    facts(&lines)
}

/// Returns why the guest is not at its destination after the migration; `None` if it is.
pub(crate) fn failure(report: &Report, destination: &str) -> Option<ExitWith> {
    let guest = &report.guest;
    let cause = report
        .error
        .as_ref()
        .map_or_else(|| "no reason was given".to_owned(), |error| error.message.clone());
    let reason = report.error.as_ref().map(|error| error.reason);
    let (cancelled, ended) =
        (reason == Some(Reason::Cancelled), reason == Some(Reason::GuestStopped));
    let way_out = report.way_out.as_ref().map(|text| format!("\n{text}")).unwrap_or_default();
    let (exit, message) = match report.outcome {
        Outcome::Migrated => return None,
        Outcome::StayedAtSource if cancelled => (
            Exit::Cancelled,
            format!("the migration of {guest} to {destination} was cancelled; {}", stays(report)),
        ),
        Outcome::StayedAtSource => (
            Exit::Failed,
            format!(
                "cannot migrate {guest} to {destination}: {cause}; {}{}",
                stays(report),
                stood(report)
            ),
        ),
        Outcome::InDoubt => (
            Exit::InDoubt,
            format!(
                "the migration of {guest} to {destination} is in doubt: {cause}; the guest is paused here{way_out}"
            ),
        ),
        Outcome::Lost if ended => (
            Exit::Failed,
            format!("{guest} was not migrated to {destination}, it is gone: {cause}"),
        ),
        Outcome::Lost => (
            Exit::Failed,
            format!(
                "{guest} is on neither host after the migration to {destination}: {cause}{way_out}"
            ),
        ),
    };
    Some(ExitWith { exit, message })
}

/// Formats the parts of the downtime before the hand-over, or before the guest continued.
fn standstill(parts: &Standstill) -> String {
    format!(
        "{} to pause it, {} to flush its disks, {} to save its state, {} to send the last pages, {} for the destination to be \
         ready",
        seconds(parts.pause_seconds),
        seconds(parts.flush_seconds),
        seconds(parts.save_seconds),
        seconds(parts.send_seconds),
        seconds(parts.ready_seconds)
    )
}

/// Formats the downtime of a guest that stays, and its parts.
fn stood(report: &Report) -> String {
    let Some((downtime, parts)) = report.downtime_seconds.zip(report.standstill.as_ref()) else {
        return String::new();
    };
    format!(", after a pause of {}: {}", seconds(downtime), standstill(parts))
}

/// Returns the state of a guest that has stayed at the source.
pub(super) fn stays(report: &Report) -> &str {
    report.way_out.as_deref().unwrap_or("the guest keeps running here")
}

/// Formats a time of a report; an invalid (negative) one is shown as zero.
pub(crate) fn seconds(seconds: f64) -> String {
    format_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use migrate::MigrationId;
    use migrate::progress::{Role, Transfer};
    use migrate::report::ReportedError;

    /// Returns a source's report with this outcome.
    pub(in super::super) fn report(outcome: Outcome, reason: Option<Reason>) -> Report {
        Report {
            migration: MigrationId::random(),
            guest: "web".to_owned(),
            role: Role::Source,
            outcome,
            error: reason.map(|reason| ReportedError {
                phase: migrate::Phase::Precopy,
                reason,
                message: "cable cut".to_owned(),
            }),
            way_out: (outcome == Outcome::InDoubt)
                .then(|| "lighter migrate web --resolve run".to_owned()),
            total_seconds: 2.0,
            downtime_seconds: Some(0.0324),
            expected_downtime_seconds: Some(0.030),
            standstill: None,
            dry_runs: 1,
            dry_run_seconds: 0.004,
            phases: Vec::new(),
            memory_bytes: 512 << 20,
            disk_bytes: 0,
            transfer: Transfer { wire_bytes: 256 << 20, raw_pages: 60_000, ..Transfer::default() },
            rounds_total: 3,
            rounds: Vec::new(),
        }
    }

    #[test]
    fn figures_are_those_of_the_report() {
        let text = figures(&report(Outcome::Migrated, None));
        for part in [
            "2.00 s",
            "32.4 ms (expected 30.0 ms)",
            "1, which stopped it for 4.0 ms",
            "256 MiB for 512 MiB",
            "(50 %)",
            "117 MiB/s of memory",
            "60,000 as they are",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_pause_beyond_the_limit_is_reported_with_its_cause() {
        let report = Report {
            downtime_seconds: Some(1.604),
            standstill: Some(Standstill { flush_seconds: 1.598, ..Standstill::default() }),
            ..report(Outcome::StayedAtSource, Some(Reason::Downtime))
        };
        let message = failure(&report, "b").unwrap().message;
        for part in ["the guest keeps running here, after a pause of 1.60 s", "1.60 s to flush"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(figures(&report).contains("1.60 s to flush its disks"));
    }

    #[test]
    fn every_outcome_has_its_exit_code_and_says_where_the_guest_is() {
        let exit = |outcome, reason| {
            failure(&report(outcome, reason), "b").map(|with| (with.exit, with.message))
        };
        assert!(exit(Outcome::Migrated, None).is_none());
        let (code, message) = exit(Outcome::StayedAtSource, Some(Reason::Cancelled)).unwrap();
        assert!(code == Exit::Cancelled && message.contains("keeps running here"));
        let (code, message) = exit(Outcome::StayedAtSource, Some(Reason::ConnectionLost)).unwrap();
        assert!(
            code == Exit::Failed
                && message.contains("cable cut")
                && message.contains("keeps running here")
        );
        let way_out = Some("web stays paused here".to_owned());
        let stuck = Report { way_out, ..report(Outcome::StayedAtSource, Some(Reason::Cancelled)) };
        let message = failure(&stuck, "b").unwrap().message;
        assert!(message.ends_with("was cancelled; web stays paused here"), "{message}");
        let (code, message) = exit(Outcome::InDoubt, Some(Reason::InDoubt)).unwrap();
        assert!(code == Exit::InDoubt && message.contains("--resolve run"));
        assert!(exit(Outcome::Lost, Some(Reason::Guest)).unwrap().1.contains("neither"));
        let (code, message) = exit(Outcome::Lost, Some(Reason::GuestStopped)).unwrap();
        assert!(code == Exit::Failed && message.contains("it is gone"), "{message}");
        assert!(!message.contains("keeps running here"), "{message}");
    }
}
