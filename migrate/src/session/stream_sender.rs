//! Sends one data stream's share of the dirty pages.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use quinn::{Connection, SendStream};
use tokio::task::{JoinError, spawn_blocking, yield_now};
use tokio::time::{Instant, sleep};

use super::heat::Heat;
use super::journal::Journal;
use super::limiter::Limiter;
use super::links::Links;
use super::pool::{Pool, REPEAT_AFTER, Share};
use super::totals::Totals;
use crate::failpoint::{Failpoints, Passage};
use crate::guest::{GuestError, SourceGuest};
use crate::memory::{CHUNK_BYTES, PAGE_BYTES, PageSet};
use crate::pages::{Batch, BufferPool, Compression, Encoder, Position, WireRate, runs};
use crate::progress::Transfer;
use crate::quic::transport::send_window;

/// Chunks re-armed at once, right before they are copied: 16 MiB. With larger blocks the guest
/// writes more pages between re-arming and copying, which are then sent twice; smaller ones take
/// more calls.
const BLOCK_CHUNKS: usize = 64;
/// Approximate number of bytes handed to the transport at once.
const BATCH_GOAL: usize = 128 << 10;
/// Reset code of a stream that is no longer wanted.
pub(super) const STOPPED: u32 = 1;

/// Why pages could not be sent.
#[derive(Debug)]
pub(super) enum StreamSendError {
    Guest(GuestError),
    Stream(String),
}

/// The error for a thread that has panicked, which the panic handler has reported: what it had to
/// send is lost, so no other connection helps.
pub(super) fn panicked(error: &JoinError) -> GuestError {
    GuestError::new(error.to_string())
}

/// What all data streams of a migration share.
#[derive(Clone)]
pub(super) struct StreamContext {
    pub(super) guest: Arc<dyn SourceGuest>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) totals: Arc<Totals>,
    pub(super) pool: BufferPool,
    pub(super) compression: Compression,
    pub(super) failpoints: Failpoints,
    /// Number of memory chunks; the chunks after them belong to disks.
    pub(super) memory_chunks: usize,
    /// Set when rounds are to end: what they have not sent by then follows the guest.
    pub(super) is_ending: Arc<AtomicBool>,
    /// In which rounds each chunk of memory was sent.
    pub(super) heat: Arc<Mutex<Heat>>,
    /// What each of several links carries.
    pub(super) links: Arc<Links>,
    /// What the data streams have carried.
    pub(super) journal: Arc<Journal>,
}

/// One data stream, and the state needed to fill it.
pub(super) struct StreamSender {
    context: StreamContext,
    connection: Connection,
    stream: Owned,
    /// This stream carries the chunks with `chunk % streams == index`.
    index: usize,
    streams: usize,
    encoder: Encoder,
    wire: WireRate,
    batch: Batch,
    frames: u64,
    /// Frames of earlier streams with this number that the destination has applied.
    frames_before: u64,
    /// Bytes that the current round is about to send at most.
    round_bytes: u64,
    /// Buffer for a chunk of a disk, allocated with the first one.
    content: Vec<u8>,
}

impl StreamSender {
    pub(super) fn new(
        context: StreamContext,
        connection: Connection,
        stream: SendStream,
        (index, streams): (u16, u16),
        frames_before: u64,
    ) -> Self {
        let encoder = Encoder::new(context.compression);
        let batch = context.pool.batch();
        Self {
            context,
            connection,
            stream: Owned::new(stream),
            index: index.into(),
            streams: streams.into(),
            encoder,
            wire: WireRate::default(),
            batch,
            frames: 0,
            frames_before,
            round_bytes: u64::MAX,
            content: Vec::new(),
        }
    }

