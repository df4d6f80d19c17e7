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
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::service::Node;

/// Scrapes that may run at once; further ones are told to come again.
const SCRAPES_MAX: usize = 4;

/// The longest that a scrape takes before it is given up: above any guest's patience.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(8);

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

/// Serves until the task is aborted.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>) -> JoinHandle<()> {
    let shared = Arc::new(Shared { node, scrapes: Semaphore::new(SCRAPES_MAX) });
    let router = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health))
        .with_state(shared);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    })
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
