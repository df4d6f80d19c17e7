//! Plans and steps to put down, for tests.

use std::time::Duration;

use crate::ledger::Level;
use crate::plan::Plan;
use crate::policy::Goal;
use crate::step::{Action, Step};

/// A step about `guest`.
pub(crate) fn step(guest: &str, expected_bytes: i64) -> Step {
    let action = Action::Unmerge { guest: guest.to_owned(), chunks: None };
    let (cpu, reason) = (Duration::ZERO, "a test".to_owned());
    Step { action, expected_bytes, cpu, reason, pid: None }
}

/// A plan with a step about `guest`.
pub(crate) fn plan(guest: &str) -> Plan {
    Plan {
        unix_seconds: 0,
        uptime: Duration::ZERO,
        goal: Goal::MaxDensity,
        level: Level::Green,
        wanted_bytes: None,
        expected_bytes: 1,
        later_bytes: 0,
        domain: None,
        steps: vec![step(guest, 1)],
        skipped: Vec::new(),
        advice: Vec::new(),
    }
}
