//! The guest's serial console: letters in, check lines out.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::check_line::CheckLine;
use super::interruption;

/// How long the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a wait looks whether the user has called the benchmark off.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A console of a guest.
pub struct Console {
    lines: Receiver<CheckLine>,
    input: Box<dyn Write>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// Reads `output` in a thread of its own until it ends, and types into `input`.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let whole = CheckLine::parse(&String::from_utf8_lossy(&line));
                if whole.is_some_and(|whole| sender.send(whole).is_err()) {
                    return;
                }
                line.clear();
            }
        });
        Self { lines, input: Box::new(input) }
    }

    /// Waits for the first line of a guest that boots.
    ///
    /// # Errors
    /// None came in `patience`.
    pub fn wait_for_boot(&self, patience: Duration) -> Result<CheckLine> {
        self.wait_for(patience, |_| true).context("the guest did not boot to its check program")
    }

    /// Types `letter`, and waits for a line for which `done` holds.
    ///
    /// The letter is typed once: typed again, it would be obeyed again by a guest that is only
    /// slow.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn ask(&mut self, letter: u8, done: impl Fn(&CheckLine) -> bool) -> Result<CheckLine> {
        // What was printed before is no answer.
        while self.lines.try_recv().is_ok() {}
        self.type_letter(letter)?;
        let asked = char::from(letter);
        self.wait_for(PATIENCE, done).with_context(|| format!("the guest was asked {asked:?}"))
    }

    fn wait_for(&self, patience: Duration, done: impl Fn(&CheckLine) -> bool) -> Result<CheckLine> {
        let start = Instant::now();
        while start.elapsed() < patience {
            interruption::check()?;
            match self.lines.recv_timeout(LOOK_INTERVAL) {
                Ok(line) if done(&line) => return Ok(line),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the guest's console is closed"),
            }
        }
        bail!("no answer within {} s", patience.as_secs())
    }

    /// Types `letter` and expects nothing.
    ///
    /// # Errors
    /// The console is closed.
    pub fn type_letter(&mut self, letter: u8) -> Result<()> {
        self.input.write_all(&[letter]).context("cannot type on the guest's console")
    }
}
