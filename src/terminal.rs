//! The terminal of a user at a guest's console: every key goes to the guest, except Ctrl-].

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, Result};
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The key that does not go to the guest: Ctrl-].
const LEAVE_KEY: u8 = 0x1d;

/// A terminal in raw mode, whose keys all go to the guest. Dropping it restores the terminal's
/// settings.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches stdin to raw mode if it is a terminal.
    ///
    /// # Errors
    /// If the terminal's settings cannot be read or changed.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        // Output processing stays on, so that our own messages start in the first column.
        raw.local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::IEXTEN);
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

/// Passes stdin to `take` until its end, in a thread of its own; calls `leave` at Ctrl-].
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn forward_input(
    take: impl Fn(&[u8]) + Send + 'static,
    leave: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let read_input = move || {
        let mut buffer = [0; 256];
        loop {
            let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) else { return };
            let typed = buffer.get(..count).unwrap_or_default();
            let ending = typed.iter().position(|key| *key == LEAVE_KEY);
            take(typed.get(..ending.unwrap_or(count)).unwrap_or_default());
            if ending.is_some() {
                return leave();
            }
        }
    };
    std::thread::Builder::new()
        .name("console-in".to_owned())
        .spawn(read_input)
        .map(drop)
        .context("cannot start a thread for the console")
}
