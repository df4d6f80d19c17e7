//! The source's side of memory that follows its guest: sends the pages that the destination lacks,
//! those that it requests first: only the others wait for the bandwidth limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn::{Connection, Endpoint, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};

use super::heat::Heat;
use super::outstanding::{Answer, Outstanding};
use super::sender::Route;
use super::stream_sender::{Owned, StreamContext};
use crate::failpoint::Passage;
use crate::guest::GuestError;
use crate::memory::PageSet;
use crate::pages::{Batch, Encoder, Position, WireRate};
use crate::protocol::page_request::{BadRequest, PageRequest, REQUEST_BYTES};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::quic::endpoint::{self, Peer};
use crate::quic::silence::silent_beside_others;
use crate::quic::transport::send_window_behind_guest;
use crate::quic::{LinkError, Tls};

/// Priority of the stream of requests: above all data, below the control stream.
const REQUESTED_PRIORITY: i32 = 5;
/// Approximate number of bytes handed to the transport at once in the background. A request waits
/// for no more than that to be accepted.
const BACKGROUND_GOAL: usize = 128 << 10;
/// Close code of a connection whose peer breaks the protocol, or whose pages cannot be read.
const FAILED: u32 = 1;

/// Why pages are served no longer on a connection.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// The destination has all pages and reads this stream no longer.
    #[error("the destination has all pages")]
    Unwanted,
    /// The control stream reports the loss of the connection.
    #[error("{0}")]
    Stream(String),
}

/// A running server. Dropping it stops it at once.
pub(super) struct Server {
    outstanding: Arc<Outstanding>,
    /// In which rounds each chunk of memory was sent.
    heat: Arc<Mutex<Heat>>,
    _stop: watch::Sender<()>,
}

/// Further connections to make: one is enough to go on with, but more may be faster.
pub(super) struct Further {
    pub(super) peers: Vec<Peer>,
    pub(super) tls: Tls,
}

impl Server {
    /// Starts to send those of the pages in `missing` that are requested, and, from
    /// [`Server::send_rest`] on, the others on all connections of `route`, and on `further` ones. A
    /// connection of `route` on which a stream fails is closed, and its loss is reported like any
    /// other; if another failure occurs, all of them are. What was sent by then counts when the
    /// destination says what it still lacks.
    pub(super) fn start(
        context: StreamContext,
        route: Route,
        further: Further,
        missing: PageSet,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (stop, mut stopped) = watch::channel(());
        let connections = route.connections.clone();
        let chunks = missing.chunks();
        let heat = context.heat.clone();
        let outstanding = Arc::new(Outstanding::new(missing));
        let shared = outstanding.clone();
        tasks.spawn(async move {
            let served = tokio::select! {
                _ = stopped.changed() => return,
                served = serve(context, route, further, (shared, chunks)) => served,
            };
            if let Err(error) = served
                && !matches!(error, ServeError::Unwanted)
            {
                let text = error.to_string();
                if !matches!(error, ServeError::Stream(_)) {
                    tracing::error!(error = text, "memory that follows the guest cannot be sent");
                }
                for connection in connections {
                    connection.close(FAILED.into(), text.as_bytes());
                }
            }
        });
        Self { outstanding, heat, _stop: stop }
    }

    /// Sends what is not requested, too, from now on. Only now is its order found, which takes
    /// longer the more memory the guest has: the guest runs already.
    pub(super) fn send_rest(&self) {
        let heat = self.heat.lock().unwrap_or_else(PoisonError::into_inner);
        self.outstanding.release_rest(&heat);
    }
}

