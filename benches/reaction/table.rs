//! The runs as a table, of which each row is printed as soon as it is known.

use std::time::Duration;

use super::round::Round;

/// The head of the table.
pub(crate) const HEAD: &str = "\
| run | at ease, pages/s | under pressure, pages/s | the node's reason | target raised, s | balloon empty, s |
|---|---|---|---|---|---|";

/// The table row of run `number`.
pub(crate) fn row(number: u32, round: &Round) -> String {
    format!(
        "| {number} | {:.0} | {:.0} | {} | {} | {} |",
        round.at_ease,
        round.under_pressure,
        round.cause,
        seconds(round.raise_time),
        seconds(round.empty),
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}
