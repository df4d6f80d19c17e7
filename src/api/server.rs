//! A Unix socket that serves a router, with limits on sizes, connections and their duration. Its
//! owner removes it.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::DefaultBodyLimit;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::descriptor::HandingStream;
use super::error::{ApiError, Reason};

/// The largest request body, in bytes; the largest useful one has a few hundred.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The largest request head, in bytes; hyper allows no smaller limit.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Timeout for a request's head, also for the next one on the same connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Concurrent connections of read-only clients; further ones wait.
const READONLY_CONNECTIONS_MAX: usize = 64;

/// Concurrent connections of the owner, whose programs may each follow the console.
const OWNER_CONNECTIONS_MAX: usize = 512;

/// How long a read-only client may stay connected.
const READONLY_TIME_MAX: Duration = Duration::from_secs(30);

/// How long accepted requests may still run after shutdown has begun.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// Pause after the system has failed to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The users that a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// This user, who may do everything.
    Owner,
    /// All users who can reach the socket's folder. They can only read, and for a limited time.
    AnyUser,
}

/// Listens on `path`, with the permissions for `audience`.
///
/// # Errors
/// If the path exists or is too long, or the file system refuses.
fn bind(path: &Path, audience: Audience) -> Result<UnixListener> {
    let mode = match audience {
        Audience::Owner => 0o600,
        Audience::AnyUser => 0o666,
    };
    let listener = bind_with(path, Mode::from_bits_truncate(mode))
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    // Restores the permissions that the umask removed.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

/// Listens on `path`. The socket file never allows more than `mode`, because Linux creates it with
/// the mode of the socket.
fn bind_with(path: &Path, mode: Mode) -> std::io::Result<UnixListener> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, mode)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    UnixListener::from_std(socket.into())
}

/// Serves `router` until `end`, and then finishes the requests that were accepted. Unknown routes
/// and oversized bodies get the same kind of response as everything else.
async fn serve_until(
    listener: UnixListener,
    router: Router,
    audience: Audience,
    mut end: watch::Receiver<()>,
) {
    let router = router
        .fallback(|| async {
            ApiError::new(Reason::NotFound, "no such route: see /v1/openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Reason::MethodNotAllowed, "not with this method: see /v1/openapi.json")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    let places = match audience {
        Audience::Owner => OWNER_CONNECTIONS_MAX,
        Audience::AnyUser => READONLY_CONNECTIONS_MAX,
    };
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            _ = end.changed() => break,
            Some(_) = served.join_next() => {}
            accepted = listener.accept(), if served.len() < places => match accepted {
                Ok((stream, _)) => {
                    served.spawn(serve_stream(stream, router.clone(), audience, end.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the api socket takes no connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while served.join_next().await.is_some() {}
}

/// Serves one connection, within the limits of `audience`.
async fn serve_stream(
    stream: UnixStream,
    router: Router,
    audience: Audience,
    end: watch::Receiver<()>,
) {
    match audience {
        Audience::Owner => {
            let stream = HandingStream::new(stream, Vec::new());
            let router = router.layer(Extension(stream.handed()));
            serve_http(stream, router, end).await;
        }
        // Files are not accepted from other users: the kernel closes what they send.
        Audience::AnyUser => {
            let _in_time =
                tokio::time::timeout(READONLY_TIME_MAX, serve_http(stream, router, end)).await;
        }
    }
}

/// Answers the requests of one connection.
async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut end: watch::Receiver<()>,
) {
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that disconnects or is too slow cannot be told anything.
        _ = connection.as_mut() => return,
        _ = end.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _broken_off = connection.as_mut().await;
}

/// A socket that is being served and can be shut down cleanly.
#[derive(Debug)]
pub(crate) struct Server {
    task: JoinHandle<()>,
    end: watch::Sender<()>,
}

impl Server {
    /// Serves `router` on the socket at `path`, for `audience`.
    ///
    /// # Errors
    /// If the path exists or is too long, or the file system refuses.
    pub(crate) fn start(path: &Path, router: Router, audience: Audience) -> Result<Self> {
        let listener = bind(path, audience)?;
        let (end, ended) = watch::channel(());
        let task = tokio::spawn(serve_until(listener, router, audience, ended));
        Ok(Self { task, end })
    }

    /// Stops accepting requests, and gives those already accepted a moment to finish.
    pub(crate) async fn close(mut self) {
        drop(self.end);
        if tokio::time::timeout(CLOSE_PATIENCE, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::api::descriptor::Handed;

    fn router() -> Router {
        Router::new().route("/hello", get(|| async { "hello" }))
    }

    #[tokio::test]
    async fn sockets_have_the_mode_of_their_audience() {
        let folder = tempfile::tempdir().unwrap();
        for (audience, mode) in [(Audience::Owner, 0o600), (Audience::AnyUser, 0o666)] {
            let path = folder.path().join(format!("{mode:o}"));
            let server = Server::start(&path, router(), audience).unwrap();
            let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{audience:?}");
            server.close().await;
        }
    }

    #[tokio::test]
    async fn a_socket_never_has_a_wider_mode_than_intended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let _listener = bind_with(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        // The umask alone would leave more.
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, 0o600);
    }

    #[tokio::test]
    async fn a_file_is_accepted_only_from_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let report_file = async |handed: Option<Extension<Handed>>| match handed {
            Some(Extension(handed)) if !handed.take().is_empty() => "taken",
            _ => "none",
        };
        for (audience, expected) in [(Audience::Owner, "taken"), (Audience::AnyUser, "none")] {
            let path = folder.path().join(expected);
            let server = Server::start(&path, Router::new().route("/", get(report_file)), audience);
            let stream = UnixStream::connect(&path).await.unwrap();
            let mut stream = HandingStream::new(stream, vec![tempfile::tempfile().unwrap()]);
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with(expected), "{audience:?}: {answer}");
            server.unwrap().close().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_not_waited_for_any_longer_from_the_owner_either() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        for audience in [Audience::Owner, Audience::AnyUser] {
            let server = Server::start(&path, router(), audience).unwrap();
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /hello HTTP/1.1\r\nhost: ").await.unwrap();
            let began = Instant::now();
            let closed = timeout(2 * READONLY_TIME_MAX, stream.read_to_end(&mut Vec::new())).await;
            let waited = began.elapsed();
            closed.expect("the connection is closed").unwrap();
            let limit = HEAD_PATIENCE + Duration::from_secs(1);
            assert!((HEAD_PATIENCE..limit).contains(&waited), "{audience:?}: {waited:?}");
            server.close().await;
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_make_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let _server = Server::start(&path, router(), Audience::AnyUser).unwrap();
        let mut silent = Vec::new();
        for _ in 0..READONLY_CONNECTIONS_MAX {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /hello HTTP/1.1\r\n").await.unwrap();
            silent.push(stream);
        }
        let mut last = UnixStream::connect(&path).await.unwrap();
        last.write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    }
}
