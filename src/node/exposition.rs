//! `/metrics` and `/healthz` on TCP, for Prometheus and for supervisors that restart services:
//! plain HTTP on an address that the operator keeps local, or with TLS and a password
//! ([`super::access`]). Clients cannot change anything here.

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle};

use super::access::{self, Access};
use super::service::Node;
use crate::density::Density;

/// Concurrent scrapes; further ones get status 503.
const SCRAPES_MAX: usize = 4;

/// Longest time for a scrape, after which it is abandoned: longer than any guest may take.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(8);

/// Concurrent connections. Beyond, the oldest one without a request is closed for a new one.
const CONNECTIONS_MAX: usize = 32;

/// How long a client may take to send its request.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// Longest time for a connection, including the scrape.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(20);

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Shared {
    node: Arc<Node>,
    density: Arc<Density>,
    scrapes: Semaphore,
}

/// Listens on `address`; port 0 takes any free one.
///
/// # Errors
/// If the address is taken or is not this host's.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let taken = || format!("cannot serve metrics on {address}: choose another with --metrics");
    TcpListener::bind(address).await.with_context(taken)
}

/// Serves until the task is aborted. Connections are few, short and limited in time: any client may
/// reach this address.
pub(crate) fn serve(
    listener: TcpListener,
    node: Arc<Node>,
    density: Arc<Density>,
    access: Access,
) -> JoinHandle<()> {
    let shared = Arc::new(Shared { node, density, scrapes: Semaphore::new(SCRAPES_MAX) });
    let router = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health))
        .with_state(shared);
    tokio::spawn(accept(listener, router, access))
}

async fn accept(listener: TcpListener, router: Router, access: Access) {
    let wanted = access.authorization.clone();
    let router = router.layer(from_fn_with_state(wanted, access::check));
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if connections.make_room() => {
                connections.add(stream, peer, &router, access.clone());
            }
            Ok((_, peer)) => {
                tracing::debug!(%peer, "a connection for metrics is closed: too many are being answered");
            }
            // E.g. if there are no descriptors left: the loop must not spin.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The open connections, oldest first.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

struct Connection {
    task: AbortHandle,
    /// Whether the client has sent its request.
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    /// Makes room for one more connection; returns whether there is. However many clients connect
    /// and stay silent, one that sends a request gets an answer.
    fn make_room(&mut self) -> bool {
        self.0.retain(|connection| !connection.task.is_finished());
        if self.0.len() < CONNECTIONS_MAX {
            return true;
        }
        let silent = |connection: &Connection| !connection.has_asked.load(Ordering::Relaxed);
        let oldest = self.0.iter().position(silent).and_then(|index| self.0.remove(index));
        oldest.inspect(|connection| connection.task.abort()).is_some()
    }

    fn add(&mut self, stream: TcpStream, peer: SocketAddr, router: &Router, access: Access) {
        let has_asked = Arc::new(AtomicBool::new(false));
        let (service, asked) = (TowerToHyperService::new(router.clone()), Arc::clone(&has_asked));
        let service = service_fn(move |request| {
            asked.store(true, Ordering::Relaxed);
            service.call(request)
        });
        let connection = async move {
            let stream = tokio::time::timeout(HEADER_PATIENCE, access.accept(stream)).await;
            let stream = TokioIo::new(stream.map_err(|_| "TLS handshake timed out".to_owned())??);
            // Each connection serves one request.
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .keep_alive(false)
                .serve_connection(stream, service);
            Ok::<(), Box<dyn Error + Send + Sync>>(served.await?)
        };
        let task = tokio::spawn(async move {
            match tokio::time::timeout(CONNECTION_PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "a request for metrics came to nothing");
                }
                Err(_) => tracing::debug!(%peer, "a peer took too long to read metrics"),
            }
        });
        self.0.push_back(Connection { task: task.abort_handle(), has_asked });
    }
}

async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response {
    let Ok(_turn) = shared.scrapes.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many scrapes at once\n").into_response();
    };
    let page = shared.node.metrics_page(shared.density.sample());
    match tokio::time::timeout(SCRAPE_PATIENCE, page).await {
        Ok(Ok(page)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Ok(Err(error)) => {
            tracing::error!("cannot make the metrics page: {error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        }
        Err(_) => {
            (StatusCode::GATEWAY_TIMEOUT, "the host is too busy to be measured\n").into_response()
        }
    }
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.node.health() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Connects and sends `request`.
    async fn peer(address: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn answer(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(HEADER_PATIENCE / 2, read).await.expect("no wait for others").unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_not_waited_for_any_longer() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "fine"));
        let server = tokio::spawn(accept(listener, router, Access::default()));
        let mut silent = peer(address, "GET / HTTP/1.1\r\nhost: ").await;
        let began = Instant::now();
        let closed = timeout(2 * CONNECTION_PATIENCE, silent.read_to_end(&mut Vec::new())).await;
        let waited = began.elapsed();
        closed.expect("the connection is closed").unwrap();
        let limit = HEADER_PATIENCE + Duration::from_secs(1);
        assert!((HEADER_PATIENCE..limit).contains(&waited), "{waited:?}");
        server.abort();
    }

    #[tokio::test]
    async fn peers_that_ask_are_answered_before_peers_that_do_not() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (inside, released) = (Arc::clone(&entered), Arc::clone(&go_on));
        let slow = async move || {
            inside.notify_one();
            released.notified().await;
            "slow"
        };
        let router = Router::new().route("/slow", get(slow)).route("/", get(async || "fine"));
        let server = tokio::spawn(accept(listener, router, Access::default()));

        let asked = peer(address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
        entered.notified().await;
        let mut silent = Vec::new();
        for index in 0..5 * CONNECTIONS_MAX {
            let half = if index % 2 == 0 { "" } else { "GET / HTTP/1.1\r\n" };
            silent.push(peer(address, half).await);
        }

        let heard = answer(peer(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await).await;
        assert!(heard.ends_with("fine"), "{heard}");
        go_on.notify_one();
        let heard = answer(asked).await;
        assert!(heard.ends_with("slow"), "{heard}");
        server.abort();
    }
}
