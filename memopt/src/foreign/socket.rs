//! Connects to the socket of a guest's process, and of no other.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::error::ForeignError;

/// Connects to the socket at `path` if process `pid` listens on it. Any user can start a process
/// that looks like a guest's and names another user's socket, and lighter may run as root.
///
/// # Errors
/// [`ForeignError::Unreachable`] if the connection is refused, usually because no process listens,
/// [`ForeignError::Slow`] if connecting takes too long, [`ForeignError::Elsewhere`] if a process
/// other than `pid` listens, or the listener cannot be identified.
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
