//! Formats a migration's report for users, and maps it to an exit code.

use std::time::Duration;

use migrate::progress::{LinkProgress, Role};
use migrate::report::{Estimated, Outcome, Standstill};
use migrate::{Phase, Reason, Report};

use super::progress::average_rate;
use crate::api::types::GuestState;
use crate::decisions;
use crate::exit::{Exit, ExitWith};
use crate::table::facts_within;
use crate::units::{format_count, format_duration, format_rate, format_size};

/// Formats the figures of a migration, one per line, for a terminal of `screen` characters.
/// `stall_seconds` is the longest gap that the guest itself noticed, where that is known.
pub(crate) fn figures(
    report: &Report,
    stall_seconds: Option<f64>,
    screen: Option<usize>,
) -> String {
    let transfer = &report.transfer;
    let mut lines = vec![("Total time", seconds(report.total_seconds))];
    lines.extend(pauses(report, stall_seconds));
    if let Some(parts) = &report.standstill {
        lines.push(("Spent on", standstill(parts) + &handed_over(report)));
    }
    lines.extend(report.estimate.as_ref().map(|estimate| ("Estimated", estimated(estimate))));
    lines.push(("Rounds", report.rounds_total.to_string()));
    lines.extend(report.decisions.iter().map(|decided| ("Decided", decisions::dated(decided))));
    lines.extend(unlisted(report).map(|text| ("Decided", text)));
    let following = seconds_in(report, Phase::Postcopy);
    lines.extend(following.map(|took| ("Memory", followed(took, report))));
    let memory = report.memory_bytes.saturating_add(report.disk_bytes);
    let percent =
        if memory == 0 { 0.0 } else { transfer.wire_bytes as f64 * 100.0 / memory as f64 };
    let what = if report.disk_bytes > 0 { "guest memory and disks" } else { "guest memory" };
    let sent = format_size(transfer.wire_bytes);
    lines.push(("Sent", format!("{sent} for {} of {what} ({percent:.0} %)", format_size(memory))));
    lines.extend(report.links.iter().map(|link| ("Link", carried(link))));
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
        pages => format!("; {} not sent: the guest reported them free", format_count(pages)),
    };
    lines.push(("Pages", pages + &hinted));
    facts_within(&lines, screen)
}

/// Formats what a link has carried, and why it was lost.
fn carried(link: &LinkProgress) -> String {
    let carried = format!("{} by {}", format_size(link.wire_bytes), link.address);
    match &link.lost {
        Some(why) => format!("{carried}, lost: {why}"),
        None => carried,
    }
}

/// Formats for how long memory came after the guest, and the longest wait for a page of it.
fn followed(time: f64, report: &Report) -> String {
    let longest = report.page_waits.as_ref().map(|waits| seconds(waits.longest_seconds));
    let longest = longest.map(|longest| format!("; its longest wait for a page took {longest}"));
    format!("followed the guest for {}{}", seconds(time), longest.unwrap_or_default())
}

/// Formats what an estimate before the migration said of it.
fn estimated(estimate: &Estimated) -> String {
    let (total, downtime) = (seconds(estimate.total_seconds), seconds(estimate.downtime_seconds));
    format!("{total} in all, {downtime} of downtime, {} sent", format_size(estimate.wire_bytes))
}

/// Says how many decisions the report does not list, if there were too many.
fn unlisted(report: &Report) -> Option<String> {
    let all: u64 = report.decision_counts.values().sum();
    let more = all.saturating_sub(report.decisions.len() as u64);
    (more > 0).then(|| format!("{more} more, between the first and the last ones"))
}

