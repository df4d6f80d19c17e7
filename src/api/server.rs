//! A Unix socket that serves a router: for this user only, bounded in what it reads, removed by its owner.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::error::{ApiError, Reason};

/// The largest request body, in bytes; the largest sensible one is a few hundred.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Listens on `path` with mode 0600.
///
/// # Errors
/// The path exists, is too long, or the file system refuses.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // The folder is this user's alone, so nobody can connect in between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

/// Serves `router` until the task is aborted; unknown routes and oversized bodies get the same kind of answer as all else.
pub(crate) fn serve(listener: UnixListener, router: Router) -> JoinHandle<()> {
    let router = router
        .fallback(|| async { ApiError::new(Reason::NotFound, "no such route: see /v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Reason::MethodNotAllowed, "not with this method: see /v1/openapi.json")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the api socket is closed");
        }
    })
}
