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

/// An estimate and what came of it.
type Pair = (Estimated, Measured);

/// The table, the median error of all migrations, and that of always saying the median of a case's
/// outcomes: what runs of one case differ by.
pub(crate) fn markdown(settings: &Settings, outcome: &Outcome) -> String {
    let mut text = String::new();
    let runs = settings.runs;
    line(&mut text, &format!("Estimate and outcome, medians of {runs}, and the median error:\n"));
    let mut heads = ["guest", "link", "load"].map(str::to_owned).to_vec();
    heads.extend(FIGURES.iter().map(|figure| figure.name.to_owned()));
    head(&mut text, &heads);
    let mut cases = Vec::new();
    for case in outcome.cases(|case| *case) {
        let of_case = outcome.runs.iter().filter(|run| run.case == case);
        let pairs: Vec<_> = of_case.filter_map(|run| pair(run.measured?)).collect();
        let mut cells =
            vec![title(&case.guest), case.link.to_string(), case.load.name(case.guest.filled_mib)];
        cells.extend(FIGURES.iter().map(|figure| cell(&pairs, figure)));
        row(&mut text, &cells);
        cases.push(pairs);
    }
    let count = cases.iter().map(Vec::len).sum::<usize>();
    let of_all = over_all(&cases, errors);
    line(&mut text, &format!("\nMedian error of {count} migrations: {of_all}."));
    let of_medians = over_all(&cases, errors_of_median);
    line(&mut text, &format!("That of the medians of the outcomes: {of_medians}."));
    let others = outcome.runs.len() - count;
    if others > 0 {
        line(&mut text, &format!("{others} more had no end in sight, or none in time."));
    }
    text
}

/// An estimate and what came of it; none if the estimate saw no end.
fn pair(measured: Measured) -> Option<Pair> {
    measured.transfer.estimate.map(|estimate| (estimate, measured))
}

/// The median of the `errors` of all cases, for each figure.
fn over_all(cases: &[Vec<Pair>], errors: fn(&[Pair], &Figure) -> Vec<f64>) -> String {
    let of_figure = |figure: &Figure| {
        let all = sorted(cases.iter().flat_map(|pairs| errors(pairs, figure)));
        let percent = median(&all).map_or("-".to_owned(), |it| format!("{:.0} %", it * 100.0));
        format!("{} {percent}", figure.name)
    };
    FIGURES.iter().map(of_figure).collect::<Vec<_>>().join(", ")
}

fn cell(pairs: &[Pair], figure: &Figure) -> String {
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
fn errors(pairs: &[Pair], figure: &Figure) -> Vec<f64> {
    sorted(pairs.iter().map(|(estimate, measured)| {
        error((figure.estimated)(estimate), (figure.measured)(measured))
    }))
}

/// How far the median of what was measured is off, as [`errors`].
fn errors_of_median(pairs: &[Pair], figure: &Figure) -> Vec<f64> {
    let measured = sorted(pairs.iter().map(|(_, measured)| (figure.measured)(measured)));
    let Some(median) = median(&measured) else { return measured };
    sorted(measured.into_iter().map(|measured| error(median, measured)))
}

fn error(said: f64, was: f64) -> f64 {
    (said - was).abs() / was
}
