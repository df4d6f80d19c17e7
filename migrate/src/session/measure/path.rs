//! Measures the path to the destination's node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, SendStream};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::EstimateError;
use crate::estimate::Path;
use crate::front::{FrontError, SINKS_MAX, open_sink};
use crate::guest::{GuestError, SourceGuest};
use crate::memory::PAGE_BYTES;
use crate::pages::{BATCH_BYTES, BufferPool, Compression, Encoder, Position, WireRate};
use crate::progress::Transfer;
use crate::quic::endpoint::{self, Peer};
use crate::quic::transport::send_window;
use crate::quic::{LinkError, Tls};
use crate::session::connect;
use crate::session::limiter::Limiter;
use crate::session::source::SourceSession;
use crate::session::totals::Totals;

/// How long data is sent: at least this, and for so many round trips, in which congestion control
/// finds the rate; but less than the time for which a sink takes it.
const SENDING_MIN: Duration = Duration::from_secs(1);
const SENDING_ROUND_TRIPS: u32 = 20;
const SENDING_MAX: Duration = Duration::from_millis(2500);
/// The last part of that time, in which the rate is measured.
const MEASURED: Duration = Duration::from_millis(500);
/// Most bytes that are sent, on all connections together.
const BYTES_MAX: u64 = 256 << 20;
/// Approximate number of bytes handed to the transport at once, as in a migration.
const BATCH_GOAL: usize = 128 << 10;
/// Share of the UDP payload that carries frames: QUIC's own headers take some 3 % of small packets.
const GOODPUT: f64 = 0.97;
/// Longest wait for the peer to hear that connections are closed.
const CLOSING: Duration = Duration::from_secs(1);

/// The sink of one connection.
struct Line {
    connection: Connection,
    stream: SendStream,
    bytes_max: u64,
    endpoint: Endpoint,
}

/// What a connection had carried at some time.
#[derive(Debug, Clone, Copy)]
struct Carried {
    at: Instant,
    /// Bytes of UDP payload that were sent and not lost.
    udp_bytes: u64,
    transfer: Transfer,
}

/// Connects to the node, and sends to it, for a second or, on a long path, more, what pages of the
/// `chunks` encode to. The bytes that are sent are not the guest's: only their number counts.
///
/// # Errors
/// If the node cannot be reached or measured, or memory cannot be read.
pub(super) async fn measure(
    session: &SourceSession,
    guest: &Arc<dyn SourceGuest>,
    chunks: &[usize],
    tls: &Tls,
) -> Result<Path, EstimateError> {
    let server_name = session.server_name.as_deref();
    let host = (session.host.as_str(), session.port);
    let nodes = connect::candidates(host, &session.addresses, server_name).await?;
    let began = Instant::now();
    let connections = session.connections.unwrap_or(1).min(SINKS_MAX);
    let (node, endpoint, connection) = reach(nodes, tls, connections).await?;
    let mut path = Path {
        is_measured: false,
        connect_seconds: began.elapsed().as_secs_f64(),
        round_trip_seconds: connection.rtt().as_secs_f64(),
        answer_seconds: connection.rtt().as_secs_f64(),
        bytes_per_second: 0.0,
        page_bytes: PAGE_BYTES as f64,
        lost_ratio: 0.0,
    };
    let asked = Instant::now();
    let opened = open_sink(&connection, &node).await;
    let mut answers = vec![asked.elapsed()];
    let (stream, bytes_max) = match (opened, session.bandwidth) {
        (Ok(opened), _) => opened,
        // An earlier version closes the connection on a request that it does not know.
        (Err(error), bandwidth) if is_unknown(&error) => {
            let rate = bandwidth.ok_or(EstimateError::Unmeasurable)?;
            return Ok(Path { bytes_per_second: rate as f64, ..path });
        }
        (Err(error), _) => return Err(error.into()),
    };
    path.round_trip_seconds = connection.rtt().as_secs_f64();
    let mut lines = vec![Line { connection, stream, bytes_max, endpoint }];
    while lines.len() < usize::from(connections) {
        let (line, answer) = one_more(&node, tls, connections).await?;
        lines.push(line);
        answers.push(answer);
    }
    answers.sort_unstable();
    path.answer_seconds = answers[answers.len() / 2].as_secs_f64();
    load(path, lines, session, guest, chunks).await?.ok_or(EstimateError::NoData(node.name))
}

