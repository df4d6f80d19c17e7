//! Connecting to a guest's process, and to no other.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::error::ForeignError;

/// Connects to the socket at `path` if it is `pid` that listens on it. Any user can start a process
/// that looks like a guest's and names a socket of somebody else; whoever runs this may be root.
///
/// # Errors
/// [`ForeignError::Unreachable`], [`ForeignError::Slow`], or [`ForeignError::Elsewhere`] when
/// another process listens.
pub(super) async fn connect(
    path: &Path,
    pid: u32,
    patience: Duration,
) -> Result<UnixStream, ForeignError> {
    let socket = path.display().to_string();
    let connected = tokio::time::timeout(patience, UnixStream::connect(path)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(cause)) => return Err(ForeignError::Unreachable { socket, cause }),
        Err(_) => {
            return Err(ForeignError::Slow { socket, question: "a connection".into(), patience });
        }
    };
    let listener = stream.peer_cred().ok().and_then(|peer| peer.pid());
    if listener.and_then(|listener| u32::try_from(listener).ok()) == Some(pid) {
        return Ok(stream);
    }
    let listener = listener
        .map_or_else(|| "one that cannot be seen".to_owned(), |pid| format!("process {pid}"));
    Err(ForeignError::Elsewhere { socket, pid, listener })
}
