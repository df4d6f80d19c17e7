//! Times changes of a record while the host is as busy as when a guest leaves or arrives.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::record::{RecordError, Rehearsal};

/// Time between two changes.
const PERIOD: Duration = Duration::from_millis(50);
/// Most changes: the file has room for them.
const CHANGES_MAX: usize = 25;

/// How long it takes to make a record durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordTimes {
    /// A new one.
    pub(super) create: Duration,
    /// A change of it, the median of many.
    pub(super) change: Duration,
}

/// Changes the file again and again until the sender of `over` is dropped, and then removes it;
/// returns how long that took.
///
/// # Errors
/// If it cannot be written.
pub(super) fn change(
    mut rehearsal: Rehearsal,
    over: &Receiver<()>,
) -> Result<RecordTimes, RecordError> {
    let mut changes = vec![rehearsal.change()?];
    while changes.len() < CHANGES_MAX {
        let Err(RecvTimeoutError::Timeout) = over.recv_timeout(PERIOD) else { break };
        changes.push(rehearsal.change()?);
    }
    changes.sort_unstable();
    Ok(RecordTimes { create: rehearsal.create, change: changes[changes.len() / 2] })
}
