//! The output of a live guest's console, read from its process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::api::ApiClient;
use crate::api::types::ConsoleRead;
use crate::state_dir::{GuestDir, StateDir};

/// How long one request for output waits.
const WAIT_MS: u64 = 20_000;

/// How long a live guest may leave all requests unanswered, from the first failure on.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Pause before asking a process again that did not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Passes what `guest` writes from offset `from` on, or from the oldest output that is kept, to
/// `write`, to the end of its output, and the number of bytes that were not read in time to
/// `note_lost`. Returns true when the guest is gone, or false when `write` has: its reader has
/// closed its end.
///
/// # Errors
/// If the guest's process does not answer, and those of `write`.
pub(super) async fn follow(
    state: &StateDir,
    (guest, client): (&GuestDir, &ApiClient),
    from: Option<u64>,
    mut write: impl FnMut(&[u8]) -> Result<bool>,
    note_lost: impl Fn(u64),
) -> Result<bool> {
    let mut next = from;
    let mut silent_since = None;
    loop {
        let from = next.unwrap_or(0);
        let read = ConsoleRead { from, wait_ms: if next.is_some() { WAIT_MS } else { 0 } };
        match client.read_console(&read).await {
            Ok(excerpt) => {
                if excerpt.from > from && next.is_some() {
                    note_lost(excerpt.from - from);
                }
                silent_since = None;
                next = Some(excerpt.next());
                if !write(&excerpt.bytes)? {
                    return Ok(false);
                }
            }
            Err(error) if error.is_gone() || error.is_transient() => {
                if !guest.is_live() {
                    write(&state.ended().console_from(guest.name(), from))?;
                    return Ok(true);
                }
                if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX {
                    return Err(error).context("cannot read the console");
                }
                // The process is about to exit, or is too busy to answer.
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error).context("cannot read the console"),
        }
    }
}
