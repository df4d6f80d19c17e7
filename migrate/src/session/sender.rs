//! Sends rounds of dirty pages over all data streams.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use super::control::describe;
use super::hints::{BLOCK_CHUNKS, Slot};
use super::liveness::acknowledged;
use super::pool::Pool;
use super::stream_sender::{StreamContext, StreamSendError, StreamSender, panicked};
use crate::guest::GuestError;
use crate::memory::{PAGE_BYTES, PageSet};
use crate::progress::Transfer;
use crate::protocol::page_ack::{PAGE_ACK_BYTES, PageAck};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::protocol::{MigrationId, Token};
use crate::source::{Event, FinalSent, RoundSent};

/// A peer that stops a data stream says why on the control stream, which may arrive slightly later.
/// The sender waits this long, so that the reason is reported before the loss of the stream; when
/// the reason arrives, the sender ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// An order of the driver.
#[derive(Debug)]
pub(super) enum Order {
    /// Go on over this route, whose destination has applied so many frames of each data stream.
    Reopen(Route, Vec<u64>),
    /// Send the dirty pages, then count those dirtied meanwhile.
    Round(u32),
    /// Collect, then send the dirty pages.
    FinalRound(u32),
    /// Collect, send the dirty pages, then end the streams.
    Remainder(u32),
    /// End the round that is under way, and the streams; then collect, and re-arm what is dirty or
    /// was not sent.
    EndStreams,
    /// Collect.
    CollectMissing,
}

/// What a sender reports, with the generation of its route.
#[derive(Debug)]
pub(super) enum SenderReport {
    /// An order is carried out.
    Done(u64, Event),
    /// A stream failed.
    Lost(u64, String),
    /// The guest failed, whatever the route: what was to be sent is no longer known.
    GuestFailed(GuestError),
}

/// Connections and credentials of a sender.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) connections: Vec<Connection>,
    /// Number of the control stream on them.
    pub(super) generation: u64,
    /// Whether the connections are links that fail one by one, and share all chunks.
    pub(super) are_links: bool,
    pub(super) name: String,
    pub(super) streams: u16,
    pub(super) migration: MigrationId,
    pub(super) token: Token,
}

impl Route {
    /// Returns what a stream for this begins with.
    pub(super) fn preamble(&self, role: StreamRole) -> Preamble {
        Preamble { role, migration: self.migration, token: self.token }
    }
}

/// A running sender. Dropping it stops sending at once and resets streams that have not ended.
pub(super) struct Sender {
    orders: mpsc::UnboundedSender<Order>,
    is_ending: Arc<AtomicBool>,
    _stop: watch::Sender<()>,
}

impl Sender {
    /// Starts to send the pages of a guest of `chunks` chunks. All of them are dirty, except those
    /// that `hints` holds by the first round and that were not written since. Answers go to
    /// `report`. After a loss, it waits for another route.
    pub(super) fn start(
        context: StreamContext,
        route: Route,
        chunks: usize,
        hints: Arc<Slot>,
        tasks: &mut JoinSet<()>,
        report: impl Fn(SenderReport) + Send + Sync + 'static,
    ) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (stop, mut stopped) = watch::channel(());
        let is_ending = context.is_ending.clone();
        let work = Work {
            frames: vec![0; route.streams.into()],
            context,
            route,
            hints,
            has_begun: false,
            dirty: PageSet::full(chunks),
            outlets: Outlets::Closed,
            link_rounds: 0,
        };
        let report = Arc::new(report);
        let told = report.clone();
        let mut running = JoinSet::new();
        tasks.spawn(async move {
            running.spawn(async move { work.serve(inbox, &*told).await });
            tokio::select! {
                // Ends when the sender is dropped.
                _ = stopped.changed() => {}
                Some(Err(ended)) = running.join_next() => {
                    report(SenderReport::GuestFailed(panicked(&ended)));
                }
            }
        });
        Self { orders, is_ending, _stop: stop }
    }

    /// Queues an order.
    pub(super) fn order(&self, order: Order) {
        if matches!(order, Order::EndStreams) {
            self.is_ending.store(true, Relaxed);
        }
        let _ = self.orders.send(order);
    }
}

