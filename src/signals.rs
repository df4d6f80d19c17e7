//! Signals that ask a process to end.

use std::fmt;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndSignal {
    /// SIGTERM, as service managers send it.
    Terminate,
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl fmt::Display for EndSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HangUp => "SIGHUP",
        })
    }
}

/// Receives SIGTERM, SIGINT and SIGHUP from its creation on.
#[derive(Debug)]
pub(crate) struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the parent started this process with SIGHUP ignored, as nohup(1) does.
    hang_up: Option<Signal>,
}

impl EndSignals {
    /// Starts to receive the signals.
    ///
    /// # Errors
    /// If a signal handler cannot be installed.
    pub(crate) fn listen() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hear = |kind| signal(kind).context("cannot hear signals");
        Ok(Self {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
            hang_up: match ignores_hang_up(&status) {
                true => None,
                false => Some(hear(SignalKind::hangup())?),
            },
        })
    }

    /// Waits for the next of the signals.
    pub(crate) async fn next(&mut self) -> EndSignal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => EndSignal::Terminate,
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = hang_up => EndSignal::HangUp,
        }
    }
}

/// Whether a process whose `/proc/PID/status` is `status` ignores SIGHUP (proc_pid_status(5),
/// `SigIgn`).
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal n is bit n - 1, and SIGHUP is 1.
    mask.unwrap_or(0) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_under_nohup_is_distinguished_from_others() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hang_up(""));
    }
}
