//! The progress of a running migration: a bar on a terminal; lines if stderr is not one, or beside
//! JSON; nothing for programs.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use migrate::decisions::{Decided, DecisionKind};
use migrate::progress::Transfer;
use migrate::{OnStall, Phase, Progress};

use crate::cli::Output;
use crate::decisions;
use crate::output;
use crate::units::{PAGE_BYTES, format_duration, format_rate, format_size, format_vcpus};

/// What is shown while a guest writes faster than its memory is sent.
const NOT_CONVERGING: &str = "not converging: `lighter migrate NAME --set on-stall=throttle` slows the guest down, --set \
     downtime=TIME allows a longer pause, and a higher --bandwidth helps where it is limited";

/// What helps where the downtime limit is impossible.
const LONGER_PAUSE: &str = "; `lighter migrate NAME --set downtime=TIME` allows a longer pause";

/// How often a line is printed within a long phase or round.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// Columns assumed of a terminal that does not know its size.
const COLUMNS: usize = 80;

/// Shows progress on stderr.
#[derive(Debug)]
pub(crate) enum ProgressView {
    /// One line that is updated in place.
    Bar {
        /// The line.
        bar: ProgressBar,
        /// The remedy that was last shown for a migration that does not converge.
        warned: Option<String>,
    },
    /// A line for each phase and round, and every [`LINES_EVERY`] within one.
    Lines {
        /// The phase and round of the last line, and when it was printed.
        last: Option<((Phase, u32, bool), Instant)>,
    },
    /// No progress: JSON is asked for, and stderr is not a terminal.
    Silent,
}

impl ProgressView {
    /// Returns the view that fits the output and stderr.
    pub(crate) fn new(output: Output) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        match std::env::var_os("TERM") {
            // It cannot update a line in place.
            Some(kind) if on_terminal && kind == "dumb" => Self::Lines { last: None },
            _ => Self::fitting(output, on_terminal),
        }
    }

    fn fitting(output: Output, on_terminal: bool) -> Self {
        match (output, on_terminal) {
            (Output::Text, true) => Self::bar(),
            // The JSON document on stdout may go to the same terminal.
            (Output::Json, true) | (Output::Text, false) => Self::Lines { last: None },
            (Output::Json, false) => Self::Silent,
        }
    }

    fn bar() -> Self {
        let bar = ProgressBar::new_spinner();
        // A template that does not parse affects only the appearance.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self::Bar { bar, warned: None }
    }

    /// Shows the current progress.
    pub(crate) fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bar { bar, warned } => {
                let help = help(progress);
                if let Some(help) = help.filter(|help| warned.as_ref() != Some(help)) {
                    bar.println(&help);
                    *warned = Some(help);
                }
                bar.set_message(bar_line(progress, output::note_columns().unwrap_or(COLUMNS)));
            }
            Self::Lines { last } => {
                let is_out_of_reach = progress.disconnected.is_some();
                let line = (progress.phase, round(progress), is_out_of_reach);
                let now = Instant::now();
                if last.is_none_or(|(shown, at)| shown != line || now >= at + LINES_EVERY) {
                    *last = Some((line, now));
                    output::note(format_args!("{:>20}  {}", step(progress), figures(progress)));
                }
            }
            Self::Silent => {}
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

/// Returns the line with the bar for a terminal of `columns` characters, with as many figures as
/// fit on it.
fn bar_line(progress: &Progress, columns: usize) -> String {
    let width = (columns / 10).clamp(4, 24);
    let all = progress.memory_bytes.saturating_add(progress.disk_bytes).max(1);
    let done = (done_bytes(progress) as f64 / all as f64 * width as f64) as usize;
    let head = if done < width { ">" } else { "" };
    let bar = format!("{}{head}", "=".repeat(done.min(width)));
    let start = format!("{:>17} [{bar:width$}] ", step(progress));
    let mut parts = parts(progress);
    if needs_help(progress) {
        parts.push((Rank::Remaining, "not converging".to_owned()));
    }
    // The last column stays free: some terminals begin a new line after it.
    let room = columns.saturating_sub(start.chars().count() + 1);
    format!("{start}{}", fitting_parts(parts, room)).trim_end().to_owned()
}

/// Joins the most important parts that fit in `room` characters, in their order.
fn fitting_parts(mut parts: Vec<(Rank, String)>, room: usize) -> String {
    loop {
        let text = joined(&parts);
        let least = parts.iter().map(|(rank, _)| *rank).max();
        match least {
            Some(least) if text.chars().count() > room => parts.retain(|(rank, _)| *rank != least),
            _ => return text,
        }
    }
}

