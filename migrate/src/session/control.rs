//! The control stream: one task reads messages, another writes them in the order they were queued.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::framing::{self, ReadFailure};
use crate::protocol::CodecError;
use crate::protocol::codec::Message;
use crate::quic::LinkError;
use crate::quic::silence::silence;

/// Longest wait at the end for the peer to acknowledge the last messages.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// Longest wait, once the control stream has ended, for the peer to close the connection with a
/// reason.
const REASON_TIME: Duration = Duration::from_millis(500);
/// Most messages that wait to be written. Both sides wait for answers and have few in flight, so a
/// peer that needs more sends requests without reading the answers.
const OUTBOX_MAX: usize = 16;
/// Data streams have 0: messages and state go ahead of queued pages.
const PRIORITY: i32 = 10;

/// A message or event from the control stream.
#[derive(Debug)]
pub(super) enum Heard<M> {
    Message(M),
    Malformed(CodecError),
    /// The stream is lost; nothing more will come.
    Lost(String),
}

/// Receiver of what arrives on one control stream, which it wraps into the driver's inputs.
pub(super) struct Inbox<M, T> {
    pub(super) inputs: mpsc::Sender<T>,
    /// Number of the control stream, so that late messages of a replaced stream can be recognised.
    pub(super) generation: u64,
    pub(super) wrap: fn(u64, Heard<M>) -> T,
}

impl<M, T> Clone for Inbox<M, T> {
    fn clone(&self) -> Self {
        Self { inputs: self.inputs.clone(), generation: self.generation, wrap: self.wrap }
    }
}

impl<M, T> Inbox<M, T> {
    async fn hear(&self, heard: Heard<M>) {
        let _ = self.inputs.send((self.wrap)(self.generation, heard)).await;
    }
}

/// A control stream to send messages on. Dropping it sends the queued messages, then closes its
/// connections.
#[derive(Debug)]
pub(super) struct Control {
    outbox: mpsc::Sender<Vec<u8>>,
    connections: Vec<Connection>,
}

impl Control {
    /// Takes over a stream of the first of `connections`. What arrives goes to `inbox`, which makes
    /// the peer wait if its queue is full, until the stream is [`Heard::Lost`]. All connections are
    /// closed together with the control stream; if one of them is lost, so is the control stream.
    pub(super) fn start<M: Message + Send + 'static, T: Send + 'static>(
        connections: Vec<Connection>,
        name: &str,
        (send, receive): (SendStream, RecvStream),
        tasks: &mut JoinSet<()>,
        inbox: &Inbox<M, T>,
    ) -> Self {
        let (outbox, frames) = mpsc::channel(OUTBOX_MAX);
        tasks.spawn(write_all(send, frames, connections.clone()).in_current_span());
        tasks.spawn(read_all(receive, connections[0].clone(), name.into(), inbox.clone()));
        for (index, connection) in connections.iter().enumerate() {
            let (connection, name, inbox) = (connection.clone(), name.to_owned(), inbox.clone());
            tasks.spawn(async move {
                let lost = tokio::select! {
                    error = silence(&connection) => error.to_string(),
                    // The reader reports the loss of the first one.
                    _ = connection.closed() => match index {
                        0 => return,
                        _ => describe(&connection, &name, ""),
                    },
                };
                inbox.hear(Heard::Lost(lost)).await;
            });
        }
        Self { outbox, connections }
    }

    /// Queues the bytes of a message.
    pub(super) fn send_bytes(&self, frame: Vec<u8>) {
        match self.outbox.try_send(frame) {
            // If the writer is gone, so is the connection, and the reader reports it.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => self.cut("answers are not read"),
        }
    }

    /// Closes the connections at once, without sending what is queued.
    pub(super) fn cut(&self, reason: &str) {
        for connection in &self.connections {
            connection.close(1_u32.into(), reason.as_bytes());
        }
    }

    /// Returns the round-trip time of the first connection.
    pub(super) fn round_trip(&self) -> Duration {
        self.connections[0].rtt()
    }

    /// Returns all connections, the one with the control stream first.
    pub(super) fn connections(&self) -> &[Connection] {
        &self.connections
    }
}

async fn write_all(
    mut send: SendStream,
    mut frames: mpsc::Receiver<Vec<u8>>,
    connections: Vec<Connection>,
) {
    let _ = send.set_priority(PRIORITY);
    while let Some(frame) = frames.recv().await {
        if send.write_chunk(frame.into()).await.is_err() {
            // The reader reports the cause; the driver closes the connection.
            while frames.recv().await.is_some() {}
        }
    }
    if send.finish().is_ok() {
        let _ = timeout(FLUSH_TIME, send.stopped()).await;
    }
    for connection in connections {
        let path = connection.stats().path;
        tracing::debug!(
            mtu = path.current_mtu,
            rtt_us = path.rtt.as_micros(),
            sent_packets = path.sent_packets,
            lost_packets = path.lost_packets,
            black_holes = path.black_holes_detected,
            "closing a connection"
        );
        connection.close(0_u32.into(), b"");
    }
}

async fn read_all<M: Message, T>(
    mut receive: RecvStream,
    connection: Connection,
    name: String,
    inbox: Inbox<M, T>,
) {
    loop {
        match framing::read(&mut receive).await {
            Ok(message) => inbox.hear(Heard::Message(message)).await,
            Err(ReadFailure::Malformed(error)) => inbox.hear(Heard::Malformed(error)).await,
            Err(ReadFailure::OutOfStep(error)) => {
                let detail = error.to_string();
                inbox.hear(Heard::Malformed(error)).await;
                return inbox.hear(Heard::Lost(detail)).await;
            }
            Err(ReadFailure::Lost(detail)) => {
                let _ = timeout(REASON_TIME, connection.closed()).await;
                return inbox.hear(Heard::Lost(describe(&connection, &name, &detail))).await;
            }
        }
    }
}

/// Returns why `connection` is unusable: the transport's error, or else `detail`.
pub(super) fn describe(connection: &Connection, name: &str, detail: &str) -> String {
    match connection.close_reason() {
        Some(error) => LinkError::explain(&error, connection.remote_address(), name).to_string(),
        None => detail.into(),
    }
}
