//! A client of QEMU's monitor protocol (QMP): one line of JSON for each command and each answer,
//! with events in between.

mod line;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use self::line::QmpLine;
use super::error::{ForeignError, words};
use super::socket::connect;
use super::statistics::QemuStatistics;

/// The longest line that is read, in bytes. A list of a hundred devices takes about 10 KiB.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The most lines that are skipped while waiting for an answer.
const LINES_MAX: usize = 1000;

/// A connection to one guest's monitor. While it is open no other client can use that monitor: keep
/// it short.
#[derive(Debug)]
pub struct Qmp {
    socket: String,
    stream: BufReader<UnixStream>,
    patience: Duration,
    next_id: u64,
}

/// A guest's run state (`query-status`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RunState {
    pub(super) running: bool,
    pub(super) status: String,
}

/// A property or child of an object (`qom-list`).
#[derive(Debug, Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Serialize)]
struct Question<'a, A> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
    id: u64,
}

/// Arguments of `qom-list`, `qom-get` and `qom-set`.
#[derive(Debug, Serialize)]
struct OfObject<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    property: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Bytes {
    value: u64,
}

const NOTHING: Option<()> = None;

impl Qmp {
    /// Connects to the monitor of process `pid` on the socket at `path`. Each answer may take up to
    /// `patience`.
    ///
    /// # Errors
    /// [`ForeignError::Taken`] if another client is connected, [`ForeignError::Unreachable`] if the
    /// connection is refused, usually because no process listens, [`ForeignError::Elsewhere`] if a
    /// process other than `pid` listens, [`ForeignError::Strange`] if it does not speak QMP.
    pub async fn connect(path: &Path, pid: u32, patience: Duration) -> Result<Self, ForeignError> {
        let stream = BufReader::new(connect(path, pid, patience).await?);
        let mut qmp = Self { socket: path.display().to_string(), stream, patience, next_id: 1 };
        let greeting = tokio::time::timeout(patience, qmp.line()).await;
        let greeting =
            greeting.map_err(|_| ForeignError::Taken { socket: qmp.socket.clone() })??;
        match line::parse::<IgnoredAny>(&greeting, 0) {
            Ok(QmpLine::Greeting) => {}
            Ok(_) => return Err(qmp.strange("no greeting of QMP")),
            Err(what) => return Err(qmp.strange(&what)),
        }
        let _: IgnoredAny = qmp.ask("qmp_capabilities", NOTHING).await?;
        Ok(qmp)
    }

