//! A sink: the node reads and discards what another host sends, to measure the path between them.
//!
//! It is bounded in bytes, time and number, and its buffer is that of any connection. So a peer
//! that measures again and again takes at most a few of the node's places for requests, and no
//! guest waits for it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::dial::{FrontError, failed, unfit};
use crate::framing::{self, ReadFailure};
use crate::guest::{Refusal, RefusalKind};
use crate::protocol::front::{FrontReply, FrontRequest};
use crate::quic::endpoint::Peer;

/// Connections that are measured at once.
pub(crate) const SINKS_MAX: u16 = 4;
/// Most bytes that are read on one of them.
const SINK_BYTES_MAX: u64 = 256 << 20;
/// Longest time for that: what is measured in a second may be queued on a slow path.
const SINK_TIME: Duration = Duration::from_secs(3);
/// Most bytes taken from a stream at once.
const READ_BYTES: usize = 1 << 20;
/// Longest wait for the answer to the request.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The sinks of a node.
#[derive(Debug, Clone)]
pub(super) struct Sinks(Arc<Semaphore>);

impl Sinks {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(SINKS_MAX.into())))
    }

    /// Takes a sink, if one is free, and returns the answer to the request for it.
    pub(super) fn take(&self) -> (Option<Sink>, FrontReply) {
        match Arc::clone(&self.0).try_acquire_owned() {
            Ok(permit) => {
                (Some(Sink { _permit: permit }), FrontReply::Sink { bytes_max: SINK_BYTES_MAX })
            }
            Err(_) => {
                let text =
                    "other hosts measure the path to this node now: try again in some seconds";
                (None, FrontReply::Refused(Refusal::new(RefusalKind::Busy, text)))
            }
        }
    }
}

/// A sink that is in use; dropping it frees its place.
#[derive(Debug)]
pub(super) struct Sink {
    _permit: OwnedSemaphorePermit,
}

impl Sink {
    /// Reads `stream` until it ends, or has carried as much or lasted as long as is allowed.
    pub(super) async fn drain(self, stream: &mut RecvStream) {
        let mut left = SINK_BYTES_MAX;
        let reading = async {
            while left > 0 {
                match stream.read_chunk(READ_BYTES, true).await {
                    Ok(Some(chunk)) => left = left.saturating_sub(chunk.bytes.len() as u64),
                    Ok(None) | Err(_) => break,
                }
            }
        };
        // Neither end is an error: the other host measures what it has sent.
        let _ = timeout(SINK_TIME, reading).await;
    }
}

/// Asks the node `peer`, at the other end of `connection`, for a sink. Returns the stream to write
/// to, and how many bytes it takes at most.
///
/// # Errors
/// If it gives none. A node of an earlier version closes the connection.
pub(crate) async fn open_sink(
    connection: &Connection,
    peer: &Peer,
) -> Result<(SendStream, u64), FrontError> {
    let dialogue = async {
        let opened = connection.open_bi().await;
        let (mut send, mut receive) =
            opened.map_err(|error| ReadFailure::Lost(error.to_string()))?;
        framing::write(&mut send, &FrontRequest::Sink).await.map_err(ReadFailure::Lost)?;
        let reply = framing::read::<FrontReply>(&mut receive).await?;
        Ok::<_, ReadFailure>((send, reply))
    };
    match timeout(ANSWER_TIME, dialogue).await {
        Err(_) => Err(FrontError::NoAnswer { peer: peer.address, limit: ANSWER_TIME }),
        Ok(Ok((send, FrontReply::Sink { bytes_max }))) => Ok((send, bytes_max)),
        Ok(Ok((_, reply))) => Err(unfit(peer, reply)),
        Ok(Err(failure)) => Err(failed(connection, peer, failure)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::front::{FrontHandler, serve};
    use crate::quic::endpoint::{Endpoint, connect, dialer, listen};
    use crate::quic::{Authority, LinkError, Tls};

    /// A node that is asked for nothing but sinks.
    struct Idle;

    impl FrontHandler for Idle {
        async fn answer(
            &self,
            request: FrontRequest,
            _: std::net::SocketAddr,
            _: Option<uuid::Uuid>,
        ) -> FrontReply {
            panic!("asked {request:?}");
        }
    }

    fn node() -> (Endpoint, Endpoint, Peer) {
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), &tls).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer(address, &tls).unwrap();
        (listener, dialer, Peer { address, name: "127.0.0.1".into() })
    }

    async fn sink(dialer: &Endpoint, peer: &Peer) -> Result<(Connection, SendStream), FrontError> {
        let connection = connect(dialer, peer).await?;
        let (stream, bytes_max) = open_sink(&connection, peer).await?;
        assert_eq!(bytes_max, SINK_BYTES_MAX);
        Ok((connection, stream))
    }

    #[tokio::test]
    async fn a_node_has_few_sinks_and_a_closed_connection_frees_its_own() {
        let (listener, dialer, peer) = node();
        tokio::spawn(serve(listener.clone(), Arc::new(Idle)));
        let mut taken = Vec::new();
        for _ in 0..SINKS_MAX {
            taken.push(sink(&dialer, &peer).await.unwrap());
        }
        let refused = sink(&dialer, &peer).await.unwrap_err();
        assert!(matches!(refused, FrontError::Refused(_)), "{refused}");

        let (connection, _stream) = taken.remove(0);
        connection.close(0_u32.into(), b"");
        while sink(&dialer, &peer).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_sink_takes_no_more_than_it_says() {
        let (listener, dialer, peer) = node();
        tokio::spawn(serve(listener.clone(), Arc::new(Idle)));
        let (connection, mut stream) = sink(&dialer, &peer).await.unwrap();
        let piece = vec![0_u8; 1 << 20];
        let mut written = 0;
        // What is still buffered on the way counts as written.
        while written < 2 * SINK_BYTES_MAX && stream.write_all(&piece).await.is_ok() {
            written += piece.len() as u64;
        }
        assert!(written < SINK_BYTES_MAX + (64 << 20), "{written}");
        connection.closed().await;
    }

    #[tokio::test]
    async fn an_older_node_closes_the_connection() {
        let (listener, dialer, peer) = node();
        tokio::spawn(async move {
            let connection = listener.accept().await.unwrap().await.unwrap();
            let _request = connection.accept_bi().await.unwrap();
            connection.close(0_u32.into(), b"unknown kind 71 of control message");
            listener.wait_idle().await;
        });
        let error = sink(&dialer, &peer).await.unwrap_err();
        assert!(matches!(error, FrontError::Link(LinkError::Closed { .. })), "{error}");
    }
}
