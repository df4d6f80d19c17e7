//! A client of Cloud Hypervisor's HTTP API (its OpenAPI description is in vmm/src/api/openapi).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::error::{ForeignError, words};
use super::socket::connect;
use super::statistics::HypervisorStatistics;

/// The largest answer that is read, in bytes. `vm.info` lists every device of the guest.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The most devices whose counters are returned.
const COUNTERS_MAX: usize = 4096;

/// The counters of a guest's devices (`vm.counters`), by device and counter. Signed, because the
/// API does not say that they are not.
pub type Counters = BTreeMap<String, BTreeMap<String, i128>>;

/// A client of one guest's process; it opens a connection for each request.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    socket: PathBuf,
    pid: u32,
    patience: Duration,
}

/// The fields of `vm.info` that matter here.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) config: Config,
    /// `Created`, `Running`, `Shutdown`, `Paused` or `BreakPoint`.
    pub(super) state: String,
    /// RAM minus what is in the balloon; absent before the guest has started.
    pub(super) memory_actual_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) memory: Memory,
    pub(super) balloon: Option<BalloonConfig>,
    pub(super) devices: Option<Vec<IgnoredAny>>,
}

/// The memory of a guest. Zones are in addition to `size`, each with its own settings.
#[derive(Debug, Deserialize)]
pub(super) struct Memory {
    pub(super) size: u64,
    hotplugged_size: Option<u64>,
    #[serde(flatten)]
    pub(super) kind: MemoryKind,
    zones: Option<Vec<Zone>>,
}

#[derive(Debug, Deserialize)]
struct Zone {
    size: u64,
    hotplugged_size: Option<u64>,
    #[serde(flatten)]
    kind: MemoryKind,
}

/// How memory is backed.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct MemoryKind {
    pub(super) mergeable: bool,
    pub(super) shared: bool,
    pub(super) hugepages: bool,
}

impl Memory {
    /// Returns all memory, including plugged memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let zones = self.zones.iter().flatten();
        let zones = zones.map(|zone| zone.size.saturating_add(zone.hotplugged_size.unwrap_or(0)));
        let own = self.size.saturating_add(self.hotplugged_size.unwrap_or(0));
        zones.fold(own, u64::saturating_add)
    }

    /// Combines the kinds of all zones: mergeable only if all are, shared or huge if any is.
    pub(super) fn kind(&self) -> MemoryKind {
        let mut kinds: Vec<MemoryKind> =
            self.zones.iter().flatten().map(|zone| zone.kind).collect();
        if self.size > 0 || kinds.is_empty() {
            kinds.push(self.kind);
        }
        MemoryKind {
            mergeable: kinds.iter().all(|kind| kind.mergeable),
            shared: kinds.iter().any(|kind| kind.shared),
            hugepages: kinds.iter().any(|kind| kind.hugepages),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct BalloonConfig {
    /// The memory that the guest was asked to give up, in bytes.
    pub(super) size: u64,
    #[serde(default)]
    pub(super) free_page_reporting: bool,
}

#[derive(Debug, Serialize)]
struct Resize {
    desired_balloon: u64,
}

impl Hypervisor {
    /// Creates a client of process `pid`, whose API is on the socket at `path`. Each answer may
    /// take up to `patience`.
    #[must_use]
    pub fn new(path: &Path, pid: u32, patience: Duration) -> Self {
        Self { socket: path.to_owned(), pid, patience }
    }

    pub(super) async fn info(&self) -> Result<Info, ForeignError> {
        self.get("vm.info").await
    }

    /// Returns the guest's statistics; `None` if this version or this guest has none, or the guest
    /// does not answer in time.
    pub(super) async fn statistics(&self) -> Result<Option<HypervisorStatistics>, ForeignError> {
        match self.get("vm.balloon-stats").await {
            Ok(statistics) => Ok(Some(statistics)),
            Err(ForeignError::Refused { .. } | ForeignError::Slow { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the counters of the guest's devices.
    ///
    /// # Errors
    /// [`ForeignError`] if the request fails, or the answer has too many devices.
    pub async fn counters(&self) -> Result<Counters, ForeignError> {
        let counters: Counters = self.get("vm.counters").await?;
        if counters.len() > COUNTERS_MAX {
            let what = format!("counters of {} devices", counters.len());
            return Err(ForeignError::Strange { socket: self.name(), what });
        }
        Ok(counters)
    }

    /// Asks the guest to give up `bytes` of its RAM: the size of the balloon, not what remains.
    ///
    /// # Errors
    /// [`ForeignError::Refused`] if the guest has no balloon.
    pub async fn resize_balloon(&self, bytes: u64) -> Result<(), ForeignError> {
        let body = serde_json::to_vec(&Resize { desired_balloon: bytes });
        let body = body.map_err(|error| self.strange(&error))?;
        self.ask(Method::PUT, "vm.resize", body).await.map(|_| ())
    }

    async fn get<T: DeserializeOwned>(&self, what: &str) -> Result<T, ForeignError> {
        let bytes = self.ask(Method::GET, what, Vec::new()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(&error))
    }

    async fn ask(&self, method: Method, what: &str, body: Vec<u8>) -> Result<Bytes, ForeignError> {
        let patience = self.patience;
        let answer = tokio::time::timeout(patience, self.exchange(method, what, body)).await;
        let slow = |_| ForeignError::Slow { socket: self.name(), question: what.into(), patience };
        let (status, bytes) = answer.map_err(slow)??;
        if status.is_success() {
            return Ok(bytes);
        }
        // The reason is plain text, or a list of texts.
        let reason = words(&format!("{status} {}", String::from_utf8_lossy(&bytes)));
        Err(ForeignError::Refused { socket: self.name(), question: what.into(), reason })
    }

    async fn exchange(
        &self,
        method: Method,
        what: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ForeignError> {
        let stream = connect(&self.socket, self.pid, self.patience).await?;
        let broken = |error: hyper::Error| ForeignError::Broken {
            socket: self.name(),
            cause: reasons(&error),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{what}"))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.strange(&error))?;
        // Polled here and not in its own task, so that a caller that stops waiting leaves no task
        // behind.
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => broken(*error),
                Err(_) => self.strange(&format!("more than {ANSWER_BYTES_MAX} bytes")),
            })?;
            Ok((status, body.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            ended = &mut connection => ended.map_err(broken)?,
        }
        // The connection has ended; its answer still has to be read.
        answer.await
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }

    fn strange(&self, what: &dyn std::fmt::Display) -> ForeignError {
        ForeignError::Strange { socket: self.name(), what: words(&what.to_string()) }
    }
}

/// Formats an error of hyper with its causes, which its own message lacks.
fn reasons(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    words(&text)
}