/// Formats how long the guest was paused. Where the downtime, all pauses of the migration and the
/// longest gap that the guest noticed differ, each says what it measures; otherwise one stands for
/// all.
pub(super) fn pauses(report: &Report, stall_seconds: Option<f64>) -> Vec<(&'static str, String)> {
    let Some(downtime) = report.downtime_seconds else {
        let stood = report.dry_run_seconds + report.return_seconds > 0.0;
        let runs = stood.then(|| ("Stood still", format!("in {}", earlier_pauses(report))));
        return runs.into_iter().collect();
    };
    let before = report.dry_run_seconds + report.return_seconds;
    let (shown, total) = (seconds(downtime), seconds(downtime + before));
    let stall = stall_seconds.map(seconds).filter(|stall| *stall != shown);
    let expected = report.expected_downtime_seconds;
    let expected = expected.map(|s| format!(" (expected {})", seconds(s))).unwrap_or_default();
    if total == shown && stall.is_none() {
        return vec![("Downtime", format!("{shown}{expected}"))];
    }
    let mut lines = vec![("Downtime", format!("{shown}{expected}, {}", measured(report)))];
    if total != shown {
        lines.push(("Stood still", format!("{total}, with {} before", earlier_pauses(report))));
    }
    lines.extend(stall.map(|stall| {
        ("Longest stall", format!("{stall}, the longest gap that the guest itself noticed"))
    }));
    lines
}

/// Returns from when to when the reporting host has measured the downtime.
fn measured(report: &Report) -> &'static str {
    match (report.role, report.outcome) {
        (Role::Source, Outcome::Migrated) => {
            "from its pause here until this host heard that it runs there"
        }
        (Role::Source, _) => "from its pause until it ran here again",
        (Role::Destination, _) => "from the announced switchover until it ran here",
    }
}

/// Formats the pauses of a guest that did not end with a hand-over.
fn earlier_pauses(report: &Report) -> String {
    let hand_overs = if report.returns == 1 { "hand-over" } else { "hand-overs" };
    match report.returns {
        0 => dry_runs(report),
        returns => format!(
            "{}, and {returns} {hand_overs} of {} that took too long",
            dry_runs(report),
            seconds(report.return_seconds)
        ),
    }
}

/// Formats the dry runs of a source and their pauses.
fn dry_runs(report: &Report) -> String {
    let runs = if report.dry_runs == 1 { "dry run" } else { "dry runs" };
    format!("{} {runs} of {}", report.dry_runs, seconds(report.dry_run_seconds))
}

