//! A Unix stream that can pass open files with a request (`SCM_RIGHTS` of unix(7)).
//!
//! A guest's process opens no file that a client names. A client that wants it to use a file opens
//! the file and passes the descriptor. Each of several files goes with a byte of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Most files that a connection keeps; later ones are closed. An image has up to 32.
const FILES_MAX: usize = 40;

/// The files that were received on a connection, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handed(Arc<Mutex<Vec<Received>>>);

impl Handed {
    /// Takes the files; there are none from then on.
    pub(crate) fn take(&self) -> Vec<File> {
        let mut received = self.received();
        received.drain(..).filter_map(|mut received| received.0.take()).collect()
    }

    fn put(&self, file: File) {
        let file = Received(Some(file));
        let mut received = self.received();
        if received.len() < FILES_MAX {
            received.push(file);
        }
    }

    fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A stream that keeps files that it receives, and sends some with the first bytes that are
/// written.
#[derive(Debug)]
pub(crate) struct HandingStream {
    stream: UnixStream,
    handed: Handed,
    to_send: VecDeque<File>,
}

impl HandingStream {
    /// A stream that sends `to_send`.
    pub(crate) fn new(stream: UnixStream, to_send: Vec<File>) -> Self {
        Self { stream, handed: Handed::default(), to_send: to_send.into() }
    }

    /// The files that it receives.
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
        let Some(file) = self.to_send.front() else {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        };
        // What is received at once has the files of one write.
        let bytes = if self.to_send.len() > 1 { &bytes[..bytes.len().min(1)] } else { bytes };
        let sent = loop {
            ready!(self.stream.poll_write_ready(context))?;
            let send = || self.send_with_fd(bytes, file.as_raw_fd()).map_err(system);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => break outcome,
            }
        };
        if sent.is_ok() {
            self.to_send.pop_front();
        }
        Poll::Ready(sent)
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
    async fn files_arrive_with_the_first_bytes_in_their_order_and_once() {
        let mut files: Vec<File> = (0..33).map(|_| tempfile::tempfile().unwrap()).collect();
        let copies = files.iter().map(|file| file.try_clone().unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        let mut near = HandingStream::new(near, copies.collect());
        let mut far = HandingStream::new(far, Vec::new());
        near.write_all(b"the first request of all that there are").await.unwrap();
        near.write_all(b"; second").await.unwrap();
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "the first request of all that there are; second");

        let handed = far.handed();
        let taken = handed.take();
        assert_eq!(taken.len(), files.len());
        assert!(handed.take().is_empty());
        for (index, (mut theirs, own)) in taken.into_iter().zip(&mut files).enumerate() {
            write!(theirs, "written at the other end: {index}").unwrap();
            let mut content = String::new();
            own.rewind().unwrap();
            own.read_to_string(&mut content).unwrap();
            assert_eq!(content, format!("written at the other end: {index}"));
        }
    }

    #[tokio::test]
    async fn a_client_cannot_have_any_number_of_files_kept() {
        let copies = (0..2 * FILES_MAX).map(|_| tempfile::tempfile().unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        let mut near = HandingStream::new(near, copies.collect());
        let mut far = HandingStream::new(far, Vec::new());
        near.write_all(&[b'x'; 2 * FILES_MAX]).await.unwrap();
        drop(near);
        far.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(far.handed().take().len(), FILES_MAX);
    }
}