/// Whether rounds are in vain and nothing is done about it.
fn needs_help(progress: &Progress) -> bool {
    let waits = matches!(progress.on_stall, None | Some(OnStall::Wait));
    let is_helpless = waits || progress.postcopy_refused.is_some();
    progress.phase <= Phase::Precopy && !progress.converging && is_helpless
}

/// Says what helps a migration whose rounds are in vain.
fn help(progress: &Progress) -> Option<String> {
    use DecisionKind::{Impossible, LimitRaised, LimitsChanged, Stalled};
    if let Some(detail) = &progress.disconnected {
        return Some(decisions::text(&Decided::Disconnected { detail: detail.clone() }));
    }
    if !needs_help(progress) {
        return None;
    }
    let mut decided = progress.decisions.iter().rev().map(|decided| &decided.what);
    let is_of_limits =
        |what: &&Decided| matches!(what.kind(), Impossible | LimitRaised | LimitsChanged | Stalled);
    let last = decided.find(is_of_limits);
    Some(match last.filter(|what| what.kind() == Impossible) {
        Some(impossible) => format!("{}{LONGER_PAUSE}", decisions::text(impossible)),
        None => NOT_CONVERGING.to_owned(),
    })
}

fn joined(parts: &[(Rank, String)]) -> String {
    parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join(", ")
}

/// Returns the number of the round that is under way or comes next.
fn round(progress: &Progress) -> u32 {
    progress.round.max(1)
}

fn step(progress: &Progress) -> String {
    match progress.phase {
        Phase::Precopy => format!("precopy, round {}", round(progress)),
        phase => phase.name().to_owned(),
    }
}

/// Returns the bytes of memory and disks that do not wait to be sent. Before the first round all of
/// them wait.
fn done_bytes(progress: &Progress) -> u64 {
    if progress.phase < Phase::Precopy {
        0
    } else {
        let all = progress.memory_bytes.saturating_add(progress.disk_bytes);
        all.saturating_sub(progress.remaining_bytes).saturating_sub(progress.disk_remaining_bytes)
    }
}

/// The figures, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Remaining,
    Rate,
    Downtime,
    Dirtied,
    Sent,
    Free,
}

/// Formats the phase or round that is under way with all its figures.
pub(super) fn line(progress: &Progress) -> String {
    let figures = figures(progress);
    let separator = if figures.is_empty() { "" } else { ", " };
    format!("{}{separator}{figures}", step(progress))
}

fn figures(progress: &Progress) -> String {
    let mut parts = parts(progress);
    parts.extend(help(progress).map(|help| (Rank::Remaining, help)));
    joined(&parts)
}

/// Formats the figures that are known by now.
fn parts(progress: &Progress) -> Vec<(Rank, String)> {
    if progress.phase < Phase::Precopy {
        return Vec::new();
    }
    let mut parts = vec![
        (Rank::Sent, sent(progress)),
        (Rank::Remaining, format!("{} left", format_size(progress.remaining_bytes))),
    ];
    if progress.disk_bytes > 0 {
        let left = format_size(progress.disk_remaining_bytes);
        parts.push((Rank::Remaining, format!("{left} of disks left")));
    }
    if progress.throttle_percent > 0 {
        let (vcpus, percent) = (progress.throttled_vcpus, progress.throttle_percent);
        let throttled = format!("{} throttled by up to {percent} %", format_vcpus(vcpus));
        parts.push((Rank::Remaining, throttled));
    }
    for link in progress.links.iter().filter(|link| link.lost.is_some()) {
        parts.push((Rank::Remaining, format!("link {} lost", link.address)));
    }
    if progress.disconnected.is_some() {
        parts.push((Rank::Remaining, "destination out of reach".to_owned()));
    }
    if let Some(why) = &progress.postcopy_refused {
        parts.push((Rank::Remaining, format!("goes on with rounds, as {why}")));
    }
    parts.extend(page_wait(progress).map(|text| (Rank::Remaining, text)));
    if progress.transfer.hinted_pages > 0 {
        let free = format_size(progress.transfer.hinted_pages.saturating_mul(PAGE_BYTES));
        parts.push((Rank::Free, format!("{free} free and not sent")));
    }
    let rate = rate(progress);
    if rate > 0 {
        parts.push((Rank::Rate, format_rate(rate)));
    }
    // Both are measured at the end of the first round.
    if let Some(expected) = progress.expected_downtime_seconds {
        let dirtied = progress.dirty_pages_per_second.max(0.0) * PAGE_BYTES as f64;
        parts.push((Rank::Dirtied, format!("{} dirtied", format_rate(dirtied as u64))));
        if let Ok(expected) = Duration::try_from_secs_f64(expected) {
            parts
                .push((Rank::Downtime, format!("expected downtime {}", format_duration(expected))));
        }
    }
    parts
}

