//! A Unix stream that can pass an open file with a request (`SCM_RIGHTS` of unix(7)).
//!
//! A guest's process opens no file that a client names. A client that wants it to write a file
//! opens the file and passes the descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The file that was received last on a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handed(Arc<Mutex<Option<Received>>>);

impl Handed {
    /// Takes the file; `None` from then on.
    pub(crate) fn take(&self) -> Option<File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?.0.take()
    }

    fn put(&self, file: File) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Received(Some(file)));
    }
}

/// A received file. Closing it may block for as long as its file system likes, and a client may
/// control that file system, so it is closed on a blocking thread.
#[derive(Debug)]
struct Received(Option<File>);

impl Drop for Received {
    fn drop(&mut self) {
        let Some(file) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(file))),
            Err(_) => drop(file),
        }
    }
}

/// A stream that keeps a file that it receives, and sends one with the first bytes that are
/// written.
#[derive(Debug)]
pub(crate) struct HandingStream {
    stream: UnixStream,
    handed: Handed,
    to_send: Option<File>,
}

impl HandingStream {
    /// A stream that sends `to_send`.
    pub(crate) fn new(stream: UnixStream, to_send: Option<File>) -> Self {
        Self { stream, handed: Handed::default(), to_send }
    }

    /// The file that it receives.
    pub(crate) fn handed(&self) -> Handed {
        self.handed.clone()
    }
}

impl ScmSocket for HandingStream {
    fn socket_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn system(error: vmm_sys_util::errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

impl AsyncRead for HandingStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let bytes = into.initialize_unfilled();
            let receive = || self.recv_with_fd(bytes).map_err(system);
            match self.stream.try_io(Interest::READABLE, receive) {
                Ok((count, file)) => {
                    if let Some(file) = file {
                        self.handed.put(file);
                    }
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for HandingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(file) = self.to_send.take() else {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        };
        loop {
            match self.stream.poll_write_ready(context) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => {
                    self.to_send = Some(file);
                    return Poll::Pending;
                }
            }
            let send = || self.send_with_fd(bytes, file.as_raw_fd()).map_err(system);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_file_arrives_with_the_first_bytes_and_once() {
        let mut file = tempfile::tempfile().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let mut near = HandingStream::new(near, Some(file.try_clone().unwrap()));
        let mut far = HandingStream::new(far, None);
        near.write_all(b"first").await.unwrap();
        near.write_all(b"second").await.unwrap();
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "firstsecond");

        let handed = far.handed();
        write!(handed.take().unwrap(), "written at the other end").unwrap();
        assert!(handed.take().is_none());
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "written at the other end");
    }
}