    /// Sends this stream's share of `dirty`, or less if rounds are to end meanwhile; returns what
    /// was sent. The transport queues what suits a round of `round_bytes` on all streams together.
    pub(super) async fn send(
        &mut self,
        round: u32,
        dirty: &PageSet,
        round_bytes: u64,
    ) -> Result<Transfer, StreamSendError> {
        let mut sent = Transfer::default();
        self.wire.paused();
        self.round_bytes = round_bytes / self.streams as u64;
        self.fit_queue();
        'blocks: for (block, words) in dirty.words().chunks(BLOCK_CHUNKS).enumerate() {
            let first = block * BLOCK_CHUNKS;
            let share = self.share(first, words);
            let Some((from, to)) = span(&share) else { continue };
            let rearmed = self.context.guest.rearm_dirty(first + from, &share[from..to]);
            rearmed.map_err(StreamSendError::Guest)?;
            for (offset, &pages) in share[from..to].iter().enumerate().filter(|word| *word.1 != 0) {
                let chunk = first + from + offset;
                if self.context.is_ending.load(Relaxed) {
                    break 'blocks;
                }
                self.send_chunk(round, (chunk, pages), &mut sent).await?;
            }
            // Zero pages fill no buffer, so without this no other task would run on this thread.
            yield_now().await;
        }
        self.flush("pages").await?;
        Ok(sent)
    }

    /// Sends what `pool` hands out to this link, until the streams are to end, and ends this one.
    pub(super) async fn send_shares(
        &mut self,
        pool: &Pool,
        link: usize,
    ) -> Result<(), StreamSendError> {
        loop {
            let changed = pool.changed();
            match pool.take(link)? {
                Share::Chunks(round, chunks) => {
                    let mut sent = Transfer::default();
                    for chunk in chunks {
                        self.send_chunk(round, chunk, &mut sent).await?;
                    }
                    pool.count(sent);
                    // Zero pages fill no buffer, so without this no other task would run.
                    yield_now().await;
                }
                Share::Nothing if !self.batch.is_empty() => self.flush("pages").await?,
                Share::Nothing => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep(REPEAT_AFTER) => {}
                    }
                    self.wire.paused();
                }
                Share::End(round) => return self.end(round).await,
            }
        }
    }

    /// Adds these pages of a chunk to the batch, and hands it on if it is full.
    async fn send_chunk(
        &mut self,
        round: u32,
        (chunk, pages): (usize, u64),
        sent: &mut Transfer,
    ) -> Result<(), StreamSendError> {
        if chunk >= self.context.memory_chunks {
            self.read(chunk, pages).await?;
        }
        self.encode(Position { round, chunk: chunk as u64, pages }, sent)?;
        if self.batch.len() >= BATCH_GOAL || !self.batch.has_room() {
            self.flush("pages").await?;
        }
        Ok(())
    }

    /// Returns the number of the last frame, among all of streams with this number.
    pub(super) fn last_frame(&self) -> u64 {
        self.frames_before.saturating_add(self.frames)
    }

    /// Ends the stream.
    pub(super) async fn end(&mut self, round: u32) -> Result<(), StreamSendError> {
        self.encoder.end(&mut self.batch, round, self.frames);
        self.flush("end").await?;
        self.stream.end().map_err(|error| StreamSendError::Stream(error.to_string()))
    }

    /// Returns the words of a block, with the chunks of other streams cleared.
    fn share(&self, first: usize, words: &[u64]) -> [u64; BLOCK_CHUNKS] {
        let mut share = [0; BLOCK_CHUNKS];
        for (offset, &word) in words.iter().enumerate() {
            if (first + offset) % self.streams == self.index {
                share[offset] = word;
            }
        }
        share
    }

    /// Reads these pages of a disk, on a thread that may block.
    async fn read(&mut self, chunk: usize, pages: u64) -> Result<(), StreamSendError> {
        let guest = Arc::clone(&self.context.guest);
        let mut content = std::mem::take(&mut self.content);
        let reading = spawn_blocking(move || {
            content.resize(CHUNK_BYTES, 0);
            for run in runs(pages) {
                let place = &mut content[run.first * PAGE_BYTES..][..run.count * PAGE_BYTES];
                guest.copy_out(chunk, run.first, place)?;
            }
            Ok(content)
        });
        let read = reading.await.map_err(|error| StreamSendError::Guest(panicked(&error)))?;
        self.content = read.map_err(StreamSendError::Guest)?;
        Ok(())
    }

    fn encode(&mut self, position: Position, sent: &mut Transfer) -> Result<(), StreamSendError> {
        let guest = &self.context.guest;
        let chunk = position.chunk as usize;
        let is_of_disk = chunk >= self.context.memory_chunks;
        let content = &self.content;
        let copy = |first: usize, out: &mut [u8]| {
            if is_of_disk {
                out.copy_from_slice(&content[first * PAGE_BYTES..][..out.len()]);
                return Ok(());
            }
            guest.copy_out(chunk, first, out)
        };
        let frame = self.encoder.encode(&mut self.batch, position, &self.wire, copy);
        let frame = frame.map_err(StreamSendError::Guest)?;
        let frame = if is_of_disk { frame.of_disk() } else { frame };
        self.frames += 1;
        self.context.journal.note(chunk, position.pages, self.last_frame());
        self.context.totals.add(&frame);
        *sent += frame;
        Ok(())
    }

    /// Hands the frames gathered so far to the transport.
    async fn flush(&mut self, kind: &str) -> Result<(), StreamSendError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::replace(&mut self.batch, self.context.pool.batch());
        match self.context.failpoints.reach("source.data", kind) {
            Passage::Go => {}
            Passage::Cut => self.connection.close(STOPPED.into(), b"failpoint"),
            Passage::Hold => {
                let lost = self.connection.closed().await;
                return Err(StreamSendError::Stream(lost.to_string()));
            }
            Passage::Flip => batch.damage(),
        }
        let bytes = batch.into_bytes();
        let length = bytes.len();
        let asked = Instant::now();
        self.context.limiter.take(length).await;
        let written = self.stream.stream.write_chunk(bytes).await;
        written.map_err(|error| StreamSendError::Stream(error.to_string()))?;
        self.context.links.count(self.connection.remote_address().ip(), length);
        let now = Instant::now();
        if self.wire.wrote(length as u64, now - asked, now.into_std()).is_some() {
            self.fit_queue();
        }
        Ok(())
    }

    /// Lets the transport queue what suits the link and the round, once the link's rate is known.
    fn fit_queue(&self) {
        let Some(rate) = self.wire.bytes_per_second() else { return };
        let window = send_window(rate, self.connection.min_rtt(), self.round_bytes);
        self.connection.set_send_window(window);
    }
}

/// Returns the range from the first to the last word that is not zero.
fn span(words: &[u64]) -> Option<(usize, usize)> {
    let from = words.iter().position(|&word| word != 0)?;
    let to = words.iter().rposition(|&word| word != 0)?;
    Some((from, to + 1))
}

/// A stream that is reset if dropped before its end, so that it does not look complete.
pub(super) struct Owned {
    pub(super) stream: SendStream,
    ended: bool,
}

impl Owned {
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream, ended: false }
    }

    pub(super) fn end(&mut self) -> Result<(), quinn::ClosedStream> {
        self.stream.finish()?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stream.reset(STOPPED.into());
        }
    }
}
