//! Ctrl-C ends the benchmark in order: guests and nodes do not outlive it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes note of Ctrl-C from now on, instead of dying of it.
///
/// # Errors
/// The system does not let us.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The handler is in place when the thread has started or soon after; a Ctrl-C before that ends
    // the process, which has started nothing yet.
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

/// An error once Ctrl-C was pressed.
///
/// # Errors
/// It was.
pub fn check() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "called off");
    Ok(())
}
