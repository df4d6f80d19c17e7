//! The runs as a table.

use std::time::Duration;

use super::round::Round;

/// A row for each run.
pub(crate) fn of(rounds: &[Round]) -> String {
    let head = "| run | at ease, pages/s | in pain, pages/s | the node's reason | target raised, s | balloon empty, s |\n\
                |---|---|---|---|---|---|\n";
    rounds.iter().enumerate().fold(head.to_owned(), |table, (index, round)| {
        table
            + &format!(
                "| {} | {:.0} | {:.0} | {} | {} | {} |\n",
                index + 1,
                round.at_ease,
                round.in_pain,
                round.cause,
                seconds(round.told),
                seconds(round.empty),
            )
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}
