//! Writes the metrics reference (`docs/metrics.md`) from the catalogue.

use std::fmt::Write as _;

use crate::catalogue::{Counted, Scraped};
use crate::definition::{Definition, LabelValues};
use crate::density::{DensityCounted, DensityScraped};

const OPENING: &str = "\
# Metrics

<!-- Written from the catalogue in `metrics/src/catalogue.rs`. To renew it after a change there:
     LIGHTER_WRITE_DOCS=1 cargo test -p metrics --test reference -->

`lighter node` serves these at `http://ADDR:PORT/metrics` (`--metrics`, by default
`127.0.0.1:9450`) in the Prometheus text format 0.0.4. One scrape asks every guest on the host once;
a guest that does not answer in time is counted in `lighter_guests_unreachable` and has no other
series on that page. The series of a guest that has left the host are gone with the next scrape, but
for those of the migration that took it away: they stay for ten minutes.

Counters start at zero with the node service, or with the migration for those with a `guest` label.

What memory optimization shows is that of its last inspection of all guests, made every ten seconds, and more often while
something is done: a scrape inspects nothing. `lighter_density_inspection_timestamp_seconds` says when that was; what was seen more
than a minute ago is not shown. What guests say of their memory counts since they booted, and what the kernel says of merging
since the host did.
";

/// Returns the whole reference as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(OPENING);
    section(&mut text, "Counted while the node runs", Counted::DEFINITIONS);
    section(&mut text, "Read at each scrape", Scraped::DEFINITIONS);
    section(
        &mut text,
        "Memory optimization: counted while the node runs",
        DensityCounted::DEFINITIONS,
    );
    section(&mut text, "Memory optimization: as last seen", DensityScraped::DEFINITIONS);
    labels(&mut text);
    text
}

fn section(text: &mut String, title: &str, definitions: &[Definition]) {
    let _ = write!(text, "\n## {title}\n\n| name | kind | unit | labels | meaning |\n");
    text.push_str("|---|---|---|---|---|\n");
    for definition in definitions {
        let Definition { name, help, .. } = definition;
        let labels: Vec<_> =
            definition.labels.iter().map(|label| format!("`{}`", label.name)).collect();
        let (kind, unit) = (definition.kind.as_str(), definition.unit.as_str());
        let _ = writeln!(text, "| `{name}` | {kind} | {unit} | {} | {help} |", labels.join(", "));
    }
}

fn labels(text: &mut String) {
    text.push_str("\n## Labels\n\n| label | of | values |\n|---|---|---|\n");
    let mut seen: Vec<(&str, LabelValues)> = Vec::new();
    for definition in crate::definitions() {
        for label in definition.labels {
            if seen.contains(&(label.name, label.values)) {
                continue;
            }
            seen.push((label.name, label.values));
            let values = match label.values {
                LabelValues::Fixed(values) => format!("`{}`", values.join("`, `")),
                LabelValues::PerGuest => "one per guest on this host".to_owned(),
                LabelValues::PerSchedule => "one per schedule of lighter.toml".to_owned(),
                LabelValues::PerBuild => "one per build".to_owned(),
            };
            let of = users(label.name, label.values);
            let _ = writeln!(text, "| `{}` | {of} | {values} |", label.name);
        }
    }
}

/// Returns the metrics that use a label, or their number if they would not fit on a line.
fn users(name: &str, values: LabelValues) -> String {
    let users: Vec<_> = crate::definitions()
        .filter(|d| d.labels.iter().any(|label| label.name == name && label.values == values))
        .map(|d| format!("`{}`", d.name))
        .collect();
    if users.len() > 3 { format!("{} metrics", users.len()) } else { users.join(", ") }
}
