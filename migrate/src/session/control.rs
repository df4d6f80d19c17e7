//! The control stream: one task reads messages, another writes them in the order they were queued.
//! Where a migration uses several links, there is one on each, and each carries all messages.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::framing::{self, ReadFailure};
use crate::protocol::CodecError;
use crate::protocol::codec::Message;
use crate::quic::LinkError;
use crate::quic::silence::{silence, silent_beside_others};

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
    /// The link to this address is lost; others are left.
    LinkLost(IpAddr, String),
    /// The stream is lost, on all links; nothing more will come.
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

/// A control stream to send messages on, once on each link. Dropping it sends the queued messages,
/// then closes its connections.
#[derive(Debug)]
pub(super) struct Control {
    lanes: Vec<Lane>,
    merged: Arc<Merged>,
}

/// A stream on a further link.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) connection: Connection,
    pub(super) stream: (SendStream, RecvStream),
    /// Bytes that precede all messages.
    pub(super) greeting: &'static [u8],
}

/// The control stream on one link.
#[derive(Debug)]
struct Lane {
    outbox: mpsc::Sender<Bytes>,
    end: LaneEnd,
}

/// What the readers of all lanes share: both sides send the same messages on each, from the same
/// one on.
#[derive(Debug)]
struct Merged {
    /// Held while a message is passed on.
    turn: Mutex<()>,
    /// Number of messages that were passed on.
    heard: AtomicU64,
    /// Number of lanes that are not lost.
    alive: AtomicUsize,
}

/// What it takes to note that a lane is lost.
#[derive(Debug, Clone)]
struct LaneEnd {
    /// The first one has the stream.
    connections: Vec<Connection>,
    is_lost: Arc<AtomicBool>,
    merged: Arc<Merged>,
}

impl Control {
    /// Takes over a stream of the first of `connections`. What arrives goes to `inbox`, which makes
    /// the peer wait if its queue is full, until the stream is [`Heard::Lost`]. All connections are
    /// closed together with the control stream; if one of them is lost, so is the control stream.
    pub(super) fn start<M: Message + Send + 'static, T: Send + 'static>(
        connections: Vec<Connection>,
        name: &str,
        stream: (SendStream, RecvStream),
        tasks: &mut JoinSet<()>,
        inbox: &Inbox<M, T>,
    ) -> Self {
        let merged = Merged {
            turn: Mutex::default(),
            heard: AtomicU64::default(),
            alive: AtomicUsize::default(),
        };
        let mut control = Self { lanes: Vec::new(), merged: Arc::new(merged) };
        control.add(connections, name, stream, tasks, inbox);
        control
    }

    /// Adds a stream on a further link, and sends `greeting` on it. It carries the messages from
    /// now on, in both directions, so neither side may have sent any that the other has not heard.
    pub(super) fn join<M: Message + Send + 'static, T: Send + 'static>(
        &mut self,
        Joining { connection, stream, greeting }: Joining,
        name: &str,
        tasks: &mut JoinSet<()>,
        inbox: &Inbox<M, T>,
    ) {
        self.add(vec![connection], name, stream, tasks, inbox);
        if let Some(lane) = self.lanes.last().filter(|_| !greeting.is_empty()) {
            // The queue is empty.
            let _ = lane.outbox.try_send(Bytes::from_static(greeting));
        }
    }

    /// Returns the number of links, lost ones included.
    pub(super) fn links(&self) -> usize {
        self.lanes.len()
    }

    fn add<M: Message + Send + 'static, T: Send + 'static>(
        &mut self,
        connections: Vec<Connection>,
        name: &str,
        (send, receive): (SendStream, RecvStream),
        tasks: &mut JoinSet<()>,
        inbox: &Inbox<M, T>,
    ) {
        self.merged.alive.fetch_add(1, Ordering::AcqRel);
        let end = LaneEnd { connections, is_lost: Arc::default(), merged: self.merged.clone() };
        let (outbox, frames) = mpsc::channel(OUTBOX_MAX);
        tasks.spawn(write_all(send, frames, end.connections.clone()).in_current_span());
        // Now, not when the task runs: what comes then may already follow.
        let number = self.merged.heard.load(Ordering::Acquire);
        tasks.spawn(read_all((receive, number), end.clone(), name.into(), inbox.clone()));
        for (index, connection) in end.connections.iter().enumerate() {
            let (connection, name, inbox) = (connection.clone(), name.to_owned(), inbox.clone());
            let end = end.clone();
            tasks.spawn(async move {
                let lost = tokio::select! {
                    error = silence(&connection) => error.to_string(),
                    // The reader reports the loss of the first one.
                    _ = connection.closed() => match index {
                        0 => return,
                        _ => describe(&connection, &name, ""),
                    },
                };
                end.lose(lost, &inbox).await;
            });
        }
        self.lanes.push(Lane { outbox, end });
    }

