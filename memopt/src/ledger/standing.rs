//! Results of an actuator for a guest or for the host: whether it delivers, and when it is benched.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::verify::{Outcome, Verdict};

/// Number of consecutive failures that bench an actuator.
const TRIES: u8 = 2;
/// Duration of the first bench; doubled with each further one.
const BENCH: Duration = Duration::from_secs(3600);
/// The longest bench: a day.
const BENCH_MAX: Duration = Duration::from_secs(86_400);

/// The results of an actuator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Failures in a row.
    pub failures: u8,
    /// Number of benches since it last delivered.
    pub benches: u8,
    /// Why it may not be used, and until when; absent if it was never benched since it last
    /// delivered.
    pub bench: Option<Bench>,
}

/// The reason and the end of a bench.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bench {
    /// Reason, in one sentence.
    pub reason: String,
    /// Host uptime until which the actuator may not be used.
    pub until: Duration,
}

impl Standing {
    pub(super) fn judge(&mut self, outcome: &Outcome, now: Duration) {
        match outcome.verdict {
            Verdict::Delivered => *self = Self::default(),
            Verdict::Unclear => {}
            Verdict::Partly | Verdict::Nothing if outcome.is_enough() => self.failures = 0,
            Verdict::Partly | Verdict::Nothing => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= TRIES {
                    let reason = format!("{} times in a row: {}", self.failures, outcome.reason);
                    self.bench(reason, now);
                }
            }
        }
    }

    /// Benches the actuator, longer each time.
    pub(super) fn bench(&mut self, reason: String, now: Duration) {
        let factor = 1 << self.benches.min(10);
        let until = now + BENCH.saturating_mul(factor).min(BENCH_MAX);
        self.benches = self.benches.saturating_add(1);
        self.failures = 0;
        self.bench = Some(Bench { reason, until });
    }
}
