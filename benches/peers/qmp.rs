//! QEMU's monitor protocol: JSON lines over a Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Limit for QEMU to open its socket, to answer, or to migrate.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    /// Events that arrived while waiting for an answer.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, once QEMU listens, and leaves negotiation mode.
    ///
    /// # Errors
    /// If QEMU does not open its socket.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = connect_unix(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { reader: BufReader::new(stream), events: Vec::new() };
        qmp.read()?;
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
        loop {
            let mut message = self.read()?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits until a migration has ended.
    ///
    /// # Errors
    /// If the migration failed.
    pub(crate) fn wait_for_migration(&mut self) -> Result<()> {
        loop {
            let event = match self.events.is_empty() {
                true => self.read()?,
                false => self.events.remove(0),
            };
            match event["data"]["status"].as_str() {
                Some("completed") if event["event"] == "MIGRATION" => return Ok(()),
                Some("failed") => bail!("QEMU's migration failed: {event}"),
                _ => {}
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("QEMU does not answer")?;
        serde_json::from_str(&line).context("QEMU has ended")
    }
}

/// Connects to a socket that a process just started will open.
pub(crate) fn connect_unix(path: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("nobody listens on {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
