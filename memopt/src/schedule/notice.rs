//! What the scheduler says: what is due, what was missed, what has to end.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a run was begun by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// An operator.
    Manual,
    /// A schedule.
    Schedule {
        /// The schedule's name.
        name: String,
        /// When it was due, in Unix seconds.
        tick: u64,
    },
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Schedule { name, .. } => f.write_str(name),
        }
    }
}

/// One thing that the scheduler says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A run has to begin, now.
    Due(Due),
    /// A run has been refused to an operator: another one is under way.
    Busy {
        /// What is under way.
        running: Trigger,
    },
    /// A schedule did not run when it was due.
    Missed(Missed),
    /// A schedule is due while another run is under way, and waits for its turn.
    Queued {
        /// Its name.
        schedule: String,
        /// When it was due, in Unix seconds.
        tick: u64,
        /// What is under way.
        running: Trigger,
    },
    /// The window of the run that is under way is over: what has not begun is not begun. Said once.
    End(Trigger),
    /// The host's clock was set while nobody looked.
    ClockSet {
        /// By how many seconds: forwards, or backwards if negative.
        by_seconds: i64,
        /// Schedules of which times that they have run at come again: the clock was wrong before, by hours.
        again: Vec<String>,
    },
    /// Nobody looked at the time for this long: the host slept, or had no time for this process.
    Asleep(Duration),
}

/// A run that has to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What it is begun by.
    pub trigger: Trigger,
    /// How long after it was due this is.
    pub lag: Duration,
    /// How long it may work; absent for an operator's, which has no window.
    pub window: Option<Duration>,
    /// Whether it is late, and what for.
    pub punctuality: Punctuality,
}

/// Whether a run begins when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Punctuality {
    /// Within a minute.
    OnTime,
    /// Nobody was there when it was due.
    CaughtUp,
    /// Another run was under way when it was due.
    Queued,
}

/// Times at which a schedule did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Its name.
    pub schedule: String,
    /// The first of them, in Unix seconds.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// How many; at least as many where nobody looked for very long.
    pub count: u64,
    /// Why it did not run.
    pub why: Lost,
}

/// Why a schedule did not run when it was due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// Nobody was there, and it was too late when somebody was.
    Absent,
    /// It was due again before it could be caught up: it runs once.
    Superseded,
    /// Another run was under way, and it does not wait (`overlap = "skip"`).
    Overlapped(Trigger),
    /// Another run was under way until its window was over.
    WindowOver,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nobody was there in time"),
            Self::Superseded => f.write_str("it was due again before it could run"),
            Self::Overlapped(running) => write!(f, "another run was under way ({running})"),
            Self::WindowOver => f.write_str("another run was under way until its window was over"),
        }
    }
}