    /// From now on gives up a link that is silent while another is not: the others carry all.
    pub(super) fn give_up_silent<M: Send + 'static, T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<()>,
        inbox: Inbox<M, T>,
    ) {
        let mut left: Vec<_> = self.lanes.iter().map(|lane| lane.end.clone()).collect();
        tasks.spawn(async move {
            while left.len() > 1 {
                let of = |end: &LaneEnd| end.connections[0].clone();
                let connections: Vec<_> = left.iter().map(of).collect();
                let (place, error) = tokio::select! {
                    silent = silent_beside_others(&connections) => silent,
                    () = all_closed(&connections) => return,
                };
                left.swap_remove(place).lose(error.to_string(), &inbox).await;
            }
        });
    }

    /// Queues the bytes of a message.
    pub(super) fn send_bytes(&self, frame: Vec<u8>) {
        let frame = Bytes::from(frame);
        for lane in &self.lanes {
            match lane.outbox.try_send(frame.clone()) {
                // If the writer is gone, so is the connection, and the reader reports it.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(_)) => lane.end.cut("answers are not read"),
            }
        }
    }

    /// Closes the connections at once, without sending what is queued.
    pub(super) fn cut(&self, reason: &str) {
        self.lanes.iter().for_each(|lane| lane.end.cut(reason));
    }

    /// Returns what tells the first connection that is not lost from others.
    pub(super) fn connection_id(&self) -> Option<usize> {
        self.connections().first().map(Connection::stable_id)
    }

    /// Returns the round-trip time of the first connection that is not lost.
    pub(super) fn round_trip(&self) -> Duration {
        self.connections().first().map_or(Duration::ZERO, Connection::rtt)
    }

    /// Returns all connections of links that are not lost, in the order of the links.
    pub(super) fn connections(&self) -> Vec<Connection> {
        let alive = self.lanes.iter().filter(|lane| !lane.end.is_lost.load(Ordering::Acquire));
        alive.flat_map(|lane| lane.end.connections.clone()).collect()
    }
}

impl Merged {
    /// Passes on what is the message with this number on one lane, unless another one was faster.
    async fn pass_on<M, T>(&self, number: u64, heard: Heard<M>, inbox: &Inbox<M, T>) {
        let _turn = self.turn.lock().await;
        if self.heard.load(Ordering::Acquire) == number {
            self.heard.store(number + 1, Ordering::Release);
            inbox.hear(heard).await;
        }
    }
}

impl LaneEnd {
    /// Reports once that the lane is lost, and closes its connections if another lane is left.
    async fn lose<M, T>(&self, detail: String, inbox: &Inbox<M, T>) {
        if self.is_lost.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.merged.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            return inbox.hear(Heard::Lost(detail)).await;
        }
        self.cut("the other links go on without this one");
        let address = self.connections[0].remote_address().ip();
        inbox.hear(Heard::LinkLost(address, detail)).await;
    }

    fn cut(&self, reason: &str) {
        for connection in &self.connections {
            connection.close(1_u32.into(), reason.as_bytes());
        }
    }
}

async fn all_closed(connections: &[Connection]) {
    for connection in connections {
        connection.closed().await;
    }
}

async fn write_all(
    mut send: SendStream,
    mut frames: mpsc::Receiver<Bytes>,
    connections: Vec<Connection>,
) {
    let _ = send.set_priority(PRIORITY);
    while let Some(frame) = frames.recv().await {
        if send.write_chunk(frame).await.is_err() {
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

/// Reads messages, the first of which has this number.
async fn read_all<M: Message, T>(
    (mut receive, mut number): (RecvStream, u64),
    end: LaneEnd,
    name: String,
    inbox: Inbox<M, T>,
) {
    let merged = &end.merged;
    let lost = loop {
        let heard = match framing::read(&mut receive).await {
            Ok(message) => Heard::Message(message),
            Err(ReadFailure::Malformed(error)) => Heard::Malformed(error),
            Err(ReadFailure::OutOfStep(error)) => {
                let detail = error.to_string();
                merged.pass_on(number, Heard::Malformed(error), &inbox).await;
                break detail;
            }
            Err(ReadFailure::Lost(detail)) => {
                let connection = &end.connections[0];
                let _ = timeout(REASON_TIME, connection.closed()).await;
                break describe(connection, &name, &detail);
            }
        };
        merged.pass_on(number, heard, &inbox).await;
        number += 1;
    };
    end.lose(lost, &inbox).await;
}

/// Returns why `connection` is unusable: the transport's error, or else `detail`.
pub(super) fn describe(connection: &Connection, name: &str, detail: &str) -> String {
    match connection.close_reason() {
        Some(error) => LinkError::explain(&error, connection.remote_address(), name).to_string(),
        None => detail.into(),
    }
}
