//! Ends the benchmark in order after Ctrl-C: guests and nodes do not outlive it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Records Ctrl-C from now on, instead of letting it kill the process.
///
/// # Errors
/// If the runtime or the thread cannot be started.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The handler is in place shortly after the thread has started; a Ctrl-C before that kills the
    // process, which has not started any guest yet.
    thread::Builder::new()
        .name("ctrl-c".to_owned())
        .spawn(move || {
            if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                eprintln!("called off; ending the guests");
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        })
        .map(drop)
        .context("cannot start a thread")
}

/// Fails once the user has pressed Ctrl-C.
///
/// # Errors
/// If Ctrl-C was pressed.
pub fn check() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "cancelled");
    Ok(())
}
