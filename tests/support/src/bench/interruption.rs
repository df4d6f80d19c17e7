//! Ends the benchmark in order after Ctrl-C or SIGTERM: guests and nodes do not outlive it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Records Ctrl-C and SIGTERM from now on, instead of letting them kill the process.
///
/// # Errors
/// If the runtime or the thread cannot be started.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _in_runtime = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            eprintln!("called off; ending the guests");
            INTERRUPTED.store(true, Ordering::Relaxed);
        })
        .map(drop)
        .context("cannot start a thread")
}

/// Fails once the benchmark is to end.
///
/// # Errors
/// If Ctrl-C was pressed, or SIGTERM has come.
pub fn check() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "cancelled");
    Ok(())
}
