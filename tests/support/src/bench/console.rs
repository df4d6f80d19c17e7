//! A guest's serial console: letters in, check lines out.

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
/// How often a wait checks whether the user has interrupted the benchmark.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The console of one guest.
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
    /// Reads `output` in a separate thread until it ends, and types into `input`.
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

    /// Waits for the first check line of a guest that is booting.
    ///
    /// # Errors
    /// If none arrives within `patience`, the console is closed, or the user interrupts.
    pub fn wait_for_boot(&self, patience: Duration) -> Result<CheckLine> {
        self.wait_for(patience, |_| true).context("the guest did not boot to its check program")
    }

    /// Types `letter` and waits for a line for which `done` holds.
    ///
    /// The letter is typed only once: a guest that is merely slow would obey each repetition.
    ///
    /// # Errors
    /// If the guest does not answer, its console is closed, or the user interrupts.
    pub fn ask(&mut self, letter: u8, done: impl Fn(&CheckLine) -> bool) -> Result<CheckLine> {
        // Lines printed before the request are not an answer to it.
        while self.lines.try_recv().is_ok() {}
        self.type_letter(letter)?;
        let asked = char::from(letter);
        self.wait_for(PATIENCE, done).with_context(|| format!("the guest was asked {asked:?}"))
    }

    fn wait_for(&self, patience: Duration, done: impl Fn(&CheckLine) -> bool) -> Result<CheckLine> {
        let start = Instant::now();
        while start.elapsed() < patience {
            interruption::check()?;
            match self.lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) if done(&line) => return Ok(line),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the guest's console is closed"),
            }
        }
        bail!("no answer within {} s", patience.as_secs())
    }

    /// Types `letter` without waiting for an answer.
    ///
    /// # Errors
    /// If the console is closed.
    pub fn type_letter(&mut self, letter: u8) -> Result<()> {
        self.input.write_all(&[letter]).context("cannot type on the guest's console")
    }
}