    /// Sends one command and returns its answer.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<impl Serialize>,
    ) -> Result<T, ForeignError> {
        let patience = self.patience;
        let answer = tokio::time::timeout(patience, self.exchange(command, arguments)).await;
        answer.map_err(|_| ForeignError::Slow {
            socket: self.socket.clone(),
            question: command.to_owned(),
            patience,
        })?
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<impl Serialize>,
    ) -> Result<T, ForeignError> {
        let id = self.next_id;
        self.next_id += 1;
        let question = Question { execute: command, arguments, id };
        let mut text = serde_json::to_vec(&question).map_err(|error| self.broken(&error))?;
        text.push(b'\n');
        self.stream.write_all(&text).await.map_err(|error| self.broken(&error))?;
        for _ in 0..LINES_MAX {
            let line = self.line().await?;
            match line::parse(&line, id).map_err(|what| self.strange(&what))? {
                QmpLine::Answer(answer) => return Ok(answer),
                QmpLine::Refused(reason) => {
                    let (socket, question) = (self.socket.clone(), command.to_owned());
                    return Err(ForeignError::Refused { socket, question, reason });
                }
                QmpLine::Greeting | QmpLine::Other => {}
            }
        }
        Err(self.strange(&format!("{LINES_MAX} lines without an answer to {command}")))
    }

    /// Reads the next line, without its end.
    async fn line(&mut self) -> Result<Vec<u8>, ForeignError> {
        let mut line = Vec::new();
        loop {
            let filled = self.stream.fill_buf().await;
            let bytes = match filled {
                Ok(bytes) => bytes,
                Err(error) => return Err(broken(&self.socket, &error)),
            };
            if bytes.is_empty() {
                return Err(broken(&self.socket, &"it was closed"));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            if line.len() + taken > LINE_BYTES_MAX {
                return Err(self.strange(&format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            line.extend_from_slice(&bytes[..taken]);
            self.stream.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(line);
            }
        }
    }

    pub(super) async fn run_state(&mut self) -> Result<RunState, ForeignError> {
        self.ask("query-status", NOTHING).await
    }

    /// Returns the state of a migration, if there is or was one.
    pub(super) async fn migration(&mut self) -> Result<Option<String>, ForeignError> {
        #[derive(Deserialize)]
        struct Migration {
            status: Option<String>,
        }
        let migration: Migration = self.ask("query-migrate", NOTHING).await?;
        Ok(migration.status)
    }

    /// Returns the guest's RAM, including plugged memory.
    pub(super) async fn memory_bytes(&mut self) -> Result<u64, ForeignError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Summary {
            base_memory: u64,
            #[serde(default)]
            plugged_memory: u64,
        }
        let summary: Summary = self.ask("query-memory-size-summary", NOTHING).await?;
        Ok(summary.base_memory.saturating_add(summary.plugged_memory))
    }

    /// Returns the memory that the guest has plugged from virtio-mem devices, which QEMU's balloon
    /// does not count.
    pub(super) async fn virtio_mem_bytes(&mut self) -> Result<u64, ForeignError> {
        #[derive(Deserialize)]
        struct Device {
            #[serde(rename = "type")]
            kind: String,
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(default)]
            size: u64,
        }
        let devices: Vec<Device> = self.ask("query-memory-devices", NOTHING).await?;
        let of_virtio = devices.iter().filter(|device| device.kind == "virtio-mem");
        Ok(of_virtio.fold(0, |sum: u64, device| sum.saturating_add(device.data.size)))
    }

    /// Returns the RAM minus what is in the balloon and what virtio-mem devices provide; `None`
    /// without a balloon.
    pub(super) async fn balloon_actual(&mut self) -> Result<Option<u64>, ForeignError> {
        #[derive(Deserialize)]
        struct Balloon {
            actual: u64,
        }
        match self.ask::<Balloon>("query-balloon", NOTHING).await {
            Ok(balloon) => Ok(Some(balloon.actual)),
            Err(ForeignError::Refused { reason, .. }) if is_no_balloon(&reason) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the guest to keep `bytes` of its RAM.
    ///
    /// # Errors
    /// [`ForeignError::Refused`] if the guest has no balloon, or the size is invalid.
    pub async fn set_balloon(&mut self, bytes: u64) -> Result<(), ForeignError> {
        let _: IgnoredAny = self.ask("balloon", Some(Bytes { value: bytes })).await?;
        Ok(())
    }

    /// Returns the path of the balloon among QEMU's objects, whether it has an id or not.
    pub(super) async fn balloon_path(&mut self) -> Result<Option<String>, ForeignError> {
        for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let of = OfObject { path: folder, property: None, value: None };
            let children: Vec<Property> = self.ask("qom-list", Some(of)).await?;
            let balloon =
                children.iter().find(|child| child.kind.starts_with("child<virtio-balloon"));
            if let Some(balloon) = balloon {
                return Ok(Some(format!("{folder}/{}", balloon.name)));
            }
        }
        Ok(None)
    }

    pub(super) async fn statistics(&mut self, path: &str) -> Result<QemuStatistics, ForeignError> {
        self.get(path, "guest-stats").await
    }

    /// Returns whether the balloon offers free page reporting; QEMU versions without the property
    /// do not.
    pub(super) async fn offers_reporting(&mut self, path: &str) -> Result<bool, ForeignError> {
        match self.get(path, "free-page-reporting").await {
            Err(ForeignError::Refused { .. }) => Ok(false),
            other => other,
        }
    }

    /// Makes QEMU poll the guest for statistics every `interval`, unless it already polls.
    pub(super) async fn start_statistics(
        &mut self,
        path: &str,
        interval: Duration,
    ) -> Result<(), ForeignError> {
        const PROPERTY: &str = "guest-stats-polling-interval";
        if self.get::<u64>(path, PROPERTY).await? != 0 {
            return Ok(());
        }
        let value = Some(interval.as_secs().max(1));
        let of = OfObject { path, property: Some(PROPERTY), value };
        let _: IgnoredAny = self.ask("qom-set", Some(of)).await?;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(
        &mut self,
        path: &str,
        property: &str,
    ) -> Result<T, ForeignError> {
        let of = OfObject { path, property: Some(property), value: None };
        self.ask("qom-get", Some(of)).await
    }

    fn strange(&self, what: &str) -> ForeignError {
        ForeignError::Strange { socket: self.socket.clone(), what: words(what) }
    }

    fn broken(&self, cause: &dyn std::fmt::Display) -> ForeignError {
        broken(&self.socket, cause)
    }
}

fn broken(socket: &str, cause: &dyn std::fmt::Display) -> ForeignError {
    ForeignError::Broken { socket: socket.to_owned(), cause: cause.to_string() }
}

/// Returns whether a command was refused because there is no balloon, which QEMU reports by an
/// error class of its own.
fn is_no_balloon(reason: &str) -> bool {
    reason.contains("DeviceNotActive")
}
