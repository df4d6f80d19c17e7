//! The terminal of a user at a guest's console: every key goes to the guest, except Ctrl-] and,
//! for guests that read no keys, those that send signals.

use std::io::{self, Read};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The key that does not go to the guest: Ctrl-].
const LEAVE_KEY: u8 = 0x1d;

/// Which keys go to the guest, besides those that no terminal treats in a special way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All keys.
    All,
    /// All but those that send signals, like Ctrl-C.
    AllButSignals,
}

/// Whether stdin is a terminal whose keys go to this process: it is not in the background.
pub(crate) fn is_at_terminal() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

/// A terminal that passes keys on as they are pressed. Dropping it restores the terminal's
/// settings.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Has stdin pass on `keys`, if it is the terminal of this process.
    ///
    /// # Errors
    /// If the terminal's settings cannot be read or changed.
    pub(crate) fn enter(keys: Keys) -> Result<Option<Self>> {
        if !is_at_terminal() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        // Output processing stays on, so that our own messages start in the first column.
        raw.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::IEXTEN);
        if keys == Keys::All {
            raw.local_flags.remove(LocalFlags::ISIG);
        }
        raw.input_flags
            .remove(InputFlags::ICRNL | InputFlags::IXON | InputFlags::ISTRIP | InputFlags::INLCR);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before) {
            tracing::warn!(%error, "cannot give the terminal its settings back: try `reset`");
        }
    }
}

/// Splits input at the first Ctrl-]: returns what goes to the guest, and whether the user leaves.
pub(crate) fn until_leave_key(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|key| *key == LEAVE_KEY) {
        Some(end) => (typed.get(..end).unwrap_or_default(), true),
        None => (typed, false),
    }
}

/// Passes stdin to `take` until its end, or until `take` breaks, in a thread of its own. Calls
/// `at_end` at the end; the terminal may be gone.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn forward_input(
    mut take: impl FnMut(&[u8]) -> ControlFlow<()> + Send + 'static,
    at_end: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let read_input = move || {
        let mut buffer = [0; 256];
        loop {
            let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) else { return at_end() };
            if take(buffer.get(..count).unwrap_or_default()).is_break() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("console-in".to_owned())
        .spawn(read_input)
        .map(drop)
        .context("cannot start a thread for the console")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_key_that_leaves_does_not_go_to_the_guest() {
        assert_eq!(until_leave_key(b"ls\n"), (&b"ls\n"[..], false));
        assert_eq!(until_leave_key(b"ls\x1drm"), (&b"ls"[..], true));
        assert_eq!(until_leave_key(b"\x1d"), (&b""[..], true));
    }
}