/// Formats what has been sent, and since when; not at the very beginning.
fn sent(progress: &Progress) -> String {
    let sent = format!("{} sent", format_size(progress.transfer.wire_bytes));
    match Duration::try_from_secs_f64(progress.elapsed_seconds) {
        Ok(elapsed) if !elapsed.is_zero() => format!("{sent} in {}", format_duration(elapsed)),
        _ => sent,
    }
}

/// Formats how long the guest has waited for a page, once that is so long that the page seems to be
/// withheld.
pub(crate) fn page_wait(progress: &Progress) -> Option<String> {
    let waits = progress.page_waits.as_ref().filter(|waits| waits.is_withheld())?;
    let time = Duration::try_from_secs_f64(waits.oldest_seconds).unwrap_or_default();
    Some(format!("the guest has waited for a page for {}", format_duration(time)))
}

/// Returns the memory sent each second: as measured over the last rounds, or the average while the
/// first one is under way.
fn rate(progress: &Progress) -> u64 {
    if progress.bandwidth_bytes_per_second >= 1.0 {
        return progress.bandwidth_bytes_per_second as u64;
    }
    average_rate(&progress.transfer, progress.elapsed_seconds)
}

/// Returns the memory sent each second on average, in bytes before compression, without zero pages.
pub(super) fn average_rate(transfer: &Transfer, seconds: f64) -> u64 {
    let pages = transfer.content_pages();
    (pages as f64 * PAGE_BYTES as f64 / seconds.max(1e-3)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrate::MigrationId;
    use migrate::decisions::DecidedAt;
    use migrate::progress::Role;
    use migrate::waits::PageWaits;

    use crate::golden;

    #[test]
    fn the_view_matches_the_output_and_the_terminal() {
        let view = |output, on_terminal| ProgressView::fitting(output, on_terminal);
        assert!(matches!(view(Output::Json, false), ProgressView::Silent));
        assert!(matches!(view(Output::Json, true), ProgressView::Lines { .. }));
        assert!(matches!(view(Output::Text, false), ProgressView::Lines { .. }));
        assert!(matches!(view(Output::Text, true), ProgressView::Bar { .. }));
    }

    #[test]
    fn a_guest_that_writes_too_fast_is_shown_with_the_remedy() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        progress.phase = Phase::Precopy;
        assert!(!figures(&progress).contains("converging"), "{}", figures(&progress));
        progress.converging = false;
        let said = figures(&progress);
        for way_out in ["not converging", "on-stall=throttle", "downtime=", "--bandwidth"] {
            assert!(said.contains(way_out), "{said}");
        }
        progress.on_stall = Some(OnStall::Throttle);
        (progress.throttled_vcpus, progress.throttle_percent) = (2, 75);
        let said = figures(&progress);
        let throttled = said.contains("2 vCPUs throttled by up to 75 %");
        assert!(!said.contains("converging") && throttled, "{said}");
    }

    #[test]
    fn a_destination_that_is_out_of_reach_is_shown_with_what_is_done() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        progress.phase = Phase::Precopy;
        progress.disconnected = Some("timed out".to_owned());
        let said = figures(&progress);
        for part in ["destination out of reach", "(timed out): trying to reconnect for 2m 00s"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn a_downtime_limit_that_is_impossible_is_said_to_be_until_limits_change() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        progress.phase = Phase::Precopy;
        (progress.converging, progress.on_stall) = (false, Some(OnStall::Wait));
        let decided = |what| DecidedAt { after_seconds: 12.0, what };
        let (fixed_seconds, downtime_limit_seconds) = (0.085, 0.01);
        progress.decisions = vec![decided(Decided::Impossible {
            fixed_seconds,
            downtime_limit_seconds,
            on_stall: OnStall::Wait,
        })];
        let said = figures(&progress);
        for part in ["10.0 ms is impossible", "takes 85.0 ms", "--set downtime=TIME"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("on-stall=throttle"), "a throttle does not help: {said}");
        progress.decisions.push(decided(Decided::LimitsChanged {
            downtime_limit_seconds: Some(0.02),
            downtime_max_seconds: None,
            time_limit_seconds: None,
            bandwidth_limit_bytes_per_second: None,
            on_stall: None,
        }));
        assert!(!figures(&progress).contains("impossible"), "it is not known yet");
    }

    #[test]
    fn a_stall_without_the_postcopy_that_was_asked_for_says_why() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        progress.phase = Phase::Precopy;
        progress.converging = false;
        progress.on_stall = Some(OnStall::Postcopy);
        assert!(!figures(&progress).contains("converging"), "it has not stalled yet");
        progress.postcopy_refused = Some("the destination cannot".to_owned());
        let said = figures(&progress);
        assert!(said.contains("goes on with rounds, as the destination cannot"), "{said}");
        assert!(said.contains("on-stall=throttle"), "{said}");
    }

    #[test]
    fn a_guest_that_waits_for_a_page_for_long_is_shown_to() {
        let mut progress = Progress::new(MigrationId::random(), Role::Destination);
        progress.phase = Phase::Postcopy;
        for (oldest_seconds, is_said) in [(0.5, false), (7.0, true)] {
            progress.page_waits = Some(PageWaits { oldest_seconds, ..PageWaits::default() });
            let said = figures(&progress);
            assert_eq!(said.contains("has waited for a page for 7.00 s"), is_said, "{said}");
        }
    }

    #[test]
    fn the_rate_is_that_of_memory_however_well_it_is_compressed() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        let (raw_pages, lz4_pages, zero_pages, wire_bytes) = (1000, 3000, 5000, 5_000_000);
        progress.transfer =
            Transfer { raw_pages, lz4_pages, zero_pages, wire_bytes, ..Transfer::default() };
        progress.elapsed_seconds = 2.0;
        assert_eq!(rate(&progress), 4000 * 4096 / 2);
        progress.bandwidth_bytes_per_second = 1e9;
        assert_eq!(rate(&progress), 1_000_000_000);
    }

    #[test]
    fn rounds_show_their_figures_and_earlier_phases_show_none() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        assert_eq!((step(&progress), figures(&progress)), ("connect".to_owned(), String::new()));

        progress.phase = Phase::Precopy;
        progress.round = 2;
        progress.memory_bytes = 100 << 20;
        progress.remaining_bytes = 25 << 20;
        progress.dirty_pages_per_second = 2000.0;
        progress.bandwidth_bytes_per_second = 1e9;
        progress.expected_downtime_seconds = Some(0.0123);
        assert_eq!(step(&progress), "precopy, round 2");
        assert_eq!(done_bytes(&progress), 75 << 20);
        assert_eq!(
            figures(&progress),
            "0 B sent, 25 MiB left, 954 MiB/s, 7.81 MiB/s dirtied, expected downtime 12.3 ms"
        );
        assert_eq!(line(&progress), format!("precopy, round 2, {}", figures(&progress)));
    }

    #[test]
    fn what_is_not_measured_yet_is_not_shown_as_zero() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        assert_eq!(line(&progress), "connect");
        progress.phase = Phase::Precopy;
        progress.round = 1;
        progress.remaining_bytes = 100 << 20;
        assert_eq!(line(&progress), "precopy, round 1, 0 B sent, 100 MiB left");
        // During the first round, its rate is known, and what the guest dirties is not.
        progress.bandwidth_bytes_per_second = 1e9;
        assert_eq!(line(&progress), "precopy, round 1, 0 B sent, 100 MiB left, 954 MiB/s");
        progress.expected_downtime_seconds = Some(0.002);
        assert!(figures(&progress).contains("0 B/s dirtied"), "it was measured: {progress:?}");
    }

    #[test]
    fn the_bar_shows_what_fits_on_the_terminal() {
        let mut progress = Progress::new(MigrationId::random(), Role::Source);
        assert_eq!(bar_line(&progress, 80), "          connect [>       ]");
        progress.phase = Phase::Precopy;
        progress.round = 2;
        progress.memory_bytes = 8 << 30;
        progress.remaining_bytes = 2 << 30;
        progress.transfer.wire_bytes = 3 << 30;
        progress.elapsed_seconds = 12.34;
        progress.dirty_pages_per_second = 2000.0;
        progress.bandwidth_bytes_per_second = 1e9;
        progress.expected_downtime_seconds = Some(0.0123);
        golden::matches("progress.txt", &format!("{}\n", bar_line(&progress, golden::COLUMNS)));
        assert!(
            bar_line(&progress, 200)
                .contains("3 GiB sent in 12.34 s, 2 GiB left, 954 MiB/s, 7.81 MiB/s")
        );
        progress.converging = false;
        let narrow = bar_line(&progress, golden::COLUMNS);
        assert!(narrow.ends_with("2 GiB left, 954 MiB/s, not converging"), "{narrow}");
        assert!(bar_line(&progress, 20).chars().count() < 40);
    }
}