/// Serves until a stream fails.
async fn serve(
    context: StreamContext,
    route: Route,
    further: Further,
    (outstanding, chunks): (Arc<Outstanding>, usize),
) -> Result<(), ServeError> {
    let mut running = JoinSet::new();
    let address = |connection: &Connection| connection.remote_address().ip();
    let for_requests = context.links.fastest(route.connections.iter().map(address));
    for (index, connection) in route.connections.iter().enumerate() {
        if index == for_requests {
            let preamble = route.preamble(StreamRole::Requests);
            let requests = serve_requests(
                (context.clone(), connection.clone()),
                preamble,
                (outstanding.clone(), chunks),
            );
            running.spawn(or_close(connection.clone(), requests));
        }
        let preamble = route.preamble(StreamRole::Background);
        let rest = send_rest(context.clone(), preamble, connection.clone(), outstanding.clone());
        running.spawn(or_close(connection.clone(), rest));
    }
    let all = route.connections.len() + further.peers.len();
    let coupled = u16::try_from(all).unwrap_or(u16::MAX);
    for peer in further.peers {
        let preamble = route.preamble(StreamRole::Background);
        let dialer = match route.are_links {
            true => endpoint::dialer_for_link(peer.address, &further.tls),
            false => endpoint::dialer_for_memory(peer.address, &further.tls, coupled),
        };
        let first = route.connections.first().filter(|_| route.are_links).cloned();
        let sending = (preamble, outstanding.clone());
        running.spawn(send_on_another(context.clone(), (dialer, peer), first, sending));
    }
    while let Some(ended) = running.join_next().await {
        // A panic there has already been reported by the panic handler.
        match ended.map_err(broken)? {
            Ok(()) | Err(ServeError::Unwanted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes the connection on which a stream fails: the control stream reports that.
async fn or_close(
    connection: Connection,
    serving: impl Future<Output = Result<(), ServeError>>,
) -> Result<(), ServeError> {
    match serving.await {
        Err(ServeError::Stream(detail)) => {
            connection.close(FAILED.into(), detail.as_bytes());
            Ok(())
        }
        served => served,
    }
}

/// Sends what the destination requests on a stream of this connection.
async fn serve_requests(
    (context, connection): (StreamContext, Connection),
    preamble: Preamble,
    (outstanding, chunks): (Arc<Outstanding>, usize),
) -> Result<(), ServeError> {
    let (send, receive) = connection.open_bi().await.map_err(broken)?;
    let mut outlet = Outlet::new(&context, &connection, send, "requested");
    outlet.introduce(preamble).await?;
    outlet.prioritize();
    let taking = take_requests(receive, outstanding.clone(), chunks);
    tokio::try_join!(answer(outlet, outstanding), taking).map(drop)
}

/// Sends on a stream of this connection what is not requested.
async fn send_rest(
    context: StreamContext,
    preamble: Preamble,
    connection: Connection,
    outstanding: Arc<Outstanding>,
) -> Result<(), ServeError> {
    send_unasked(background(&context, preamble, &connection).await?, outstanding).await
}

/// Opens a stream for pages that are not requested.
async fn background(
    context: &StreamContext,
    preamble: Preamble,
    connection: &Connection,
) -> Result<Outlet, ServeError> {
    let send = connection.open_uni().await.map_err(broken)?;
    let mut outlet = Outlet::new(context, connection, send, "background");
    outlet.limit_window(None);
    outlet.introduce(preamble).await?;
    Ok(outlet)
}

/// Once the rest may follow, makes another connection and sends on it what is not requested, until
/// it is lost, or until it or the `first` of several links is silent while the other one is not. If
/// it cannot be made, the others carry all.
async fn send_on_another(
    context: StreamContext,
    (dialer, peer): (Result<Endpoint, LinkError>, Peer),
    first: Option<Connection>,
    (preamble, outstanding): (Preamble, Arc<Outstanding>),
) -> Result<(), ServeError> {
    // A link that was lost is not used again before the guest is handed over.
    outstanding.released().await;
    let connected = async {
        let dialer = dialer?;
        let connection = endpoint::connect(&dialer, &peer).await?;
        Ok::<_, LinkError>((dialer, connection))
    };
    let (_dialer, connection) = match connected.await {
        Ok(connected) => connected,
        Err(error) => {
            tracing::debug!(%error, "memory follows the guest on fewer connections");
            context.links.lose(peer.address.ip(), &error.to_string());
            return Ok(());
        }
    };
    context.links.regain(peer.address.ip());
    let sending = async {
        send_unasked(background(&context, preamble, &connection).await?, outstanding).await?;
        // Dropped earlier, it would take along what is on its way; what is lost with it is sent
        // again on another connection.
        Err::<(), _>(broken(connection.closed().await))
    };
    let pair: Vec<_> = [connection.clone()].into_iter().chain(first).collect();
    let (lost, why) = tokio::select! {
        Err(ended) = sending => match ended {
            ServeError::Stream(why) => (&connection, why),
            ended => return Err(ended),
        },
        (place, silent) = silent_beside_others(&pair) => (&pair[place], silent.to_string()),
    };
    context.links.lose(lost.remote_address().ip(), &why);
    Err(ServeError::Stream(why))
}

/// Sends what the destination requests.
async fn answer(mut outlet: Outlet, outstanding: Arc<Outstanding>) -> Result<(), ServeError> {
    loop {
        let Answer { chunk, pages, neighbours } = outstanding.next_answer().await;
        outlet.encode(chunk, pages)?;
        outlet.flush().await?;
        if neighbours != 0 {
            outlet.encode(chunk, neighbours)?;
            outlet.flush().await?;
        }
    }
}

/// Takes requests until the destination has all it wants.
async fn take_requests(
    mut from: RecvStream,
    outstanding: Arc<Outstanding>,
    chunks: usize,
) -> Result<(), ServeError> {
    let mut bytes = [0; REQUEST_BYTES];
    loop {
        match from.read_exact(&mut bytes).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            Err(error) => return Err(broken(error)),
        }
        let (chunk, pages) = PageRequest::decode(bytes, chunks)?;
        outstanding.request(chunk, pages);
    }
}

/// Sends all pages that are not requested, within the bandwidth limit. A page that it has taken is
/// no longer sent on request, so it takes none that would have to wait.
async fn send_unasked(mut outlet: Outlet, outstanding: Arc<Outstanding>) -> Result<(), ServeError> {
    loop {
        outlet.context.limiter.paid().await;
        match outlet.context.failpoints.reach("source.take", outlet.kind) {
            Passage::Go | Passage::Flip => {}
            Passage::Cut => return Err(ServeError::Stream("failpoint".to_owned())),
            Passage::Hold => return std::future::pending().await,
        }
        let mut next = outstanding.next_unasked().await;
        if next.is_none() {
            break;
        }
        while let Some((chunk, pages)) = next {
            outlet.encode(chunk, pages)?;
            // Zero pages fill no buffer, so without this no other task would run on this thread.
            yield_now().await;
            next = if outlet.is_full() { None } else { outstanding.more_unasked() };
        }
        outlet.flush_behind_guest().await?;
    }
    outlet.stream.end().map_err(broken)
}

/// A stream for pages, and what it takes to fill it.
struct Outlet {
    context: StreamContext,
    stream: Owned,
    encoder: Encoder,
    wire: WireRate,
    batch: Batch,
    connection: Connection,
    /// Name of its batches, for failpoints.
    kind: &'static str,
}

impl Outlet {
    fn new(
        context: &StreamContext,
        connection: &Connection,
        stream: SendStream,
        kind: &'static str,
    ) -> Self {
        let (encoder, batch) = (Encoder::new(context.compression), context.pool.batch());
        let (context, wire) = (context.clone(), WireRate::default());
        let (connection, stream) = (connection.clone(), Owned::new(stream));
        Self { context, stream, encoder, wire, batch, connection, kind }
    }

    /// Says what the stream is for.
    async fn introduce(&mut self, preamble: Preamble) -> Result<(), ServeError> {
        self.stream.stream.write_all(&preamble.encode()).await.map_err(unwritten)
    }

    fn prioritize(&self) {
        // It fails only for a stream that has ended.
        let _ = self.stream.stream.set_priority(REQUESTED_PRIORITY);
    }

    fn encode(&mut self, chunk: usize, pages: u64) -> Result<(), ServeError> {
        let position = Position { round: 0, chunk: chunk as u64, pages };
        let guest = &self.context.guest;
        let copy = |first: usize, out: &mut [u8]| guest.copy_out(chunk, first, out);
        let sent = self.encoder.encode(&mut self.batch, position, &self.wire, copy)?;
        self.context.totals.add(&sent);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= BACKGROUND_GOAL || !self.batch.has_room()
    }

    /// Hands the frames gathered so far to the transport, and counts them for the bandwidth limit.
    async fn flush(&mut self) -> Result<(), ServeError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::replace(&mut self.batch, self.context.pool.batch());
        match self.context.failpoints.reach("source.data", self.kind) {
            Passage::Go => {}
            Passage::Cut => return Err(ServeError::Stream("failpoint".to_owned())),
            Passage::Hold => return std::future::pending().await,
            Passage::Flip => batch.damage(),
        }
        let length = batch.len();
        self.context.limiter.count(length);
        self.stream.stream.write_chunk(batch.into_bytes()).await.map_err(unwritten)?;
        self.context.links.count(self.connection.remote_address().ip(), length);
        Ok(())
    }

    /// As [`Outlet::flush`]; measures the link, for compression and the send window.
    async fn flush_behind_guest(&mut self) -> Result<(), ServeError> {
        let (length, asked) = (self.batch.len() as u64, Instant::now());
        self.flush().await?;
        let now = Instant::now();
        let rate = self.wire.wrote(length, now - asked, now);
        if rate.is_some() {
            self.limit_window(rate);
        }
        Ok(())
    }

    /// Limits what is under way, at this rate in bytes per second.
    fn limit_window(&self, rate: Option<f64>) {
        if let Some(window) = send_window_behind_guest(rate, self.connection.min_rtt()) {
            self.connection.set_send_window(window);
        }
    }
}

fn unwritten(error: WriteError) -> ServeError {
    match error {
        WriteError::Stopped(_) => ServeError::Unwanted,
        error => broken(error),
    }
}

fn broken(error: impl std::fmt::Display) -> ServeError {
    ServeError::Stream(error.to_string())
}
