//! Waiting for a condition: the only place in tests where a thread sleeps.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition may take to hold before the test fails. Generous: it is reached only when
/// something is broken, and the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How often a condition is asked for.
const INTERVAL: Duration = Duration::from_millis(15);

/// Asks for `condition` until it gives a value, and returns it.
///
/// # Panics
/// When it has not within [`PATIENCE`]; the message has `what` and the last refusal.
pub fn until<T, E: Debug>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, condition)
}

/// As [`until`], with another patience.
pub fn within<T, E: Debug>(
    patience: Duration,
    what: &str,
    condition: impl FnMut() -> Result<T, E>,
) -> T {
    every(INTERVAL, patience, what, condition)
}

/// As [`within`], for a condition that is asked for less or more often.
#[track_caller]
pub fn every<T, E: Debug>(
    interval: Duration,
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(refusal) if start.elapsed() > patience => {
                panic!("not within {} s: {what}; last seen: {refusal:#?}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(interval),
        }
    }
}

/// Turns a truth into what [`until`] asks for.
pub fn holds<S: Debug>(truth: bool, seen: S) -> Result<(), S> {
    if truth { Ok(()) } else { Err(seen) }
}
