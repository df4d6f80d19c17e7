//! The scheduler's notices: runs that are due, were missed or must end.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;

/// What started a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// An operator.
    Manual,
    /// A schedule.
    Schedule {
        /// The schedule's name.
        name: String,
        /// The due time, in Unix seconds.
        tick: u64,
    },
    /// A guest's need for memory, which the node detected on its own.
    Relief,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Schedule { name, .. } => f.write_str(name),
            Self::Relief => f.write_str("relief"),
        }
    }
}

/// One notice of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notice {
    /// A run must begin now. The caller reports its end ([`super::Event::Ended`]), also if it could
    /// not begin.
    Due(Due),
    /// An operator's run was refused: another one is under way.
    Busy {
        /// The run under way.
        running: Trigger,
    },
    /// A schedule did not run when it was due.
    Missed(Missed),
    /// A schedule is due while another run is under way, and is queued.
    Queued {
        /// The schedule's name.
        schedule: String,
        /// The due time, in Unix seconds.
        tick: u64,
        /// The run under way.
        running: Trigger,
    },
    /// The window of the current run is over: it must not begin further steps. Sent once per run.
    End(Trigger),
    /// The host's clock was set between two calls of the scheduler.
    ClockSet {
        /// The change in seconds: forward, or back if negative.
        by_seconds: i64,
        /// Schedules that may run again at times at which they already ran: the clock was wrong by
        /// hours before.
        again: Vec<String>,
    },
    /// The scheduler was not called for this long: the host slept, or did not schedule this
    /// process.
    Asleep(Duration),
}

/// A run that must begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// What starts the run.
    pub trigger: Trigger,
    /// How long ago the run was due.
    pub lag: Duration,
    /// How long the run may work; absent for an operator's run, which has no window.
    pub window: Option<Duration>,
    /// Whether the run is late, and why.
    pub punctuality: Punctuality,
}

/// Whether a run begins on time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Punctuality {
    /// Within a minute of its due time.
    OnTime,
    /// The scheduler did not run when it was due.
    CaughtUp,
    /// Another run was under way when it was due.
    Queued,
}

/// The times at which a schedule did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The schedule's name.
    pub schedule: String,
    /// The first missed time, in Unix seconds.
    pub first: u64,
    /// The last missed time, in Unix seconds.
    pub last: u64,
    /// The number of missed times; a lower bound after a long absence.
    pub count: u64,
    /// Why the schedule did not run.
    pub why: Lost,
}

/// Why a schedule did not run when it was due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// The scheduler did not run, and was back too late to catch up.
    Absent,
    /// The schedule was due again before it could catch up: it runs only once.
    Superseded,
    /// Another run was under way, and the schedule does not queue (`overlap = "skip"`).
    Overlapped(Trigger),
    /// Another run was under way until the schedule's window was over.
    WindowOver,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Due(due) => write!(f, "{due}"),
            Self::Busy { running } => write!(f, "another run is under way ({running})"),
            Self::Missed(missed) => write!(f, "{missed}"),
            Self::Queued { schedule, tick, running } => {
                write!(f, "{schedule} (due {}) waits for another run ({running})", utc(*tick))
            }
            Self::End(trigger) => write!(f, "the window of {trigger} is over"),
            Self::ClockSet { by_seconds, again } => {
                let way = if *by_seconds < 0 { "back" } else { "forward" };
                let by = Span(Duration::from_secs(by_seconds.unsigned_abs()));
                write!(f, "the clock was set {way} by {by}")?;
                match again.as_slice() {
                    [] => Ok(()),
                    names => write!(f, "; what ran in between may run again: {}", names.join(", ")),
                }
            }
            Self::Asleep(time) => write!(f, "the clock was not checked for {}", Span(*time)),
        }
    }
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.punctuality {
            Punctuality::OnTime => "",
            Punctuality::CaughtUp => ", caught up",
            Punctuality::Queued => ", after another run",
        };
        match &self.trigger {
            Trigger::Manual => f.write_str("a run begins, as an operator wants"),
            Trigger::Relief => f.write_str("a guest gets memory back"),
            Trigger::Schedule { name, tick } => {
                write!(f, "{name} (due {}) begins, {} late{why}", utc(*tick), Span(self.lag))
            }
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedule, first, last, count, why } = self;
        match count {
            1 => write!(f, "{schedule} (due {}) did not run: {why}", utc(*last)),
            _ => {
                let (first, last) = (utc(*first), utc(*last));
                write!(f, "{schedule} (due {count} times, {first} to {last}) did not run: {why}")
            }
        }
    }
}

/// Formats a time for people and programs.
fn utc(unix_seconds: u64) -> String {
    let time = i64::try_from(unix_seconds).ok().and_then(|at| Timestamp::from_second(at).ok());
    time.map_or_else(|| format!("@{unix_seconds}"), |time| time.to_string())
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no node ran in time"),
            Self::Superseded => f.write_str("it was due again before it could run"),
            Self::Overlapped(running) => write!(f, "another run was under way ({running})"),
            Self::WindowOver => f.write_str("another run was under way until its window was over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nightly() -> Trigger {
        Trigger::Schedule { name: "nightly".to_owned(), tick: 1_795_140_000 }
    }

    fn missed(count: u64) -> Notice {
        let schedule = "nightly".to_owned();
        let (first, last) = (1_795_053_600, 1_795_140_000);
        Notice::Missed(Missed { schedule, first, last, count, why: Lost::Absent })
    }

    #[test]
    fn every_notice_is_a_sentence() {
        let due = |punctuality, seconds| {
            let (lag, window) = (Duration::from_secs(seconds), None);
            Notice::Due(Due { trigger: nightly(), lag, window, punctuality })
        };
        let clock = |by_seconds, again: &[&str]| {
            let again = again.iter().map(|name| (*name).to_owned()).collect();
            Notice::ClockSet { by_seconds, again }
        };
        for (notice, expected) in [
            (due(Punctuality::OnTime, 0), "nightly (due 2026-11-20T02:00:00Z) begins, 0s late"),
            (
                due(Punctuality::CaughtUp, 90),
                "nightly (due 2026-11-20T02:00:00Z) begins, 1m 30s late, caught up",
            ),
            (missed(1), "nightly (due 2026-11-20T02:00:00Z) did not run: no node ran in time"),
            (
                missed(2),
                "nightly (due 2 times, 2026-11-19T02:00:00Z to 2026-11-20T02:00:00Z) did not run: no node ran in time",
            ),
            (Notice::Busy { running: Trigger::Manual }, "another run is under way (manual)"),
            (Notice::End(nightly()), "the window of nightly is over"),
            (clock(7200, &[]), "the clock was set forward by 2h"),
            (
                clock(-86_400, &["a", "b"]),
                "the clock was set back by 1d; what ran in between may run again: a, b",
            ),
            (Notice::Asleep(Duration::from_secs(600)), "the clock was not checked for 10m"),
        ] {
            assert_eq!(notice.to_string(), expected);
        }
        assert_eq!(utc(u64::MAX), format!("@{}", u64::MAX));
    }
}
