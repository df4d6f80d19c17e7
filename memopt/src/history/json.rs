//! What is in the file, as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Fault, HistoryError};
use super::run::{RunId, Summary};
use super::tables::Head;

/// What is told of a run, from its record.
pub(super) fn summary<O: DeserializeOwned>(id: RunId, head: &[u8]) -> Result<Summary<O>, Fault> {
    let head: Head = from_json("the record", id, head)?;
    let outcome = head.outcome.map(serde_json::from_value).transpose();
    let unreadable = |cause| HistoryError::Unreadable { what: "the outcome", run: id, cause };
    Ok(Summary {
        id,
        trigger: head.trigger,
        started: head.started,
        ended: head.ended,
        state: head.state,
        actions: head.actions,
        expected_bytes: head.expected_bytes,
        verified_bytes: head.verified_bytes,
        outcome: outcome.map_err(|cause| Fault::Wanted(unreadable(cause)))?,
        errors: head.errors,
    })
}

/// A value as JSON of at most so many bytes.
pub(super) fn to_json(
    what: &'static str,
    value: &impl Serialize,
    bytes_max: usize,
) -> Result<Vec<u8>, HistoryError> {
    let json = serde_json::to_vec(value);
    let json = json.map_err(|cause| HistoryError::Unwritable { what, cause })?;
    if json.len() > bytes_max {
        return Err(HistoryError::TooLarge { what, max: format!("{bytes_max} bytes") });
    }
    Ok(json)
}

/// A value from JSON that belongs to a run.
pub(super) fn from_json<T: DeserializeOwned>(
    what: &'static str,
    run: RunId,
    json: &[u8],
) -> Result<T, Fault> {
    let unreadable = |cause| Fault::Wanted(HistoryError::Unreadable { what, run, cause });
    serde_json::from_slice(json).map_err(unreadable)
}
