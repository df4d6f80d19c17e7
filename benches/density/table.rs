//! The results as Markdown.

use super::contender::Contender;
use super::contest::Turn;
use super::settings::{Case, Settings};
use super::workload::IMAGE_PERCENT;

const MIB: f64 = (1 << 20) as f64;

const HEAD: [&str; 10] = [
    "who drives ksmd",
    "s",
    "CPU s: ksmd",
    "CPU s: all",
    "MiB saved",
    "net",
    "net MiB each CPU s (range)",
    "lighter / it",
    "huge pages kept: write-hot, read-hot",
    "reads during, after",
];

/// A table of medians over the turns of each contender.
pub(crate) fn markdown(settings: &Settings, case: Case, turns: &[Turn]) -> String {
    let mut lines = vec![
        title(settings, case),
        String::new(),
        format!("| {} |", HEAD.join(" | ")),
        format!("|{}", " --- |".repeat(HEAD.len())),
    ];
    let lighter = median(turns, Contender::Lighter, Turn::bytes_per_cpu_second);
    for contender in &settings.contenders {
        lines.push(row(turns, *contender, lighter));
    }
    for contender in &settings.skipped {
        let cells = vec!["skipped: this kernel has none"; HEAD.len() - 1];
        lines.push(format!("| {} | {} |", contender.name(), cells.join(" | ")));
    }
    lines.join("\n")
}

fn title(settings: &Settings, case: Case) -> String {
    let (hot, linux) = (settings.hot(case), settings.linux);
    let guests = match settings.clones(case) {
        0 => format!("{linux} guests of Linux ({} read-hot)", settings.readers(case).len()),
        clones => format!(
            "{clones} clones of {} MiB ({hot} write-hot, {hot} read-hot), {} % zeros, {IMAGE_PERCENT} % of the image, {}; \
             {linux} guests of Linux",
            settings.memory_mib,
            case.zero_percent,
            case.layout.name(),
        ),
    };
    format!(
        "{guests}; medians of {}, order of turns by lot (--seed {}); † better than lighter's; all guests \
         found their memory intact:",
        settings.runs, settings.seed,
    )
}

fn row(turns: &[Turn], contender: Contender, lighter: f64) -> String {
    let of = |figure: fn(&Turn) -> f64| median(turns, contender, figure);
    let rates = sorted(turns, contender, |turn| turn.bytes_per_cpu_second() / MIB);
    let range =
        (rates.first().copied().unwrap_or(f64::NAN), rates.last().copied().unwrap_or(f64::NAN));
    let rate = of(Turn::bytes_per_cpu_second);
    let kept =
        |part: f64| if part.is_nan() { "-".to_owned() } else { format!("{:.0} %", 100.0 * part) };
    let better = |text: String, figure: fn(&Turn) -> f64, goal: Goal| {
        let (its, ours) = (of(figure), median(turns, Contender::Lighter, figure));
        if goal.is_better(its, ours) { format!("{text} †") } else { text }
    };
    let write_hot = |it: &Turn| it.after.hot_huge as f64 / it.before.hot_huge as f64;
    let read_hot = |it: &Turn| it.after.reader_huge as f64 / it.before.reader_huge as f64;
    let seconds = |it: &Turn| it.spent.elapsed.as_secs_f64();
    let bytes = |figure| better(format!("{:.0}", of(figure) / MIB), figure, Goal::More);
    let share = |figure| better(kept(of(figure)), figure, Goal::More);
    let cells = [
        contender.name().to_owned(),
        better(format!("{:.0}", of(seconds)), seconds, Goal::Less),
        format!("{:.2}", of(|it| it.spent.ksmd)),
        format!("{:.2}", of(|it| it.spent.cpu_seconds())),
        bytes(Turn::gross_bytes),
        bytes(Turn::net_bytes),
        format!("{:.0} ({:.0} to {:.0})", rate / MIB, range.0, range.1),
        format!("**{:.2}**{}", lighter / rate, if lighter < rate { ", missed" } else { "" }),
        format!("{}, {}", share(write_hot), share(read_hot)),
        format!("{}, {}", share(|it| it.reads_during), share(|it| it.reads_after)),
    ];
    format!("| {} |", cells.join(" | "))
}

/// Whether more or less is better for a figure.
#[derive(Clone, Copy)]
enum Goal {
    /// The larger figure is better.
    More,
    /// The smaller figure is better.
    Less,
}

impl Goal {
    /// Whether `its` is better than `ours`; false if either is not a number.
    fn is_better(self, its: f64, ours: f64) -> bool {
        match self {
            Self::More => its > ours,
            Self::Less => its < ours,
        }
    }
}

/// The median of a figure over a contender's turns; for an even number of turns, the mean of the
/// middle two.
fn median(turns: &[Turn], contender: Contender, figure: impl Fn(&Turn) -> f64) -> f64 {
    let values = sorted(turns, contender, figure);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(values[middle - 1], *value),
        (None, _) => f64::NAN,
    }
}

fn sorted(turns: &[Turn], contender: Contender, figure: impl Fn(&Turn) -> f64) -> Vec<f64> {
    let turns = turns.iter().filter(|turn| turn.contender == contender);
    let mut values: Vec<f64> = turns.map(figure).collect();
    values.sort_by(f64::total_cmp);
    values
}