struct Work {
    context: StreamContext,
    route: Route,
    hints: Arc<Slot>,
    /// Whether the first round has begun.
    has_begun: bool,
    dirty: PageSet,
    outlets: Outlets,
    /// For each data stream, how many frames of earlier ones with its number are applied.
    frames: Vec<u64>,
    /// Number of the last round over links that are lost.
    link_rounds: u32,
}

/// What is sent after the pages of a round.
#[derive(Debug, Clone, Copy)]
enum Follow {
    /// Further rounds: the guest runs, and the transport's queue stays short.
    Rounds,
    /// Nothing: the guest is paused, and the transport takes all pages at once.
    Nothing,
}

/// The streams that carry the pages.
enum Outlets {
    /// The next round opens them.
    Closed,
    /// Each carries a fixed part of the chunks.
    Streams(Vec<StreamSender>),
    /// One on each of several links, which share the chunks.
    Links { pool: Arc<Pool>, _running: JoinSet<()> },
}

impl Work {
    async fn serve(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Order>,
        report: &(impl Fn(SenderReport) + Sync),
    ) {
        let mut is_lost = false;
        while let Some(order) = inbox.recv().await {
            let outcome = match order {
                Order::Reopen(route, applied) => {
                    is_lost = false;
                    self.reopen(route, applied);
                    continue;
                }
                // The machine decides what comes next.
                _ if is_lost => continue,
                Order::Round(round) => self.round(round).await.map(Event::RoundSent),
                Order::FinalRound(round) => self.final_round(round).await.map(Event::RoundSent),
                Order::Remainder(round) => self.remainder(round).await.map(Event::RemainderSent),
                Order::EndStreams => self.end_streams().await.map(Event::StreamsEnded),
                Order::CollectMissing => self.collect_missing().map(Event::MissingCollected),
            };
            let generation = self.route.generation;
            match outcome {
                Ok(event) => report(SenderReport::Done(generation, event)),
                Err(StreamSendError::Stream(detail)) => {
                    is_lost = true;
                    self.close();
                    tokio::time::sleep(LAST_WORD).await;
                    report(SenderReport::Lost(generation, self.explain(detail)));
                }
                Err(StreamSendError::Guest(error)) => {
                    report(SenderReport::GuestFailed(error));
                    // No other route helps.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Drops the streams. What they were still to carry is dirty.
    fn close(&mut self) {
        let outlets = std::mem::replace(&mut self.outlets, Outlets::Closed);
        if let Outlets::Links { pool, .. } = outlets {
            let (unfinished, rounds) = pool.unfinished();
            self.dirty.union(&unfinished);
            self.link_rounds = rounds;
        }
    }

    /// Has the next round open streams on another route. What the destination has not applied of
    /// the lost ones is dirty.
    fn reopen(&mut self, route: Route, applied: Vec<u64>) {
        self.close();
        self.route = route;
        if !self.route.are_links {
            self.dirty.union(&self.context.journal.lost(&applied));
            self.frames = applied;
        }
    }

    async fn round(&mut self, round: u32) -> Result<RoundSent, StreamSendError> {
        let left_out = self.leave_out().await?;
        let (mut sent, waited) = self.send_acknowledged(round, Follow::Rounds).await?;
        sent += left_out;
        self.collect()?;
        let (memory, disks) = self.dirty.words().split_at(self.context.memory_chunks);
        let count = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum();
        let (memory, disks): (u64, u64) = (count(memory), count(disks));
        Ok(RoundSent { dirty_disk_pages: disks, waited, ..round_sent(&sent, memory + disks) })
    }

    async fn final_round(&mut self, round: u32) -> Result<RoundSent, StreamSendError> {
        self.collect()?;
        let (sent, waited) = self.send_acknowledged(round, Follow::Nothing).await?;
        Ok(RoundSent { waited, ..round_sent(&sent, 0) })
    }

    /// Sends all pages of the dirty set to a destination that receives them. Returns how long that
    /// has waited for an acknowledgement.
    async fn send_acknowledged(
        &mut self,
        round: u32,
        follow: Follow,
    ) -> Result<(Transfer, Duration), StreamSendError> {
        let (began, before) = (Instant::now(), self.last_frames());
        let sent = self.send_dirty(round, follow).await?;
        // In the end the guest's state is sent beside the pages, even if there are none.
        let is_last = matches!(follow, Follow::Nothing);
        let mut needed = vec![false; self.route.connections.len()];
        needed[0] = is_last;
        for (stream, (last, before)) in self.last_frames().iter().zip(&before).enumerate() {
            let connection = stream % needed.len();
            needed[connection] |= last != before;
        }
        let waited = self.acknowledged(&needed, began).await?;
        Ok((sent, waited))
    }

    /// Waits until the destination has acknowledged something on each of the `needed` connections
    /// since `began`, or shortly before; returns how long. Of several links, one is enough: each of
    /// their pages is acknowledged, and the control stream moves to a link that works.
    async fn acknowledged(
        &self,
        needed: &[bool],
        began: Instant,
    ) -> Result<Duration, StreamSendError> {
        let are_enough = |alive: &[bool]| match self.route.are_links {
            true => !needed.contains(&true) || alive.contains(&true),
            false => needed.iter().zip(alive).all(|(needed, is)| !needed || *is),
        };
        acknowledged(&self.route.connections, are_enough, began).await
    }

    /// Returns the number of the last frame of each data stream.
    fn last_frames(&self) -> Vec<u64> {
        match &self.outlets {
            Outlets::Streams(senders) => senders.iter().map(StreamSender::last_frame).collect(),
            Outlets::Closed | Outlets::Links { .. } => self.frames.clone(),
        }
    }

    /// Before the first round, removes pages from the dirty set that are zero both here and at the
    /// destination, which count as sent, and pages that the guest has reported free.
    async fn leave_out(&mut self) -> Result<Transfer, StreamSendError> {
        if self.has_begun {
            return Ok(Transfer::default());
        }
        let (guest, mut dirty) = (Arc::clone(&self.context.guest), self.dirty.clone());
        // Finding a disk's holes may require reading it.
        let filtering = spawn_blocking(move || guest.leave_out(dirty.words_mut()).map(|()| dirty));
        let filtered = filtering.await.map_err(|error| StreamSendError::Guest(panicked(&error)))?;
        self.dirty = filtered.map_err(StreamSendError::Guest)?;
        let words = self.dirty.words();
        let zeros = |words: &[u64]| words.iter().map(|word| u64::from(word.count_zeros())).sum();
        let (memory, disks) = words.split_at(self.context.memory_chunks);
        let left_out = Transfer {
            zero_pages: zeros(memory),
            disk_zero_pages: zeros(disks),
            ..Transfer::default()
        };
        let hinted_pages = self.skip_hinted()?;
        let left_out = Transfer { hinted_pages, ..left_out };
        self.context.totals.add(&left_out);
        self.has_begun = true;
        Ok(left_out)
    }

    /// Omits pages that the guest has reported free and has not written since they were re-armed:
    /// they are zero at the destination. If the guest writes one later, the log shows it like any
    /// other page.
    fn skip_hinted(&mut self) -> Result<u64, StreamSendError> {
        let Some(hinted) = self.hints.take() else { return Ok(0) };
        let memory = self.context.memory_chunks;
        let count = |dirty: &PageSet| -> u64 {
            dirty.words()[..memory].iter().map(|word| u64::from(word.count_ones())).sum()
        };
        let before = count(&self.dirty);
        for (word, free) in self.dirty.words_mut()[..memory].iter_mut().zip(hinted.words()) {
            *word &= !free;
        }
        self.collect()?;
        Ok(before.saturating_sub(count(&self.dirty)))
    }

    async fn remainder(&mut self, round: u32) -> Result<FinalSent, StreamSendError> {
        let began = Instant::now();
        self.collect()?;
        let sent = self.send_dirty(round, Follow::Nothing).await?;
        self.end(round).await?;
        // The link may have died while the disks were flushed. Each stream's end is acknowledged.
        self.acknowledged(&vec![true; self.route.connections.len()], began).await?;
        let (pages, zero_pages) = (sent.pages(), sent.all_zero_pages());
        Ok(FinalSent { pages, zero_pages, wire_bytes: sent.wire_bytes })
    }

    /// Ends the streams while the guest runs. What is dirty or was not sent will be missing at the
    /// destination; from now on, the log shows the next write to it.
    async fn end_streams(&mut self) -> Result<PageSet, StreamSendError> {
        self.leave_out().await?;
        self.open().await?;
        self.end(0).await?;
        self.collect()?;
        let missing = self.dirty.take();
        let blocks = (0..).step_by(BLOCK_CHUNKS).zip(missing.words().chunks(BLOCK_CHUNKS));
        for (first, words) in blocks.filter(|(_, words)| words.iter().any(|word| *word != 0)) {
            self.context.guest.rearm_dirty(first, words).map_err(StreamSendError::Guest)?;
        }
        Ok(missing)
    }

    fn collect_missing(&mut self) -> Result<PageSet, StreamSendError> {
        self.collect()?;
        Ok(self.dirty.take())
    }

    fn collect(&mut self) -> Result<(), StreamSendError> {
        self.context.guest.collect_dirty(self.dirty.words_mut()).map_err(StreamSendError::Guest)
    }

    /// Sends all pages of the dirty set, and empties it. If rounds are to end meanwhile, or a
    /// stream fails, what was not sent stays in it.
    async fn send_dirty(
        &mut self,
        round: u32,
        follow: Follow,
    ) -> Result<Transfer, StreamSendError> {
        self.open().await?;
        let dirty = self.dirty.take();
        self.heat_up(&dirty);
        match &mut self.outlets {
            Outlets::Closed => Ok(Transfer::default()),
            Outlets::Links { pool, .. } => {
                let (sent, unsent) = pool.send(dirty).await?;
                self.dirty.union(&unsent);
                Ok(sent)
            }
            Outlets::Streams(senders) => {
                let round_bytes = match follow {
                    Follow::Rounds => dirty.count() * PAGE_BYTES as u64,
                    Follow::Nothing => u64::MAX,
                };
                let dirty = Arc::new(dirty);
                let before: Vec<_> = senders.iter().map(StreamSender::last_frame).collect();
                let sent = match &mut senders[..] {
                    [only] => only.send(round, &dirty, round_bytes).await,
                    _ => send_in_parallel(senders, (round, round_bytes), dirty.clone()).await,
                };
                if sent.is_err() || self.context.is_ending.load(Relaxed) {
                    self.dirty.union(&self.context.journal.unsent(&dirty, &before));
                }
                sent
            }
        }
    }

    /// Notes a round in which these pages are sent.
    fn heat_up(&self, dirty: &PageSet) {
        let mut heat = self.context.heat.lock().unwrap_or_else(PoisonError::into_inner);
        heat.begin_round(&dirty.words()[..self.context.memory_chunks]);
    }

    /// Ends all streams.
    async fn end(&mut self, round: u32) -> Result<(), StreamSendError> {
        match &mut self.outlets {
            Outlets::Closed => {}
            Outlets::Links { pool, .. } => pool.end().await?,
            Outlets::Streams(senders) => {
                for stream_sender in senders {
                    stream_sender.end(round).await?;
                }
            }
        }
        Ok(())
    }

    /// Opens the streams, unless that has been done.
    async fn open(&mut self) -> Result<(), StreamSendError> {
        if matches!(self.outlets, Outlets::Closed) {
            if self.route.connections.is_empty() {
                return Err(broken("the connection is lost"));
            }
            self.outlets = match self.route.are_links {
                true => self.open_on_links(),
                false => Outlets::Streams(self.open_streams().await?),
            };
        }
        Ok(())
    }

    /// Opens the data streams, stream `i` on connection `i % connections`.
    async fn open_streams(&self) -> Result<Vec<StreamSender>, StreamSendError> {
        let Route { connections, streams, .. } = &self.route;
        let mut senders = Vec::new();
        for index in 0..*streams {
            let connection = &connections[usize::from(index) % connections.len()];
            let mut stream = connection.open_uni().await.map_err(broken)?;
            let preamble = self.route.preamble(StreamRole::Data { stream: index });
            stream.write_all(&preamble.encode()).await.map_err(broken)?;
            let (context, connection) = (self.context.clone(), connection.clone());
            let before = self.frames.get(usize::from(index)).copied().unwrap_or(0);
            let place = (index, *streams);
            senders.push(StreamSender::new(context, connection, stream, place, before));
        }
        Ok(senders)
    }

    /// Opens a stream on each link, on which it sends what it takes of each round.
    fn open_on_links(&self) -> Outlets {
        let Route { connections, .. } = &self.route;
        let longest = connections.iter().map(Connection::min_rtt).max().unwrap_or_default();
        let pool = Arc::new(Pool::new(
            self.context.clone(),
            (connections.len(), self.link_rounds),
            longest,
        ));
        let mut running = JoinSet::new();
        for (link, connection) in connections.iter().enumerate() {
            let (pool, context) = (pool.clone(), self.context.clone());
            let (connection, preamble) =
                (connection.clone(), self.route.preamble(StreamRole::LinkPages));
            running.spawn(async move {
                let unless_it_panics = FinishedByPanic(&pool);
                let sent = send_on_link((context, &connection), preamble, (&pool, link)).await;
                drop(unless_it_panics);
                if let Err(StreamSendError::Stream(detail)) = &sent {
                    tracing::debug!(detail, "a link carries pages no longer");
                }
                pool.finished(sent);
            });
        }
        Outlets::Links { pool, _running: running }
    }

    fn explain(&self, detail: String) -> String {
        let closed = |connection: &&Connection| connection.close_reason().is_some();
        match self.route.connections.iter().find(closed) {
            Some(connection) => describe(connection, &self.route.name, &detail),
            None => detail,
        }
    }
}

/// Fails the round if the thread panics, which the panic handler reports: no other link knows what
/// is left to send.
struct FinishedByPanic<'a>(&'a Pool);

impl Drop for FinishedByPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = GuestError::new("a thread of the migration has panicked");
            self.0.finished(Err(StreamSendError::Guest(error)));
        }
    }
}