fn is_unknown(error: &FrontError) -> bool {
    matches!(error, FrontError::Link(LinkError::Closed { .. }) | FrontError::Protocol { .. })
}

/// Makes one of `coupled` connections to the node at the first of its addresses that answers.
async fn reach(
    nodes: Vec<Peer>,
    tls: &Tls,
    coupled: u16,
) -> Result<(Peer, Endpoint, Connection), LinkError> {
    let mut silent = None;
    for node in nodes {
        let connected = match endpoint::dialer_for_memory(node.address, tls, coupled) {
            Ok(endpoint) => {
                endpoint::connect(&endpoint, &node).await.map(|connection| (endpoint, connection))
            }
            Err(error) => Err(error),
        };
        match connected {
            Ok((endpoint, connection)) => return Ok((node, endpoint, connection)),
            Err(error @ (LinkError::Silent { .. } | LinkError::Socket { .. })) => {
                silent = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    let nothing =
        || LinkError::Resolve { host: "the destination".to_owned(), reason: "it has none".into() };
    Err(silent.unwrap_or_else(nothing))
}

/// Opens a sink on a connection of its own; returns how long its request took to be answered, too.
async fn one_more(node: &Peer, tls: &Tls, coupled: u16) -> Result<(Line, Duration), FrontError> {
    let endpoint = endpoint::dialer_for_memory(node.address, tls, coupled)?;
    let connection = endpoint::connect(&endpoint, node).await?;
    let asked = Instant::now();
    let (stream, bytes_max) = open_sink(&connection, node).await?;
    Ok((Line { connection, stream, bytes_max, endpoint }, asked.elapsed()))
}

/// Sends on all lines at once, and adds what was measured to `path`; none if nothing was sent.
async fn load(
    path: Path,
    lines: Vec<Line>,
    session: &SourceSession,
    guest: &Arc<dyn SourceGuest>,
    chunks: &[usize],
) -> Result<Option<Path>, GuestError> {
    let limiter = Arc::new(Limiter::new(session.bandwidth));
    let sending = SENDING_ROUND_TRIPS * Duration::from_secs_f64(path.round_trip_seconds);
    let until = Instant::now() + sending.clamp(SENDING_MIN, SENDING_MAX);
    let count = lines.len();
    let mut running = JoinSet::new();
    let mut closing = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        closing.push((line.connection.clone(), line.endpoint.clone()));
        let load = Load {
            guest: Arc::clone(guest),
            chunks: chunks.iter().copied().skip(index).step_by(count).collect(),
            compression: session.compression,
            limiter: Arc::clone(&limiter),
            totals: Arc::default(),
            bytes_max: line.bytes_max.min(BYTES_MAX / count as u64),
        };
        running.spawn(load.send(line, until));
    }
    let mut spans = Vec::new();
    while let Some(joined) = running.join_next().await {
        // A panic there has already been reported by the panic handler.
        let span = joined.map_err(|error| GuestError::new(error.to_string()))??;
        spans.push(span);
    }
    let (sent, lost) = closing.iter().fold((0, 0), |(sent, lost), (connection, _)| {
        let stats = connection.stats().path;
        (sent + stats.sent_packets, lost + stats.lost_packets)
    });
    hang_up(&closing).await;
    Ok(added(path, &spans).map(|path| Path { lost_ratio: share(lost, sent), ..path }))
}

fn share(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

/// Adds the rates between the beginning and the end of each span to `path`.
fn added(path: Path, spans: &[[Carried; 2]]) -> Option<Path> {
    let rate = spans.iter().map(|[from, to]| {
        let seconds = (to.at - from.at).as_secs_f64().max(1e-3);
        to.udp_bytes.saturating_sub(from.udp_bytes) as f64 / seconds
    });
    let bytes_per_second = rate.sum::<f64>() * GOODPUT;
    let more = |of: fn(&Transfer) -> u64| {
        let spans = spans.iter();
        spans.map(|[from, to]| of(&to.transfer) - of(&from.transfer)).sum::<u64>()
    };
    let (bytes, pages) = (more(|it| it.wire_bytes), more(Transfer::content_pages));
    let page_bytes = if pages > 0 { share(bytes, pages) } else { path.page_bytes };
    let measured = Path { is_measured: true, bytes_per_second, page_bytes, ..path };
    (bytes_per_second > 0.0).then_some(measured)
}

async fn hang_up(closing: &[(Connection, Endpoint)]) {
    let idle = async {
        for (connection, endpoint) in closing {
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
        }
    };
    let _ = timeout(CLOSING, idle).await;
}

/// What one line sends.
struct Load {
    guest: Arc<dyn SourceGuest>,
    /// Chunks to encode, again and again.
    chunks: Vec<usize>,
    compression: Compression,
    limiter: Arc<Limiter>,
    totals: Arc<Totals>,
    bytes_max: u64,
}

impl Load {
    /// Sends until `until`; returns what the line had carried [`MEASURED`] before that and at the
    /// end, or at the beginning and the end if it ended earlier.
    async fn send(self, line: Line, until: Instant) -> Result<[Carried; 2], GuestError> {
        let (connection, totals) = (line.connection.clone(), Arc::clone(&self.totals));
        let carried = || Carried {
            at: Instant::now(),
            udp_bytes: udp_bytes(&connection),
            transfer: totals.read(),
        };
        let began = carried();
        let late = async {
            sleep_until(until - MEASURED).await;
            carried()
        };
        let sending = async {
            // On a slow path, a write may take longer than all the time there is.
            match timeout_at(until, self.fill(line)).await {
                Ok(ended) => ended.map(|()| carried()),
                Err(_) => Ok(carried()),
            }
        };
        let (late, ended) = tokio::join!(late, sending);
        let ended = ended?;
        Ok([if late.at < ended.at { late } else { began }, ended])
    }

    /// Encodes pages as a migration does, and writes as many bytes.
    async fn fill(self, line: Line) -> Result<(), GuestError> {
        let Line { connection, mut stream, .. } = line;
        let filler = Bytes::from(vec![0_u8; BATCH_BYTES]);
        let (pool, mut encoder, mut wire) =
            (BufferPool::new(), Encoder::new(self.compression), WireRate::default());
        let mut chunks = self.chunks.iter().cycle();
        let mut sent = 0;
        while sent < self.bytes_max {
            let length = self.encode(&mut chunks, &pool, &mut encoder, &wire)?;
            let asked = Instant::now();
            self.limiter.take(length).await;
            if stream.write_chunk(filler.slice(..length.min(filler.len()))).await.is_err() {
                // The sink takes no more.
                break;
            }
            sent += length as u64;
            let now = Instant::now();
            if let Some(rate) = wire.wrote(length as u64, now - asked, now.into_std()) {
                connection.set_send_window(send_window(rate, connection.min_rtt(), u64::MAX));
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Encodes a batch of pages; returns its length. Without pages that are not zero, there is
    /// nothing to encode, and the batch counts as such pages.
    fn encode<'a>(
        &self,
        chunks: &mut impl Iterator<Item = &'a usize>,
        pool: &BufferPool,
        encoder: &mut Encoder,
        wire: &WireRate,
    ) -> Result<usize, GuestError> {
        let mut batch = pool.batch();
        while batch.len() < BATCH_GOAL && batch.has_room() {
            let Some(&chunk) = chunks.next() else {
                let raw_pages = (BATCH_GOAL / PAGE_BYTES) as u64;
                let wire_bytes = BATCH_GOAL as u64;
                self.totals.add(&Transfer { wire_bytes, raw_pages, ..Transfer::default() });
                return Ok(BATCH_GOAL);
            };
            let position = Position { round: 1, chunk: chunk as u64, pages: u64::MAX };
            let copy = |first: usize, out: &mut [u8]| self.guest.copy_out(chunk, first, out);
            let frame = encoder.encode(&mut batch, position, wire, copy)?;
            self.totals.add(&frame);
        }
        Ok(batch.len())
    }
}

fn udp_bytes(connection: &Connection) -> u64 {
    let stats = connection.stats();
    stats.udp_tx.bytes.saturating_sub(stats.path.lost_bytes)
}
