//! Waits for a condition. Tests call it instead of sleeping.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Default limit of a wait. It is generous: a test reaches it only if something is broken, and the
/// machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Default interval between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(15);

/// Calls `condition` until it returns a value, and returns that value.
///
/// # Panics
/// If it has not within [`PATIENCE`]; the message contains `what` and the last error.
pub fn until<T, E: Debug>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, condition)
}

/// As [`until`], with a limit of `patience`.
pub fn within<T, E: Debug>(
    patience: Duration,
    what: &str,
    condition: impl FnMut() -> Result<T, E>,
) -> T {
    every(INTERVAL, patience, what, condition)
}

/// As [`within`], with the given interval between two checks.
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

/// Converts a truth value and its evidence into the result that [`until`] expects.
pub fn holds<S: Debug>(truth: bool, seen: S) -> Result<(), S> {
    if truth { Ok(()) } else { Err(seen) }
}
