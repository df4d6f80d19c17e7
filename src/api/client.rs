//! Asks a process over its Unix socket.

use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::http::response::Parts;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::descriptor::HandingStream;
use super::error::ApiError;
use super::types::{CONSOLE_FROM, ConsoleRead};
use crate::scrollback::Excerpt;

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// How long an ordinary answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an answer is missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens: the process is gone, or not there yet.
    #[error("nobody answers on {socket}: {cause}")]
    Unreachable {
        /// The socket that was tried.
        socket: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// This user has no right to ask.
    #[error("no right to use {socket}: {cause}")]
    Forbidden {
        /// The socket that was tried.
        socket: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// The connection broke in the middle, or what came is no HTTP.
    #[error("{socket} broke off: {cause}")]
    Broken {
        /// The socket that was tried.
        socket: String,
        /// What hyper found.
        cause: String,
    },
    /// The answer did not come in time.
    #[error(
        "{socket} did not answer within {seconds} s: the process hangs, or the host is overloaded"
    )]
    Slow {
        /// The socket that was tried.
        socket: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The answer was no JSON of the expected shape: probably another version of lighter.
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
    /// Whether the process is gone (or going), rather than unwilling or short of something for the
    /// moment, as is a process with too many who ask at once.
    pub(crate) fn is_gone(&self) -> bool {
        let says_so = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        matches!(self, Self::Unreachable { cause, .. } if says_so(cause.kind()))
    }

    /// Whether nothing was heard of the process, be it gone or not.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Slow { .. } => true,
            Self::Forbidden { .. } | Self::Strange { .. } | Self::Refused(_) => false,
        }
    }

    /// Whether this user may not ask.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }

    /// Whether the question may be answered when it is asked again.
    pub(crate) fn is_passing(&self) -> bool {
        let is_broken = matches!(self, Self::Unreachable { .. } | Self::Broken { .. });
        is_broken && !self.is_gone()
    }

    /// Of a socket that there is no way to connect to.
    fn unconnected(socket: String, cause: io::Error) -> Self {
        match cause.kind() {
            ErrorKind::PermissionDenied => Self::Forbidden { socket, cause },
            _ => Self::Unreachable { socket, cause },
        }
    }
}

/// A client of one socket; each request is a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    socket: PathBuf,
    patience: Duration,
}

impl ApiClient {
    /// A client of the socket at `path`; connects when asked.
    pub(crate) fn new(path: &Path) -> Self {
        Self { socket: path.to_owned(), patience: PATIENCE }
    }

    /// The same with another patience, for requests that take their time (saving a guest) or must
    /// not (a list of guests).
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// GET.
    ///
    /// # Errors
    /// See [`AskError`]; the same for the other methods.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// PUT without a body.
    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::PUT, path, None::<&()>).await
    }

    /// PUT with a JSON body.
    pub(crate) async fn put_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    /// POST with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// POST with a JSON body, and with a file that the process shall write or read.
    pub(crate) async fn post_with_file<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        file: &File,
    ) -> Result<T, AskError> {
        let file = file.try_clone().map_err(|error| self.strange(error.to_string()))?;
        let stream = self.connect(Some(file)).await?;
        let exchange = self.exchange_on(stream, Method::POST, path, Some(body));
        self.understand(self.patient(self.patience, exchange).await?)
    }

    /// DELETE.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    /// `GET /v1/guest/console`; takes as long as `read` asks to wait, and the usual time on top.
    pub(crate) async fn read_console(&self, read: &ConsoleRead) -> Result<Excerpt, AskError> {
        let path = format!("/v1/guest/console?from={}&wait_ms={}", read.from, read.wait_ms);
        let patience = self.patience + Duration::from_millis(read.wait_ms);
        let (head, bytes) =
            self.patient(patience, self.exchange(Method::GET, &path, None::<&()>)).await?;
        let bytes = self.success(head.status, bytes)?;
        let from = head.headers.get(CONSOLE_FROM).and_then(|from| from.to_str().ok()?.parse().ok());
        let from = from.ok_or_else(|| self.strange(format!("an answer without {CONSOLE_FROM}")))?;
        Ok(Excerpt { from, bytes: bytes.to_vec() })
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

    /// A connection, on which `file` goes along with what is asked.
    async fn connect(&self, file: Option<File>) -> Result<HandingStream, AskError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|cause| AskError::unconnected(self.name(), cause))?;
        Ok(HandingStream::new(stream, file))
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

    /// The body of an answer, unless it is a refusal.
    fn success(&self, status: StatusCode, bytes: Bytes) -> Result<Bytes, AskError> {
        if status.is_success() {
            return Ok(bytes);
        }
        Err(match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(refusal) => refusal.into(),
            Err(_) => self.strange(format!("status {status} without a reason")),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Parts, Bytes), AskError> {
        self.exchange_on(self.connect(None).await?, method, path, body).await
    }

    async fn exchange_on(
        &self,
        stream: HandingStream,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Parts, Bytes), AskError> {
        // Its errors do not name their causes, which are what matters here.
        let broken = |error: hyper::Error| AskError::Broken {
            socket: self.name(),
            cause: format!("{:#}", anyhow::Error::from(error)),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
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
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        driver.abort();
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broken(*error),
            Err(_) => self.strange(format!("more than {ANSWER_BYTES_MAX} bytes")),
        })?;
        Ok((head, body.to_bytes()))
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }

    fn strange(&self, what: String) -> AskError {
        AskError::Strange { socket: self.name(), what }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn gone_is_who_is_not_there_and_not_who_is_busy() {
        let unreachable = |cause| AskError::unconnected(String::new(), cause);
        for (errno, is_gone) in [
            (Errno::ENOENT, true),
            (Errno::ECONNREFUSED, true),
            (Errno::EAGAIN, false),
            (Errno::EMFILE, false),
        ] {
            let error = unreachable(errno.into());
            assert_eq!((error.is_gone(), error.is_passing()), (is_gone, !is_gone), "{error}");
        }
        let broken = AskError::Broken { socket: String::new(), cause: String::new() };
        assert!(!broken.is_gone() && broken.is_passing());
        let forbidden = unreachable(Errno::EACCES.into());
        assert!(forbidden.is_forbidden() && !forbidden.is_gone() && !forbidden.is_passing());
        assert!(!forbidden.is_silence() && !forbidden.to_string().contains("nobody"));
    }
}
