//! The results as Markdown.

use std::fmt::Write;

use super::contest::{Outcome, Run};
use super::settings::{LOADS, Load, Settings, Variant};

/// A figure to compare; smaller is better for all of them.
struct Figure {
    name: &'static str,
    digits: usize,
    of: fn(&Run) -> f64,
}

const FIGURES: [Figure; 4] = [
    Figure { name: "total s", digits: 2, of: |run| run.transfer.total.as_secs_f64() },
    Figure {
        name: "longest stall seen by the guest, ms",
        digits: 0,
        of: |run| run.gap.as_secs_f64() * 1e3,
    },
    Figure { name: "MB on the wire", digits: 0, of: |run| run.transfer.wire_bytes as f64 / 1e6 },
    Figure {
        name: "CPU s, source + destination",
        digits: 2,
        of: |run| run.transfer.source_cpu_seconds + run.transfer.destination_cpu_seconds,
    },
];

/// The tables: medians (and ranges), and lighter's as a ratio of QEMU's over TLS.
pub(crate) fn markdown(settings: &Settings, outcome: &Outcome) -> String {
    let mut text = format!(
        "{} MiB guest, {} MiB of it random, 1 vCPU; median (range) of {} runs.\n\n",
        settings.memory_mib, settings.filled_mib, settings.runs
    );
    let mut heads = vec!["load".to_owned(), "figure".to_owned()];
    heads.extend(settings.variants.iter().map(|variant| variant.name().to_owned()));
    let compare = settings.has(&[Variant::Lighter]) && settings.has(&[Variant::QemuTls]);
    if compare {
        heads.push("lighter / QEMU TLS".to_owned());
    }
    row(&mut text, &heads);
    row(&mut text, &vec!["---".to_owned(); heads.len()]);
    for load in LOADS {
        for figure in &FIGURES {
            let mut cells = vec![load.name.to_owned(), figure.name.to_owned()];
            cells.extend(
                settings.variants.iter().map(|variant| cell(outcome, load, *variant, figure)),
            );
            if compare {
                let median = |variant| median(&values(outcome, load, variant, figure));
                let ratio = median(Variant::Lighter) / median(Variant::QemuTls);
                cells.push(format!("**{ratio:.2}**"));
            }
            row(&mut text, &cells);
        }
    }
    text.push('\n');
    for (system, bytes) in &outcome.overhead_bytes {
        let mib = *bytes as f64 / f64::from(1 << 20);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "Resident beyond guest memory, {system}: {mib:.1} MiB.");
    }
    text
}

fn row(text: &mut String, cells: &[String]) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn cell(outcome: &Outcome, load: Load, variant: Variant, figure: &Figure) -> String {
    let values = values(outcome, load, variant, figure);
    let digits = figure.digits;
    let (first, last) = (values.first().unwrap_or(&f64::NAN), values.last().unwrap_or(&f64::NAN));
    format!("{:.digits$} ({first:.digits$}-{last:.digits$})", median(&values))
}

/// The figure of all runs, in ascending order.
fn values(outcome: &Outcome, load: Load, variant: Variant, figure: &Figure) -> Vec<f64> {
    let runs = outcome.runs.iter().filter(|run| run.load == load && run.variant == variant);
    let mut values: Vec<f64> = runs.map(figure.of).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median of values in ascending order; for an even number, the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(values[middle - 1], *value),
        (None, _) => f64::NAN,
    }
}
