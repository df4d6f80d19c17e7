//! The client of a process's API on its Unix socket.

use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::http::response::Parts;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::descriptor::HandingStream;
use super::error::ApiError;
use super::events::{EVENTS, EVENTS_FROM, Event};
use super::types::{CONSOLE_FROM, ConsoleRead, GuestInfo};
use crate::names::GuestName;
use crate::scrollback::Excerpt;

/// The largest response body that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The longest line that is read of a response that comes line by line, in bytes, plus up to one
/// frame.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Pause before a forbidden socket is tried again.
const OPENING_PAUSE: Duration = Duration::from_millis(100);

/// Timeout of an ordinary request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No process listens: it is gone, or not there yet.
    #[error("no process answers on {socket}: {cause}")]
    Unreachable {
        /// The socket that was tried.
        socket: String,
        /// The error of the system.
        cause: io::Error,
    },
    /// This user has no right to use the socket.
    #[error("no right to use {socket}: {cause}")]
    Forbidden {
        /// The socket that was tried.
        socket: String,
        /// The error of the system.
        cause: io::Error,
    },
    /// The connection broke, or the response is not HTTP.
    #[error("{socket} broke off: {cause}")]
    Broken {
        /// The socket that was tried.
        socket: String,
        /// The error of hyper.
        cause: String,
    },
    /// The answer did not come in time.
    #[error(
        "{socket} did not answer within {seconds} s: the process hangs, or the host is overloaded"
    )]
    Slow {
        /// The socket that was tried.
        socket: String,
        /// Time that the request was given, in seconds.
        seconds: u64,
    },
    /// The response is not JSON of the expected shape: probably another version of lighter.
    #[error("{socket} answered something unexpected: {what}")]
    Strange {
        /// The socket that was tried.
        socket: String,
        /// What was wrong with it.
        what: String,
    },
    /// The process refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl AskError {
    /// Whether the process is gone or ending. A process that refuses, or is overloaded for the
    /// moment (a full backlog, no free descriptors), is not gone.
    pub(crate) fn is_gone(&self) -> bool {
        let says_so = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        matches!(self, Self::Unreachable { cause, .. } if says_so(cause.kind()))
    }

    /// Whether no answer came from the process, gone or not.
    pub(crate) fn is_unanswered(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Slow { .. } => true,
            Self::Forbidden { .. } | Self::Strange { .. } | Self::Refused(_) => false,
        }
    }

    /// Whether this user has no right to use the socket.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }

    /// Whether the same request may succeed when it is sent again.
    pub(crate) fn is_transient(&self) -> bool {
        let is_broken = matches!(self, Self::Unreachable { .. } | Self::Broken { .. });
        is_broken && !self.is_gone()
    }

    /// The error of a failed connect.
    fn unconnected(socket: String, cause: io::Error) -> Self {
        match cause.kind() {
            ErrorKind::PermissionDenied => Self::Forbidden { socket, cause },
            _ => Self::Unreachable { socket, cause },
        }
    }
}

/// A client of one socket; each request opens its own connection.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    socket: PathBuf,
    patience: Duration,
}

impl ApiClient {
    /// A client of the socket at `path`; connects with the first request.
    pub(crate) fn new(path: &Path) -> Self {
        Self { socket: path.to_owned(), patience: PATIENCE }
    }

