//! What estimates said and what came of it, as Markdown.

use super::contest::{Measured, Outcome};
use super::peer::Estimated;
use super::settings::Settings;
use super::statistics::{median, sorted};
use super::table::{DOWNTIME, TOTAL, WIRE, head, line, row, title};

/// A figure that is estimated.
struct Figure {
    name: &'static str,
    digits: usize,
    estimated: fn(&Estimated) -> f64,
    measured: fn(&Measured) -> f64,
}

const FIGURES: [Figure; 3] = [
    Figure {
        name: "total s",
        digits: 2,
        estimated: |estimate| estimate.total_seconds,
        measured: TOTAL.of,
    },
    Figure {
        name: "downtime ms",
        digits: 1,
        estimated: |estimate| estimate.downtime_seconds * 1e3,
        measured: DOWNTIME.of,
    },
    Figure {
        name: "MB on the wire",
        digits: 0,
        estimated: |estimate| estimate.wire_bytes / 1e6,
        measured: WIRE.of,
    },
];

/// The table, and the median error of all migrations.
pub(crate) fn markdown(settings: &Settings, outcome: &Outcome) -> String {
    let mut text = String::new();
    let runs = settings.runs;
    line(&mut text, &format!("Estimate and outcome, medians of {runs}, and the median error:\n"));
    let mut heads = ["guest", "link", "load"].map(str::to_owned).to_vec();
    heads.extend(FIGURES.iter().map(|figure| figure.name.to_owned()));
    head(&mut text, &heads);
    let mut all = Vec::new();
    for case in outcome.cases(|case| *case) {
        let of_case = outcome.runs.iter().filter(|run| run.case == case);
        let pairs: Vec<_> = of_case.filter_map(|run| pair(run.measured?)).collect();
        let mut cells =
            vec![title(&case.guest), case.link.to_string(), case.load.name(case.guest.filled_mib)];
        cells.extend(FIGURES.iter().map(|figure| cell(&pairs, figure)));
        row(&mut text, &cells);
        all.extend(pairs);
    }
    let errors = FIGURES.iter().map(|figure| {
        let error = median(&errors(&all, figure));
        let percent = error.map_or("-".to_owned(), |error| format!("{:.0} %", error * 100.0));
        format!("{} {percent}", figure.name)
    });
    let errors = errors.collect::<Vec<_>>().join(", ");
    line(&mut text, &format!("\nMedian error of {} migrations: {errors}.", all.len()));
    let others = outcome.runs.len() - all.len();
    if others > 0 {
        line(&mut text, &format!("{others} more had no end in sight, or none in time."));
    }
    text
}

/// An estimate and what came of it; none if the estimate saw no end.
fn pair(measured: Measured) -> Option<(Estimated, Measured)> {
    measured.transfer.estimate.map(|estimate| (estimate, measured))
}

fn cell(pairs: &[(Estimated, Measured)], figure: &Figure) -> String {
    let digits = figure.digits;
    let said = median(&sorted(pairs.iter().map(|pair| (figure.estimated)(&pair.0))));
    let was = median(&sorted(pairs.iter().map(|pair| (figure.measured)(&pair.1))));
    match (said, was, median(&errors(pairs, figure))) {
        (Some(said), Some(was), Some(error)) => {
            format!("{said:.digits$}, was {was:.digits$} ({:.0} %)", error * 100.0)
        }
        _ => "-".to_owned(),
    }
}

/// How far estimates were off, as parts of what was measured, in ascending order.
fn errors(pairs: &[(Estimated, Measured)], figure: &Figure) -> Vec<f64> {
    sorted(pairs.iter().map(|(estimate, measured)| {
        let measured = (figure.measured)(measured);
        ((figure.estimated)(estimate) - measured).abs() / measured
    }))
}