/// Returns why the guest is not at its destination after the migration; `None` if it is. `here` is
/// its state at the source, if it has stayed and that is known.
pub(crate) fn failure(
    report: &Report,
    destination: &str,
    here: Option<GuestState>,
) -> Option<ExitWith> {
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
            format!(
                "the migration of {guest} to {destination} was cancelled; {}",
                stays(report, here)
            ),
        ),
        Outcome::StayedAtSource => (
            Exit::Failed,
            format!(
                "cannot migrate {guest} to {destination}: {cause}; {}{}",
                stays(report, here),
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
    let mut text = format!(
        "{} to pause it, {} to flush its disks, {} to save its state, {} to send the last pages",
        seconds(parts.pause_seconds),
        seconds(parts.flush_seconds),
        seconds(parts.save_seconds),
        seconds(parts.send_seconds),
    );
    for (took, what) in [
        (parts.record_seconds, "more to record the decision"),
        (parts.ready_seconds, "for the destination to be ready"),
    ] {
        if took > 0.0 {
            text.push_str(&format!(", {} {what}", seconds(took)));
        }
    }
    text
}

/// Formats the part of the downtime after everything was sent.
fn handed_over(report: &Report) -> String {
    let commit = seconds_in(report, Phase::Commit);
    commit.map_or_else(String::new, |took| format!(", {} to hand it over", seconds(took)))
}

/// Returns how long the phase lasted, if it was reached.
fn seconds_in(report: &Report, phase: Phase) -> Option<f64> {
    report.phases.iter().find(|time| time.phase == phase).map(|time| time.seconds)
}

/// Formats the downtime of a guest that stays, and its parts.
fn stood(report: &Report) -> String {
    let Some((downtime, parts)) = report.downtime_seconds.zip(report.standstill.as_ref()) else {
        return String::new();
    };
    format!(", after a pause of {}: {}", seconds(downtime), standstill(parts))
}

/// Returns what a guest does that has stayed at the source, where it is in the state `here`, if
/// that is known.
pub(super) fn stays(report: &Report, here: Option<GuestState>) -> &str {
    let as_before = match here {
        Some(GuestState::Paused) => "the guest stays paused here",
        Some(GuestState::Running | GuestState::Migrating) => "the guest keeps running here",
        Some(GuestState::Ended) => "the guest has ended since",
        Some(GuestState::Incoming | GuestState::InDoubt) | None => "the guest stays here",
    };
    report.way_out.as_deref().unwrap_or(as_before)
}

/// Formats a time of a report; an invalid (negative) one is shown as zero.
pub(crate) fn seconds(seconds: f64) -> String {
    format_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use migrate::MigrationId;
    use migrate::decisions::{Cause, Decided, DecidedAt, DecisionKind};
    use migrate::phase::PhaseTime;
    use migrate::progress::Transfer;
    use migrate::report::ReportedError;
    use migrate::waits::PageWaits;

    use crate::golden;

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
            stall: None,
            decisions: Vec::new(),
            decision_counts: BTreeMap::new(),
            estimate: None,
            page_waits: None,
            dry_runs: 1,
            dry_run_seconds: 0.004,
            returns: 0,
            return_seconds: 0.0,
            phases: Vec::new(),
            memory_bytes: 512 << 20,
            disk_bytes: 0,
            transfer: Transfer { wire_bytes: 256 << 20, raw_pages: 60_000, ..Transfer::default() },
            links: Vec::new(),
            rounds_total: 3,
            rounds: Vec::new(),
        }
    }

    #[test]
    fn figures_are_those_of_the_report() {
        let text = figures(&report(Outcome::Migrated, None), None, None);
        for part in [
            "2.00 s",
            "32.4 ms (expected 30.0 ms)",
            "36.4 ms, with 1 dry run of 4.0 ms before",
            "256 MiB for 512 MiB",
            "(50 %)",
            "117 MiB/s of memory",
            "60,000 as they are",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn each_decision_has_a_line_with_its_reason() {
        let decided = |after_seconds, what| DecidedAt { after_seconds, what };
        let report = Report {
            decisions: vec![
                decided(
                    1.5,
                    Decided::Throttled { percent: 75, vcpus: 1, disk_bytes_per_second: None },
                ),
                decided(4.0, Decided::Postcopy { cause: Cause::Stall }),
            ],
            decision_counts: [(DecisionKind::Throttled, 1), (DecisionKind::Postcopy, 1)].into(),
            ..report(Outcome::Migrated, None)
        };
        let text = figures(&report, None, None);
        let lines = text.lines().filter(|line| line.starts_with("Decided"));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with("  at 1.50 s: 1 vCPU throttled by up to 75 %"), "{text}");
        assert!(lines[1].contains("before its memory, as it stalls"), "{text}");
        let counts = [(DecisionKind::Throttled, 40)].into();
        let text = figures(&Report { decision_counts: counts, ..report }, None, None);
        assert!(text.contains("Decided      38 more"), "{text}");
    }

    #[test]
    fn memory_that_followed_its_guest_is_said_to_have() {
        let time = PhaseTime { phase: Phase::Postcopy, seconds: 2.5 };
        let report = Report { phases: vec![time], ..report(Outcome::Migrated, None) };
        let text = figures(&report, None, None);
        assert!(text.contains("followed the guest for 2.50 s\n"), "{text}");
        let waits = PageWaits { longest_seconds: 0.031, ..PageWaits::default() };
        let text = figures(&Report { page_waits: Some(waits), ..report }, None, None);
        assert!(text.contains("2.50 s; its longest wait for a page took 31.0 ms"), "{text}");
    }

    #[test]
    fn pauses_that_differ_say_what_they_measure_and_equal_ones_are_one() {
        let report = Report { dry_run_seconds: 0.0, ..report(Outcome::Migrated, None) };
        let names = |report: &Report, stall| -> Vec<&'static str> {
            pauses(report, stall).into_iter().map(|(name, _)| name).collect()
        };
        for equal in [None, Some(0.032_42)] {
            let lines = pauses(&report, equal);
            assert_eq!(lines, [("Downtime", "32.4 ms (expected 30.0 ms)".to_owned())]);
        }
        assert_eq!(names(&report, Some(0.021)), ["Downtime", "Longest stall"]);
        let rehearsed = Report { dry_run_seconds: 0.004, ..report.clone() };
        assert_eq!(names(&rehearsed, None), ["Downtime", "Stood still"]);
        assert_eq!(names(&rehearsed, Some(0.0324)), ["Downtime", "Stood still"]);
        assert_eq!(names(&rehearsed, Some(0.021)), ["Downtime", "Stood still", "Longest stall"]);
        for (role, outcome, words) in [
            (Role::Source, Outcome::Migrated, "it runs there"),
            (Role::Source, Outcome::StayedAtSource, "ran here again"),
            (Role::Destination, Outcome::Migrated, "announced switchover"),
        ] {
            let report = Report { role, outcome, ..rehearsed.clone() };
            let lines = pauses(&report, None);
            assert!(lines[0].1.contains(words), "{lines:?}");
        }
        let unpaused = Report { downtime_seconds: None, ..rehearsed };
        assert_eq!(pauses(&unpaused, None), [("Stood still", "in 1 dry run of 4.0 ms".to_owned())]);
        let returned = Report { returns: 2, return_seconds: 3.2, ..unpaused };
        let text = "in 1 dry run of 4.0 ms, and 2 hand-overs of 3.20 s that took too long";
        assert_eq!(pauses(&returned, None), [("Stood still", text.to_owned())]);
    }

    #[test]
    fn a_finished_migration_fits_a_narrow_terminal() {
        let transfer = Transfer {
            wire_bytes: 412 << 20,
            raw_pages: 60_000,
            lz4_pages: 71_300,
            zero_pages: 12_800,
            hinted_pages: 9_100,
            disk_wire_bytes: 96 << 20,
            ..Transfer::default()
        };
        let standstill = Standstill {
            pause_seconds: 0.0021,
            flush_seconds: 0.0034,
            save_seconds: 0.0015,
            send_seconds: 0.0087,
            ready_seconds: 0.0,
            record_seconds: 0.0012,
        };
        let report = Report {
            standstill: Some(standstill),
            estimate: Some(Estimated {
                total_seconds: 1.84,
                downtime_seconds: 0.0281,
                wire_bytes: 430 << 20,
            }),
            disk_bytes: 1 << 30,
            transfer,
            phases: vec![PhaseTime { phase: Phase::Commit, seconds: 0.0042 }],
            ..report(Outcome::Migrated, None)
        };
        golden::matches("migrated.txt", &figures(&report, Some(0.0291), Some(golden::COLUMNS)));
    }

    #[test]
    fn a_pause_beyond_the_limit_is_reported_with_its_cause() {
        let report = Report {
            downtime_seconds: Some(1.604),
            standstill: Some(Standstill { flush_seconds: 1.598, ..Standstill::default() }),
            ..report(Outcome::StayedAtSource, Some(Reason::Downtime))
        };
        let message = failure(&report, "b", Some(GuestState::Running)).unwrap().message;
        for part in ["the guest keeps running here, after a pause of 1.60 s", "1.60 s to flush"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(figures(&report, None, None).contains("1.60 s to flush its disks"));
    }

    #[test]
    fn every_outcome_has_its_exit_code_and_says_where_the_guest_is() {
        let exit = |outcome, reason| {
            let failure = failure(&report(outcome, reason), "b", Some(GuestState::Running));
            failure.map(|with| (with.exit, with.message))
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
        let message = failure(&stuck, "b", Some(GuestState::Paused)).unwrap().message;
        assert!(message.ends_with("was cancelled; web stays paused here"), "{message}");
        let cancelled = report(Outcome::StayedAtSource, Some(Reason::Cancelled));
        let message = failure(&cancelled, "b", Some(GuestState::Paused)).unwrap().message;
        assert!(message.ends_with("was cancelled; the guest stays paused here"), "{message}");
        let (code, message) = exit(Outcome::InDoubt, Some(Reason::InDoubt)).unwrap();
        assert!(code == Exit::InDoubt && message.contains("--resolve run"));
        assert!(exit(Outcome::Lost, Some(Reason::Guest)).unwrap().1.contains("neither"));
        let (code, message) = exit(Outcome::Lost, Some(Reason::GuestStopped)).unwrap();
        assert!(code == Exit::Failed && message.contains("it is gone"), "{message}");
        assert!(!message.contains("keeps running here"), "{message}");
    }
}