fn broken(error: impl std::fmt::Display) -> StreamSendError {
    StreamSendError::Stream(error.to_string())
}

/// Sends on one link what it takes of each round, until the streams are to end.
async fn send_on_link(
    (context, connection): (StreamContext, &Connection),
    preamble: Preamble,
    (pool, link): (&Pool, usize),
) -> Result<(), StreamSendError> {
    let (mut stream, acks) = connection.open_bi().await.map_err(broken)?;
    stream.write_all(&preamble.encode()).await.map_err(broken)?;
    let mut stream_sender = StreamSender::new(context, connection.clone(), stream, (0, 1), 0);
    tokio::select! {
        sent = stream_sender.send_shares(pool, link) => sent,
        error = take_acks(acks, pool) => Err(error),
    }
}

/// Takes acknowledgements until none can come any more.
async fn take_acks(mut from: RecvStream, pool: &Pool) -> StreamSendError {
    let mut bytes = [0; PAGE_ACK_BYTES];
    loop {
        if let Err(error) = from.read_exact(&mut bytes).await {
            return broken(error);
        }
        let PageAck { round, chunk } = PageAck::decode(bytes);
        pool.acknowledged(round, chunk);
    }
}

/// Sends each stream's share of the dirty pages in a task of its own.
async fn send_in_parallel(
    senders: &mut Vec<StreamSender>,
    (round, round_bytes): (u32, u64),
    dirty: Arc<PageSet>,
) -> Result<Transfer, StreamSendError> {
    let mut running = JoinSet::new();
    for (place, mut stream_sender) in senders.drain(..).enumerate() {
        let dirty = dirty.clone();
        running.spawn(async move {
            let sent = stream_sender.send(round, &dirty, round_bytes).await;
            (place, stream_sender, sent)
        });
    }
    let mut back = Vec::new();
    let mut total = Transfer::default();
    let mut failed = None;
    // To its end: what is not sent is counted next, so nothing may be sent any more.
    while let Some(joined) = running.join_next().await {
        let outcome = match joined {
            Ok((place, stream_sender, Ok(sent))) => {
                back.push((place, stream_sender));
                total += sent;
                continue;
            }
            Ok((_, _, Err(error))) => Some(error),
            Err(ended) if ended.is_cancelled() => None,
            Err(ended) => Some(StreamSendError::Guest(panicked(&ended))),
        };
        running.abort_all();
        // A guest that cannot be read comes first: another connection does not help.
        let is_first = failed.is_none() || matches!(outcome, Some(StreamSendError::Guest(_)));
        if is_first {
            failed = outcome.or(failed);
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    back.sort_unstable_by_key(|(place, _)| *place);
    senders.extend(back.into_iter().map(|(_, stream_sender)| stream_sender));
    Ok(total)
}

fn round_sent(sent: &Transfer, dirty_pages: u64) -> RoundSent {
    let (pages, zero_pages) = (sent.pages(), sent.all_zero_pages());
    let wire_bytes = sent.wire_bytes;
    RoundSent { pages, zero_pages, wire_bytes, dirty_pages, ..RoundSent::default() }
}
