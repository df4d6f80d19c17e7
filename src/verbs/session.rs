//! How a verb reaches a guest: a small runtime for the time of the verb, and a client of the
//! guest's socket.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::api::ApiClient;
use crate::names::GuestName;
use crate::state_dir::{GuestDir, ProcessHandle, StateDir};

/// How long a guest's process that was told to end may take.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whether a process has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Runs a verb's conversation with other processes.
///
/// # Errors
/// The verb's own, or the system gives no runtime.
pub(crate) fn block_on<T>(verb: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?
        .block_on(verb)
}

/// A client of the live guest of this name.
///
/// # Errors
/// There is no such guest here.
pub(crate) fn guest_client(state: &StateDir, name: &GuestName) -> Result<ApiClient> {
    Ok(ApiClient::new(&state.live_guest(name)?.socket()))
}

/// Waits until nothing is left of `guest`; false when something is after `patience`. Its name is
/// free a moment before its process has ended, which is waited for where it was known before it was
/// told to end.
pub(crate) async fn is_gone_within(
    guest: &GuestDir,
    process: Option<&ProcessHandle>,
    patience: Duration,
) -> bool {
    let gone = async {
        while guest.is_live() || process.is_some_and(|process| !process.has_ended()) {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    tokio::time::timeout(patience, gone).await.is_ok()
}
