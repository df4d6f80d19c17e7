//! The thread and the runtime of a session.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Longest wait at the end for calls to the guest that have not returned.
const LEFTOVER_TIME: Duration = Duration::from_secs(5);

/// Why a session could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread could be started.
    #[error("cannot start a thread for the migration: {0}")]
    Thread(io::Error),
    /// No port could be bound.
    #[error(transparent)]
    Link(#[from] crate::quic::LinkError),
}

/// Returns the number of connections that pays on this host: one per four cores, at most four. A
/// second one on two cores costs more in switching than it gains.
pub(super) fn connections_useful() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u16::try_from(cores / 4).unwrap_or(u16::MAX).clamp(1, 4)
}

/// Runs `session` on a separate thread with `workers` runtime threads, then sets `over`: also if it
/// panics, and after waiting up to [`LEFTOVER_TIME`] for calls to its guest to return.
///
/// With one worker everything runs on that thread, without hand-over between transport and pages.
pub(super) fn run<F: Future<Output = ()>>(
    name: &str,
    workers: u16,
    over: watch::Sender<bool>,
    session: impl FnOnce() -> F + Send + 'static,
) -> Result<(), StartError> {
    let runtime = build(workers).map_err(StartError::Thread)?;
    let body = move || {
        // The panic handler has already reported a panic.
        let _ = catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { session().await })));
        runtime.shutdown_timeout(LEFTOVER_TIME);
        over.send_replace(true);
    };
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(StartError::Thread)
}

/// Builds a runtime with `workers` threads; with one, it runs on the thread that waits for it.
pub(super) fn build(workers: u16) -> io::Result<Runtime> {
    if workers <= 1 {
        return Builder::new_current_thread().enable_all().build();
    }
    let threads = usize::from(workers);
    Builder::new_multi_thread().worker_threads(threads).thread_name("migrate").enable_all().build()
}
