//! A Unix socket that serves a router: for this user only, bounded in what it reads, removed by its owner.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::error::{ApiError, Reason};

/// The largest request body, in bytes; the largest sensible one is a few hundred.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How long requests that were taken before the end may go on.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// Listens on `path` with mode 0600.
///
/// # Errors
/// The path exists, is too long, or the file system refuses.
fn bind(path: &Path) -> Result<UnixListener> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // The folder is this user's alone, so nobody can connect in between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

/// Serves `router` until `end`, answering what has been asked by then; unknown routes and oversized bodies get the same kind of
/// answer as all else.
fn serve_until(
    listener: UnixListener,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let router = router
        .fallback(|| async {
            ApiError::new(Reason::NotFound, "no such route: see /v1/openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Reason::MethodNotAllowed, "not with this method: see /v1/openapi.json")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(end).await {
            tracing::error!(%error, "the api socket is closed");
        }
    })
}

/// A socket that is served and can be closed in order.
#[derive(Debug)]
pub(crate) struct Server {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Server {
    /// Serves `router` on the socket at `path`, for this user only.
    ///
    /// # Errors
    /// As [`bind`].
    pub(crate) fn start(path: &Path, router: Router) -> Result<Self> {
        let listener = bind(path)?;
        let (end, ended) = oneshot::channel();
        let task = serve_until(listener, router, async move { drop(ended.await) });
        Ok(Self { task, end })
    }

    /// Takes no more requests, and gives those that were taken a moment to be answered.
    pub(crate) async fn close(mut self) {
        drop(self.end);
        if tokio::time::timeout(CLOSE_PATIENCE, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
