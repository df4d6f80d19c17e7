//! The results as Markdown: for each guest and link a table, and how figures grow with memory.

use std::fmt::Write;

use super::contest::{Case, Measured, Outcome, Run};
use super::settings::{FREE_MIB, GuestPlan, Mode, Settings, Variant};
use super::statistics::{median, milliseconds, sorted};

/// A figure to compare; smaller is better for all of them.
pub(crate) struct Figure {
    name: &'static str,
    digits: usize,
    /// The figure of a run.
    pub(crate) of: fn(&Measured) -> f64,
}

pub(crate) const TOTAL: Figure =
    Figure { name: "total s", digits: 2, of: |run| run.transfer.total.as_secs_f64() };
const GAP: Figure = Figure {
    name: "longest stall seen by the guest, ms",
    digits: 0,
    of: |run| milliseconds(run.gap),
};
pub(crate) const DOWNTIME: Figure = Figure {
    name: "reported downtime, ms",
    digits: 0,
    of: |run| milliseconds(run.transfer.downtime),
};
const PAUSE: Figure = Figure {
    name: "pause until its vCPUs run, ms",
    digits: 0,
    of: |run| milliseconds(run.transfer.pause),
};
const NEXT_GAP: Figure =
    Figure { name: "next longest stall, ms", digits: 1, of: |run| milliseconds(run.next_gap) };
const STALLED: Figure = Figure {
    name: "all stalls of 1 ms and more, ms",
    digits: 0,
    of: |run| milliseconds(run.stalled),
};
pub(crate) const WIRE: Figure =
    Figure { name: "MB on the wire", digits: 0, of: |run| run.transfer.wire_bytes as f64 / 1e6 };
const CPU: Figure = Figure {
    name: "CPU s, source + destination",
    digits: 2,
    of: |run| run.transfer.source_cpu_seconds + run.transfer.destination_cpu_seconds,
};
const RATE: Figure = Figure {
    name: "its rate, Mbit/s",
    digits: 0,
    of: |run| run.transfer.wire_bytes as f64 * 8e-6 / run.transfer.total.as_secs_f64(),
};
const TCP_RATE: Figure = Figure {
    name: "rate of TCP beside it, Mbit/s",
    digits: 0,
    of: |run| run.tcp_mbit_per_second.unwrap_or(0.0),
};
/// What the guest sees without a migration: what its stalls are to be read against.
const AT_REST: Figure = Figure {
    name: "longest stall in a second at rest, ms",
    digits: 0,
    of: |run| milliseconds(run.gap_at_rest),
};

const fn figures(settings: &Settings) -> &'static [Figure] {
    match settings.mode() {
        _ if settings.beside_tcp => &[TOTAL, RATE, TCP_RATE, CPU],
        Mode::Precopy | Mode::Estimate => &[TOTAL, GAP, DOWNTIME, WIRE, CPU],
        Mode::Postcopy => &[TOTAL, PAUSE, GAP, NEXT_GAP, STALLED, WIRE, CPU],
    }
}

/// The tables: medians (and ranges), and lighter's as a ratio of QEMU's over TLS.
pub(crate) fn markdown(settings: &Settings, outcome: &Outcome) -> String {
    let table = Table { settings, outcome, variants: settings.variants() };
    let mut text = String::new();
    for case in outcome.cases(|case| Case { load: case.guest.first_load, ..*case }) {
        table.compare(&mut text, &case);
    }
    table.overhead(&mut text);
    table.growth(&mut text);
    text
}

struct Table<'a> {
    settings: &'a Settings,
    outcome: &'a Outcome,
    variants: Vec<Variant>,
}