    /// Sets another timeout, for requests that take long (saving a guest) or must not (a list of
    /// guests).
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// See [`AskError`]; the same holds for the other methods.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Sends a PUT without a body.
    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::PUT, path, None::<&()>).await
    }

    /// Sends a PUT with a JSON body.
    pub(crate) async fn put_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    /// Sends a POST with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Sends a POST with a JSON body, and with open files for the process to use.
    pub(crate) async fn post_with_files<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        files: Vec<File>,
    ) -> Result<T, AskError> {
        let stream = self.connect(files).await?;
        let exchange = self.exchange_on(stream, Method::POST, path, Some(body));
        self.understand(self.patient(self.patience, exchange).await?)
    }

    /// Sends a DELETE.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    /// Sends `GET /v1/guest/console`. The timeout is the usual one plus the time that `read` asks
    /// to wait.
    pub(crate) async fn read_console(&self, read: &ConsoleRead) -> Result<Excerpt, AskError> {
        let path = format!("/v1/guest/console?from={}&wait_ms={}", read.from, read.wait_ms);
        let patience = self.patience + Duration::from_millis(read.wait_ms);
        let (head, bytes) =
            self.patient(patience, self.exchange(Method::GET, &path, None::<&()>)).await?;
        let bytes = self.success(head.status, bytes)?;
        let from = self.number(&head, CONSOLE_FROM)?;
        Ok(Excerpt { from, bytes: bytes.to_vec() })
    }

    /// Returns the number in this header of a response.
    fn number(&self, head: &Parts, name: &str) -> Result<u64, AskError> {
        let number = head.headers.get(name).and_then(|number| number.to_str().ok()?.parse().ok());
        number.ok_or_else(|| self.strange(format!("an answer without {name}")))
    }

    /// Sends `GET /v1/guest/events`, for the events of process `pid` from number `from` on. Returns
    /// the number of the first event, and the stream.
    pub(crate) async fn follow_events(
        &self,
        from: u64,
        pid: u32,
    ) -> Result<(u64, Lines<Event>), AskError> {
        let path = format!("{EVENTS}?from={from}&pid={pid}");
        let asked = async {
            let stream = self.connect(Vec::new()).await?;
            self.send(stream, Method::GET, &path, None::<&()>).await
        };
        let (response, driver) = self.patient(self.patience, asked).await?;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            let first = self.number(&head, EVENTS_FROM)?;
            let (socket, read, next) = (self.socket.clone(), Vec::new(), PhantomData);
            return Ok((first, Lines { socket, body, read, next, _driver: driver }));
        }
        let refusal = self.patient(self.patience, self.read(body)).await?;
        Err(self.refusal(head.status, &refusal))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, AskError> {
        let exchange = self.exchange(method, path, body);
        self.understand(self.patient(self.patience, exchange).await?)
    }

    fn understand<T: DeserializeOwned>(&self, answer: (Parts, Bytes)) -> Result<T, AskError> {
        let (head, bytes) = answer;
        let bytes = self.success(head.status, bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()))
    }

    /// Opens a connection that sends `files` with the request.
    async fn connect(&self, files: Vec<File>) -> Result<HandingStream, AskError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|cause| AskError::unconnected(self.name(), cause))?;
        Ok(HandingStream::new(stream, files))
    }

    async fn patient<T>(
        &self,
        patience: Duration,
        exchange: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        let seconds = patience.as_secs();
        let slow = |_| AskError::Slow { socket: self.name(), seconds };
        tokio::time::timeout(patience, exchange).await.map_err(slow)?
    }

    /// Returns the body of a response, unless it is a refusal.
    fn success(&self, status: StatusCode, bytes: Bytes) -> Result<Bytes, AskError> {
        if status.is_success() {
            return Ok(bytes);
        }
        Err(self.refusal(status, &bytes))
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> AskError {
        match serde_json::from_slice::<ApiError>(bytes) {
            Ok(refusal) => refusal.into(),
            Err(_) => self.strange(format!("status {status} without a reason")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Parts, Bytes), AskError> {
        self.exchange_on(self.connect(Vec::new()).await?, method, path, body).await
    }

    async fn exchange_on(
        &self,
        stream: HandingStream,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Parts, Bytes), AskError> {
        let (response, _driver) = self.send(stream, method, path, body).await?;
        let (head, body) = response.into_parts();
        Ok((head, self.read(body).await?))
    }

    /// Reads the whole body of a response.
    async fn read(&self, body: Incoming) -> Result<Bytes, AskError> {
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broken(&self.socket, *error),
            Err(_) => self.strange(format!("more than {ANSWER_BYTES_MAX} bytes")),
        })?;
        Ok(body.to_bytes())
    }

    /// Sends a request, and waits for the head of the response. The body arrives only while the
    /// driver is kept.
    async fn send(
        &self,
        stream: HandingStream,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Response<Incoming>, Driver), AskError> {
        let broken = |error| broken(&self.socket, error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = Driver(tokio::spawn(connection));
        let body = match body {
            Some(body) => {
                serde_json::to_vec(body).map_err(|error| self.strange(error.to_string()))?
            }
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "lighter")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.strange(error.to_string()))?;
        Ok((sender.send_request(request).await.map_err(broken)?, driver))
    }

    /// Whether the folder of the socket belongs to this user.
    fn is_own(&self) -> bool {
        let folder = self.socket.parent().and_then(|folder| folder.metadata().ok());
        folder.is_some_and(|folder| folder.uid() == geteuid().as_raw())
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }

    fn strange(&self, what: String) -> AskError {
        strange(&self.socket, what)
    }
}

