//! QEMU's monitor protocol: JSON lines over a Unix socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use support::bench::interruption;

/// Limit for QEMU to open its socket, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a wait checks whether the user has interrupted the benchmark.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    /// What has arrived of a line.
    line: Vec<u8>,
    /// Events that arrived while waiting for an answer.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects, once QEMU listens, and leaves negotiation mode.
    ///
    /// # Errors
    /// If QEMU does not open its socket.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = connect_unix(path)?;
        stream.set_read_timeout(Some(POLL_INTERVAL))?;
        let (reader, events) = (BufReader::new(stream), VecDeque::new());
        let mut qmp = Self { reader, line: Vec::new(), events };
        qmp.read(Instant::now() + PATIENCE)?.context("QEMU does not greet")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer.
    ///
    /// # Errors
    /// If QEMU refuses the command.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{request}")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.read(end)?;
            let mut message = answer.with_context(|| format!("QEMU does not answer {command}"))?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Discards the events that have arrived so far.
    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Gives events to `wanted` until it returns something; none if it does not before `end`.
    ///
    /// # Errors
    /// If QEMU ends, `wanted` fails, or the user interrupts.
    pub(crate) fn wait_for<T>(
        &mut self,
        end: Instant,
        mut wanted: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match self.read(end)? {
                    Some(event) => event,
                    None => return Ok(None),
                },
            };
            let found = wanted(&event)?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Reads a message; none if none arrives before `end`.
    fn read(&mut self, end: Instant) -> Result<Option<Value>> {
        loop {
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(_) => {
                    ensure!(self.line.ends_with(b"\n"), "QEMU has ended");
                    let message = serde_json::from_slice(&self.line)?;
                    self.line.clear();
                    return Ok(Some(message));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => interruption::check()?,
                Err(error) => return Err(error).context("QEMU has closed its socket"),
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }
}

/// Connects to a socket that a process just started will open.
pub(crate) fn connect_unix(path: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error)
                    .with_context(|| format!("no process listens on {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