impl Table<'_> {
    /// Compares the variants in all loads of the guest and the link of `case`.
    fn compare(&self, text: &mut String, case: &Case) {
        let runs = self.settings.runs;
        let title = title(&case.guest);
        line(text, &format!("{title}, {}; median (range) of {runs} runs:\n", case.link));
        let mut heads = vec!["load".to_owned(), "figure".to_owned()];
        heads.extend(self.variants.iter().map(|variant| variant.name().to_owned()));
        let has = |variant| self.variants.contains(&variant);
        let compares = has(Variant::Lighter) && has(Variant::QemuTls);
        if compares {
            heads.push("lighter / QEMU TLS".to_owned());
        }
        head(text, &heads);
        let all = self.outcome.cases(|other| *other).into_iter();
        for case in all.filter(|other| (other.guest, other.link) == (case.guest, case.link)) {
            for figure in figures(self.settings) {
                let mut cells = self.cells(&case, figure);
                if compares {
                    let median = |variant| median(&self.values(&case, variant, figure));
                    cells.push(match (median(Variant::Lighter), median(Variant::QemuTls)) {
                        (Some(lighter), Some(qemu)) => format!("**{:.2}**", lighter / qemu),
                        _ => "-".to_owned(),
                    });
                }
                row(text, &cells);
            }
            let mut cells = self.cells(&case, &AT_REST);
            if compares {
                cells.push(String::new());
            }
            row(text, &cells);
        }
        text.push('\n');
    }

    /// The cells of a row up to the last variant's.
    fn cells(&self, case: &Case, figure: &Figure) -> Vec<String> {
        let name = case.load.name(case.guest.filled_mib);
        let cells = self.variants.iter().map(|variant| self.cell(case, *variant, figure));
        [name, figure.name.to_owned()].into_iter().chain(cells).collect()
    }

    fn cell(&self, case: &Case, variant: Variant, figure: &Figure) -> String {
        let values = self.values(case, variant, figure);
        let digits = figure.digits;
        let mut text = match (median(&values), values.first(), values.last()) {
            (Some(median), Some(first), Some(last)) => {
                format!("{median:.digits$} ({first:.digits$}-{last:.digits$})")
            }
            _ => "-".to_owned(),
        };
        let late = self.runs(case, variant).filter(|run| run.measured.is_none()).count();
        let all = self.runs(case, variant).count();
        if late > 0 {
            text +=
                &format!("; {late} of {all} not within {} s", self.settings.patience().as_secs());
        }
        let others = all - late - values.len();
        if others > 0 {
            text += &format!("; {others} of {all} with all memory first");
        }
        text
    }

    fn runs(&self, case: &Case, variant: Variant) -> impl Iterator<Item = &Run> {
        self.outcome.runs.iter().filter(move |run| run.case == *case && run.variant == variant)
    }

    /// The figure of all runs that went as they were meant to, in ascending order.
    fn values(&self, case: &Case, variant: Variant, figure: &Figure) -> Vec<f64> {
        let measured = self.runs(case, variant).filter_map(|run| run.measured.as_ref());
        let meant =
            measured.filter(|measured| self.settings.is_meant(measured.transfer.is_postcopy));
        sorted(meant.map(figure.of))
    }

    fn overhead(&self, text: &mut String) {
        for (guest, system, bytes) in &self.outcome.overhead_bytes {
            let mib = *bytes as f64 / f64::from(1 << 20);
            let memory = guest.memory_mib();
            line(text, &format!("Resident beyond memory of {memory} MiB, {system}: {mib:.1} MiB."));
        }
        text.push('\n');
    }

    /// Shows what becomes of each figure with more memory, if guests of several sizes took part.
    fn growth(&self, text: &mut String) {
        let sizes = self.settings.sizes();
        let [smallest, .., largest] = sizes[..] else { return };
        let of = |case: &Case, filled_mib| Case {
            guest: GuestPlan { filled_mib, ..case.guest },
            ..*case
        };
        let [few, many] = [smallest, largest].map(|size| size + FREE_MIB);
        line(text, &format!("From {few} to {many} MiB of guest memory, medians:\n"));
        let heads = ["vCPUs", "link", "load", "figure"].map(str::to_owned).into_iter();
        let heads = heads.chain(self.variants.iter().map(|it| it.name().to_owned()));
        head(text, &heads.collect::<Vec<_>>());
        for case in self.outcome.cases(|case| of(case, smallest)) {
            for figure in figures(self.settings) {
                let cells = self.variants.iter().map(|variant| {
                    let median = |size| median(&self.values(&of(&case, size), *variant, figure));
                    match (median(smallest), median(largest)) {
                        (Some(small), Some(large)) => {
                            let digits = figure.digits;
                            format!(
                                "{small:.digits$} to {large:.digits$}: {:.1} times",
                                large / small
                            )
                        }
                        _ => "-".to_owned(),
                    }
                });
                let (cpus, load) = (case.guest.cpus.to_string(), case.load.name(smallest));
                let heads = [cpus, case.link.to_string(), load, figure.name.to_owned()];
                row(text, &heads.into_iter().chain(cells).collect::<Vec<_>>());
            }
        }
        text.push('\n');
    }
}

/// What kind of guest it is.
pub(crate) fn title(guest: &GuestPlan) -> String {
    let GuestPlan { filled_mib, zero_percent, cpus, halts, .. } = guest;
    let random = filled_mib * (100 - zero_percent) / 100;
    let memory = guest.memory_mib();
    let plural = if *cpus == 1 { "" } else { "s" };
    let sleeps = if *halts { ", which sleeps" } else { "" };
    format!("{memory} MiB guest, {random} MiB of it random, {cpus} vCPU{plural}{sleeps}")
}

/// Adds the head of a table.
pub(crate) fn head(text: &mut String, heads: &[String]) {
    row(text, heads);
    row(text, &vec!["---".to_owned(); heads.len()]);
}

/// Adds a row of a table.
pub(crate) fn row(text: &mut String, cells: &[String]) {
    line(text, &format!("| {} |", cells.join(" | ")));
}

/// Adds a line.
pub(crate) fn line(text: &mut String, content: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{content}");
}