/// The task that moves a connection's bytes; dropping it closes the connection.
#[derive(Debug)]
struct Driver(JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response that comes line by line, each of them a `T`.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    socket: PathBuf,
    body: Incoming,
    read: Vec<u8>,
    next: PhantomData<T>,
    _driver: Driver,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Waits for the next line; `None` at the end of the response. Cancel-safe: a dropped future
    /// loses nothing.
    ///
    /// # Errors
    /// If the connection breaks, or a line is not a `T`.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, AskError> {
        loop {
            let end = self.read.iter().position(|&byte| byte == b'\n');
            if end.unwrap_or(self.read.len()) > LINE_BYTES_MAX {
                let text = format!("a line of more than {LINE_BYTES_MAX} bytes");
                return Err(strange(&self.socket, text));
            }
            if let Some(end) = end {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let item = serde_json::from_slice(&line);
                return item.map(Some).map_err(|error| strange(&self.socket, error.to_string()));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| broken(&self.socket, error))?;
            self.read.extend(frame.into_data().unwrap_or_default());
        }
    }
}

/// Adds the causes of hyper's error, which it does not display itself and which matter here.
fn broken(socket: &Path, error: hyper::Error) -> AskError {
    let cause = format!("{:#}", anyhow::Error::from(error));
    AskError::Broken { socket: socket.display().to_string(), cause }
}

fn strange(socket: &Path, what: String) -> AskError {
    AskError::Strange { socket: socket.display().to_string(), what }
}

/// Asks the guest `name` for its state; `None` if it does not answer, or not as expected.
///
/// # Errors
/// If this user has no right to ask it.
pub(crate) async fn guest_info(
    name: &GuestName,
    client: &ApiClient,
) -> anyhow::Result<Option<GuestInfo>> {
    let mut answer = client.get("/v1/guest").await;
    if answer.as_ref().is_err_and(AskError::is_forbidden) {
        // While a socket for all users is being created, only its owner can use it, so try once
        // more.
        tokio::time::sleep(OPENING_PAUSE).await;
        answer = client.get("/v1/guest").await;
    }
    match answer {
        // A process can make its own files inaccessible; then it does not answer.
        Err(error) if error.is_forbidden() && !client.is_own() => {
            let what = || format!("this user may not ask {name} (`--readonly` may look)");
            Err(error).with_context(what)
        }
        answer => Ok(answer.ok()),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn an_absent_process_is_gone_and_a_busy_one_is_not() {
        let unreachable = |cause| AskError::unconnected(String::new(), cause);
        for (errno, is_gone) in [
            (Errno::ENOENT, true),
            (Errno::ECONNREFUSED, true),
            (Errno::EAGAIN, false),
            (Errno::EMFILE, false),
        ] {
            let error = unreachable(errno.into());
            assert_eq!((error.is_gone(), error.is_transient()), (is_gone, !is_gone), "{error}");
        }
        let broken = AskError::Broken { socket: String::new(), cause: String::new() };
        assert!(!broken.is_gone() && broken.is_transient());
        let forbidden = unreachable(Errno::EACCES.into());
        assert!(forbidden.is_forbidden() && !forbidden.is_gone() && !forbidden.is_transient());
        assert!(!forbidden.is_unanswered() && !forbidden.to_string().contains("no process"));
    }
}
