//! `/metrics` and `/healthz` on TCP: plain HTTP for Prometheus and for whatever restarts services, on an address that the
//! operator keeps local or behind a proxy. Nothing can be changed here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::service::Node;

/// Scrapes that may run at once; further ones are told to come again.
const SCRAPES_MAX: usize = 4;

/// The longest that a scrape takes before it is given up: above any guest's patience.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(8);

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;

/// How long a peer may take to say what it wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection lasts at most, the scrape included.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(20);

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Shared {
    node: Arc<Node>,
    scrapes: Semaphore,
}

/// Listens on `address`; port 0 takes any free one.
///
/// # Errors
/// The address is taken or not this host's.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let taken = || format!("cannot serve metrics on {address}: choose another with --metrics");
    TcpListener::bind(address).await.with_context(taken)
}

/// Serves until the task is aborted. Connections are few, short and timed: anybody may reach this address.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>) -> JoinHandle<()> {
    let shared = Arc::new(Shared { node, scrapes: Semaphore::new(SCRAPES_MAX) });
    let router = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health))
        .with_state(shared);
    tokio::spawn(accept(listener, router))
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Nobody closes the semaphore: while the node lives, a place becomes free.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, service).await {
                        tracing::debug!(%peer, error, "a request for metrics came to nothing");
                    }
                    drop(place);
                });
            }
            // As when there are no descriptors left: it must not spin.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, one request.
async fn answer(stream: TcpStream, service: TowerToHyperService<Router>) -> Result<(), String> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_PATIENCE, connection).await {
        Ok(served) => served.map_err(|error| error.to_string()),
        Err(_) => Err("the peer took too long".to_owned()),
    }
}

async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response {
    let Ok(_turn) = shared.scrapes.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many scrapes at once\n").into_response();
    };
    match tokio::time::timeout(SCRAPE_PATIENCE, shared.node.metrics_page()).await {
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
