//! The outcome as Markdown.

use super::contender::Contender;
use super::contest::Turn;
use super::settings::{Layout, Settings};
use super::workload::{IMAGE_PERCENT, ZERO_PERCENT};

const MIB: f64 = (1 << 20) as f64;

const HEAD: [&str; 10] = [
    "who drives ksmd",
    "s",
    "CPU s: ksmd",
    "CPU s: all",
    "MiB saved",
    "net",
    "net MiB each CPU s",
    "lighter / it",
    "hot guests' huge pages, MiB",
    "kept",
];

/// A table of medians over the turns of each contender.
pub(crate) fn markdown(settings: &Settings, layout: Layout, turns: &[Turn]) -> String {
    let mut lines = vec![
        format!(
            "{} clones of {} MiB ({} hot), {} guests of Linux; {ZERO_PERCENT} % zeros, {IMAGE_PERCENT} % of the image, \
             {}; medians of {}; all guests found their memory intact:",
            settings.guests,
            settings.memory_mib,
            settings.hot(),
            settings.linux,
            layout.name(),
            settings.runs,
        ),
        String::new(),
        format!("| {} |", HEAD.join(" | ")),
        format!("|{}", " --- |".repeat(HEAD.len())),
    ];
    let rate = |contender| median(turns, contender, Turn::bytes_per_cpu_second);
    for contender in &settings.contenders {
        let of = |figure: fn(&Turn) -> f64| median(turns, *contender, figure);
        let (hot_before, hot_after) =
            (of(|it| it.before.hot_huge as f64), of(|it| it.after.hot_huge as f64));
        let cells = [
            contender.name().to_owned(),
            format!("{:.0}", of(|it| it.spent.elapsed.as_secs_f64())),
            format!("{:.2}", of(|it| it.spent.ksmd)),
            format!("{:.2}", of(|it| it.spent.cpu_seconds())),
            format!("{:.0}", of(Turn::gross_bytes) / MIB),
            format!("{:.0}", of(Turn::net_bytes) / MIB),
            format!("{:.0}", rate(*contender) / MIB),
            format!("**{:.2}**", rate(Contender::Lighter) / rate(*contender)),
            format!("{:.0} to {:.0}", hot_before / MIB, hot_after / MIB),
            format!("{:.0} %", 100.0 * hot_after / hot_before),
        ];
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    lines.join("\n")
}

/// The middle one of a contender's turns by a figure; of an even number the mean of the middle two.
fn median(turns: &[Turn], contender: Contender, figure: impl Fn(&Turn) -> f64) -> f64 {
    let turns = turns.iter().filter(|turn| turn.contender == contender);
    let mut values: Vec<f64> = turns.map(figure).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(values[middle - 1], *value),
        (None, _) => f64::NAN,
    }
}
