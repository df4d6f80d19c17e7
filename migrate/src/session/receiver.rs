//! Applies the data streams to the guest's memory and disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{ReadError, ReadExactError, RecvStream, SendStream};
use tokio::task::spawn_blocking;

use super::stream_sender::STOPPED;
use super::totals::Totals;
use super::turns::Turns;
use super::written::Written;
use crate::destination::Event;
use crate::guest::{DestinationGuest, GuestError};
use crate::memory::{CHUNK_BYTES, PAGE_BYTES};
use crate::pages::{Decoder, Encoding, FrameError, FrameHeader, FrameKind, HEADER_BYTES, runs};
use crate::progress::Transfer;
use crate::protocol::page_ack::PageAck;
use crate::protocol::{FEATURE_LZ4, Features};

/// The chunks of a guest, and how they are distributed over the streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// Number of memory chunks, which come first.
    pub(super) memory_chunks: usize,
    /// Number of all chunks, including those of disks.
    pub(super) chunks: usize,
    /// Number of data streams.
    pub(super) streams: u16,
}

/// The guest's memory and disks, shared by all streams.
pub(super) struct Memory {
    guest: Arc<dyn DestinationGuest>,
    /// Pages that have content by now; only among these does a zero page have to be zeroed.
    written: Written,
    space: Space,
    features: Features,
    totals: Arc<Totals>,
    /// For each data stream, how many frames have been applied, of all that had its number; for the
    /// first one, those of several links.
    applied: Vec<AtomicU64>,
    /// The order of frames that come over several links.
    turns: Turns,
}

/// Why a stream cannot continue.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("data stream {stream} carries chunk {chunk}, which belongs to stream {owner}")]
    WrongStream { stream: u16, chunk: u64, owner: u64 },
    #[error("data stream {stream} carries lz4, which was not agreed on")]
    NotAgreed { stream: u16 },
    #[error("a link ended after {frames} frames, {announced} were sent")]
    Miscounted { frames: u64, announced: u64 },
    #[error("data stream {stream} ended after {frames} frames, without its end marker")]
    Truncated { stream: u16, frames: u64 },
    #[error("data stream {stream} goes on after its end marker")]
    Overlong { stream: u16 },
    /// The connection broke, or the source stopped sending: the control stream reports both.
    #[error("told elsewhere")]
    Elsewhere,
}

impl Memory {
    pub(super) fn new(
        guest: Arc<dyn DestinationGuest>,
        space: Space,
        features: Features,
        totals: Arc<Totals>,
    ) -> Self {
        let written = Written::new(space.chunks);
        let turns = Turns::new(space.chunks);
        let applied = (0..space.streams).map(|_| AtomicU64::new(0)).collect();
        Self { guest, written, space, features, totals, applied, turns }
    }

    /// Returns how many frames of each data stream have been applied so far.
    pub(super) fn applied(&self) -> Vec<u64> {
        self.applied.iter().map(|frames| frames.load(Ordering::Acquire)).collect()
    }

    /// Counts a frame of this data stream that has been applied; of several links, or was not
    /// needed.
    fn count(&self, stream: u16) {
        if let Some(applied) = self.applied.get(usize::from(stream)) {
            applied.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns the number of data streams.
    pub(super) fn streams(&self) -> u16 {
        self.space.streams
    }

    /// Writes the pages of one frame; `content` holds those that are not zero.
    fn apply(&self, header: &FrameHeader, content: &[u8]) -> Result<(), GuestError> {
        // The header was checked against the number of chunks.
        let chunk = header.chunk as usize;
        let before = self.written.of(chunk);
        let stale = header.zero & before;
        if stale != 0 {
            self.guest.zero(chunk, stale)?;
        }
        let mut rest = content;
        for run in runs(header.carried()) {
            let (data, after) = rest.split_at(run.count * PAGE_BYTES);
            self.guest.copy_in(chunk, run.first, data)?;
            rest = after;
        }
        // No other task changes this word: one stream carries all frames of a chunk, and has ended
        // before another one with its number comes; or, of several links, one brings it in each
        // round.
        self.written.set(chunk, (before | header.carried()) & !stale);
        Ok(())
    }

    fn is_of_disk(&self, header: &FrameHeader) -> bool {
        header.kind != FrameKind::End && header.chunk >= self.space.memory_chunks as u64
    }
}

/// The current frame of a stream, and the buffers to decode it.
struct Frame {
    stream: u16,
    /// Whether the stream is one of several links, which carry all chunks.
    is_link: bool,
    head: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    decoder: Decoder,
}

impl Frame {
    fn of(stream: u16) -> Self {
        let (head, payload) = ([0; HEADER_BYTES], vec![0; CHUNK_BYTES]);
        Self { stream, is_link: false, head, payload, decoder: Decoder::new() }
    }

    /// Checks the frame, and writes its pages.
    fn apply(&mut self, memory: &Memory, header: &FrameHeader) -> Result<(), ReceiveError> {
        let payload = &self.payload[..header.payload_bytes as usize];
        let content = self.decoder.decode(header, &self.head, payload)?;
        if header.kind == FrameKind::End {
            return Ok(());
        }
        if !self.is_link {
            check_place(memory, self.stream, header)?;
        }
        check_encoding(memory, self.stream, header)?;
        Ok(memory.apply(header, content)?)
    }

    /// Writes the pages of the frame where that may take long: see [`Frame::apply_elsewhere`].
    async fn apply_anywhere(
        mut self,
        memory: &Arc<Memory>,
        header: FrameHeader,
    ) -> Result<Self, ReceiveError> {
        let is_of_disk = memory.is_of_disk(&header);
        if is_of_disk {
            self = self.apply_elsewhere(memory, header).await?;
        } else {
            self.apply(memory, &header)?;
        }
        if header.kind != FrameKind::End {
            let applied = counted(&header);
            memory.totals.add(&if is_of_disk { applied.of_disk() } else { applied });
        }
        Ok(self)
    }

    /// As [`Frame::apply`], but on another thread, since a disk may be slow: the runtime has one
    /// thread, and a connection that is silent for several seconds is dropped.
    async fn apply_elsewhere(
        mut self,
        memory: &Arc<Memory>,
        header: FrameHeader,
    ) -> Result<Self, ReceiveError> {
        let memory = Arc::clone(memory);
        let applied = spawn_blocking(move || self.apply(&memory, &header).map(|()| self)).await;
        // A panic there has already been reported by the panic handler.
        applied.map_err(|error| GuestError::new(error.to_string()))?
    }
}

/// Applies one data stream to its end; returns the event to report to the machine, if any.
pub(super) async fn receive(
    memory: Arc<Memory>,
    stream: u16,
    mut from: RecvStream,
) -> Option<Event> {
    match receive_all(&memory, stream, &mut from).await {
        Ok((announced, applied)) => Some(Event::StreamEnded { stream, announced, applied }),
        Err(ReceiveError::Elsewhere) => None,
        Err(error) => Some(Event::DataFailed { detail: error.to_string().as_str().into() }),
    }
}

async fn receive_all(
    memory: &Arc<Memory>,
    stream: u16,
    from: &mut RecvStream,
) -> Result<(u64, u64), ReceiveError> {
    let mut frame = Frame::of(stream);
    let mut frames = 0;
    loop {
        fill(from, &mut frame.head, stream, frames).await?;
        let header = FrameHeader::decode(&frame.head, memory.space.chunks as u64)?;
        let payload = &mut frame.payload[..header.payload_bytes as usize];
        fill(from, payload, stream, frames).await?;
        frame = frame.apply_anywhere(memory, header).await?;
        if header.kind == FrameKind::End {
            expect_end(from, stream).await?;
            return Ok((header.chunk, frames));
        }
        frames += 1;
        memory.count(stream);
    }
}

/// Applies what one of several links carries to its end; returns the event to report to the
/// machine, if any. For the machine all of them are data stream 0, which ends when the first does:
/// whatever was sent has then been acknowledged.
pub(super) async fn receive_on_link(
    memory: Arc<Memory>,
    (mut acks, mut from): (SendStream, RecvStream),
) -> Option<Event> {
    match receive_shares(&memory, &mut from, &mut acks).await {
        Ok(frames) => {
            let is_first = memory.turns.end().await;
            let (announced, applied) = (frames, frames);
            is_first.then_some(Event::StreamEnded { stream: 0, announced, applied })
        }
        Err(ReceiveError::Elsewhere) => None,
        Err(error) => Some(Event::DataFailed { detail: error.to_string().as_str().into() }),
    }
}

async fn receive_shares(
    memory: &Arc<Memory>,
    from: &mut RecvStream,
    acks: &mut SendStream,
) -> Result<u64, ReceiveError> {
    let mut frame = Frame { is_link: true, ..Frame::of(0) };
    let mut frames = 0;
    loop {
        fill(from, &mut frame.head, 0, frames).await?;
        let header = FrameHeader::decode(&frame.head, memory.space.chunks as u64)?;
        let payload = &mut frame.payload[..header.payload_bytes as usize];
        fill(from, payload, 0, frames).await?;
        if header.kind == FrameKind::End {
            frame.apply(memory, &header)?;
            expect_end(from, 0).await?;
            if header.chunk != frames {
                return Err(ReceiveError::Miscounted { frames, announced: header.chunk });
            }
            return Ok(frames);
        }
        // The header was checked against the number of chunks.
        if let Some(_turn) = memory.turns.enter(header.round, header.chunk as usize).await {
            frame = frame.apply_anywhere(memory, header).await?;
        }
        frames += 1;
        memory.count(0);
        let ack = PageAck { round: header.round, chunk: header.chunk };
        // A source that reads acknowledgements no longer has ended the stream: what is still on its
        // way are copies of what another link has brought, and the end.
        let _unread = acks.write_all(&ack.encode()).await;
    }
}

fn check_place(memory: &Memory, stream: u16, header: &FrameHeader) -> Result<(), ReceiveError> {
    let owner = header.chunk % u64::from(memory.space.streams);
    if owner != u64::from(stream) {
        return Err(ReceiveError::WrongStream { stream, chunk: header.chunk, owner });
    }
    Ok(())
}

fn check_encoding(memory: &Memory, stream: u16, header: &FrameHeader) -> Result<(), ReceiveError> {
    match header.encoding {
        Encoding::Lz4 if !memory.features.has(FEATURE_LZ4) => {
            Err(ReceiveError::NotAgreed { stream })
        }
        Encoding::Raw | Encoding::Lz4 => Ok(()),
    }
}

async fn fill(
    from: &mut RecvStream,
    bytes: &mut [u8],
    stream: u16,
    frames: u64,
) -> Result<(), ReceiveError> {
    from.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => ReceiveError::Truncated { stream, frames },
        ReadExactError::ReadError(ReadError::Reset(code)) if code == STOPPED.into() => {
            ReceiveError::Elsewhere
        }
        ReadExactError::ReadError(ReadError::ConnectionLost(_)) => ReceiveError::Elsewhere,
        ReadExactError::ReadError(_) => ReceiveError::Truncated { stream, frames },
    })
}

/// Fails if anything follows the end marker.
async fn expect_end(from: &mut RecvStream, stream: u16) -> Result<(), ReceiveError> {
    match from.read_exact(&mut [0]).await {
        Ok(()) => Err(ReceiveError::Overlong { stream }),
        Err(ReadExactError::FinishedEarly(_)) => Ok(()),
        Err(ReadExactError::ReadError(_)) => Err(ReceiveError::Elsewhere),
    }
}

pub(super) fn counted(header: &FrameHeader) -> Transfer {
    let wire_bytes = HEADER_BYTES as u64 + u64::from(header.payload_bytes);
    let carried = u64::from(header.carried().count_ones());
    let zero_pages = u64::from(header.zero.count_ones());
    let frame = Transfer { wire_bytes, frames: 1, zero_pages, ..Transfer::default() };
    match header.encoding {
        Encoding::Raw => Transfer { raw_pages: carried, ..frame },
        Encoding::Lz4 => Transfer { lz4_pages: carried, lz4_bytes: wire_bytes, ..frame },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::pages::{BufferPool, Compression, Encoder, Position, WireRate};
    use crate::protocol::page_ack::PAGE_ACK_BYTES;
    use crate::quic::pair::{Ending, Pair};

    const SPACE: Space = Space { memory_chunks: 1, chunks: 2, streams: 2 };

    /// A guest of two chunks, the second of a disk, that records which pages were written and
    /// zeroed.
    #[derive(Default)]
    struct Notes(Mutex<Vec<(usize, u64, &'static str)>>);

    impl DestinationGuest for Notes {
        fn copy_in(&self, chunk: usize, first: usize, data: &[u8]) -> Result<(), GuestError> {
            let pages = ((1_u64 << (data.len() / PAGE_BYTES)) - 1) << first;
            self.0.lock().unwrap().push((chunk, pages, "copy"));
            Ok(())
        }
        fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
            self.0.lock().unwrap().push((chunk, mask, "zero"));
            Ok(())
        }
        fn load_state(&self, _: &[u8]) -> Result<(), GuestError> {
            Ok(())
        }
        fn adopt(&self) -> Result<(), GuestError> {
            Ok(())
        }
        fn resume(&self) -> Result<(), GuestError> {
            Ok(())
        }
    }

    /// Returns the frames of a source: pages filled with this byte, of this chunk.
    fn frames(list: &[(u64, u64, u8)], end: Option<u64>, compression: Compression) -> Vec<u8> {
        let (mut batch, mut encoder) = (BufferPool::new().batch(), Encoder::new(compression));
        for &(chunk, pages, fill) in list {
            let position = Position { round: 1, chunk, pages };
            let wire = WireRate::default();
            let copied = encoder.encode::<()>(&mut batch, position, &wire, |_, out| {
                out.fill(fill);
                Ok(())
            });
            copied.unwrap();
        }
        if let Some(announced) = end {
            encoder.end(&mut batch, 1, announced);
        }
        batch.into_bytes().to_vec()
    }

    async fn received(
        bytes: &[u8],
        ending: Ending,
        features: Features,
    ) -> (Option<Event>, Arc<Notes>) {
        let notes = Arc::new(Notes::default());
        let memory = Memory::new(notes.clone(), SPACE, features, Arc::default());
        let pair = Pair::new().await;
        let stream = pair.incoming(bytes, ending).await;
        (receive(Arc::new(memory), 0, stream).await, notes)
    }

    async fn failure(bytes: &[u8]) -> String {
        match received(bytes, Ending::Finish, FEATURE_LZ4).await.0 {
            Some(Event::DataFailed { detail }) => detail.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_page_is_zeroed_only_if_it_was_written_before() {
        let list = [(0, 0b11, 0), (0, 0b110, 7), (0, 0b111, 0)];
        let bytes = frames(&list, Some(3), Compression::Off);
        let (event, notes) = received(&bytes, Ending::Finish, FEATURE_LZ4).await;
        assert_eq!(event, Some(Event::StreamEnded { stream: 0, announced: 3, applied: 3 }));
        let seen = notes.0.lock().unwrap();
        assert_eq!(*seen, [(0, 0b110, "copy"), (0, 0b110, "zero")]);
    }

    /// A disk that finishes a write when the test says so.
    struct Slow(Mutex<std::sync::mpsc::Receiver<()>>, tokio::sync::Notify);

    impl DestinationGuest for Slow {
        fn copy_in(&self, _: usize, _: usize, _: &[u8]) -> Result<(), GuestError> {
            self.1.notify_one();
            let reported = self.0.lock().unwrap().recv_timeout(std::time::Duration::from_secs(10));
            reported.map_err(|_| GuestError::new("the runtime waits for the disk"))
        }
        fn zero(&self, _: usize, _: u64) -> Result<(), GuestError> {
            Ok(())
        }
        fn load_state(&self, _: &[u8]) -> Result<(), GuestError> {
            Ok(())
        }
        fn adopt(&self) -> Result<(), GuestError> {
            Ok(())
        }
        fn resume(&self) -> Result<(), GuestError> {
            Ok(())
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_disk_blocks_only_its_own_stream() {
        let (done, inbox) = std::sync::mpsc::channel();
        let guest = Arc::new(Slow(Mutex::new(inbox), tokio::sync::Notify::new()));
        let memory = Memory::new(guest.clone(), SPACE, FEATURE_LZ4, Arc::default());
        let pair = Pair::new().await;
        let bytes = frames(&[(1, 1, 7)], Some(1), Compression::Off);
        let stream = pair.incoming(&bytes, Ending::Finish).await;
        let meanwhile = async {
            guest.1.notified().await;
            done.send(()).unwrap();
        };
        let (event, ()) = tokio::join!(receive(Arc::new(memory), 1, stream), meanwhile);
        assert_eq!(event, Some(Event::StreamEnded { stream: 1, announced: 1, applied: 1 }));
    }

    #[tokio::test]
    async fn a_stream_without_its_end_marker_is_refused() {
        let bytes = frames(&[(0, 1, 7)], None, Compression::Off);
        for length in [0, 20, HEADER_BYTES, bytes.len() - 1, bytes.len()] {
            let message = failure(&bytes[..length]).await;
            assert!(message.contains("without its end marker"), "{length}: {message}");
        }
    }

    #[tokio::test]
    async fn bytes_after_the_end_marker_are_refused() {
        let mut bytes = frames(&[(0, 1, 7)], Some(1), Compression::Off);
        bytes.push(0);
        assert!(failure(&bytes).await.contains("goes on after its end marker"));
    }

    #[tokio::test]
    async fn a_chunk_of_another_stream_or_outside_memory_is_refused() {
        let message = failure(&frames(&[(1, 1, 7)], Some(1), Compression::Off)).await;
        assert!(message.contains("belongs to stream 1"), "{message}");
        let message = failure(&frames(&[(2, 1, 7)], Some(1), Compression::Off)).await;
        assert!(message.contains("the guest has 2"), "{message}");
    }

    /// Returns what one of several links reports that carries these bytes, the chunks that it
    /// acknowledges, and the guest.
    async fn received_on_link(bytes: &[u8]) -> (Option<Event>, Vec<u64>, Arc<Notes>) {
        let notes = Arc::new(Notes::default());
        let memory = Memory::new(notes.clone(), SPACE, FEATURE_LZ4, Arc::default());
        let pair = Pair::new().await;
        let (mut send, mut acks) = pair.near.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let stream = pair.far.accept_bi().await.unwrap();
        let event = receive_on_link(Arc::new(memory), stream).await;
        let acks = acks.read_to_end(1 << 10).await.unwrap();
        let decode = |bytes: &[u8]| PageAck::decode(bytes.try_into().unwrap());
        let acks: Vec<_> = acks.chunks(PAGE_ACK_BYTES).map(decode).collect();
        assert!(acks.iter().all(|ack| ack.round == 1), "{acks:?}");
        (event, acks.iter().map(|ack| ack.chunk).collect(), notes)
    }

    #[tokio::test]
    async fn a_link_carries_any_chunk_and_of_several_copies_in_a_round_the_first_is_applied() {
        let bytes = frames(&[(1, 1, 7), (0, 1, 7), (1, 0b11, 8)], Some(3), Compression::Off);
        let (event, acknowledged, notes) = received_on_link(&bytes).await;
        assert_eq!(event, Some(Event::StreamEnded { stream: 0, announced: 3, applied: 3 }));
        assert_eq!(acknowledged, [1, 0, 1]);
        assert_eq!(*notes.0.lock().unwrap(), [(1, 1, "copy"), (0, 1, "copy")]);
    }

    #[tokio::test]
    async fn a_link_ends_whose_acknowledgements_are_read_no_longer() {
        let memory = Memory::new(Arc::new(Notes::default()), SPACE, FEATURE_LZ4, Arc::default());
        let pair = Pair::new().await;
        let (mut send, mut acks) = pair.near.open_bi().await.unwrap();
        let bytes = frames(&[(1, 1, 7), (0, 1, 7)], Some(2), Compression::Off);
        let (first, rest) = bytes.split_at(HEADER_BYTES);
        send.write_all(first).await.unwrap();
        let (back, stream) = pair.far.accept_bi().await.unwrap();
        acks.stop(STOPPED.into()).unwrap();
        back.stopped().await.unwrap();
        send.write_all(rest).await.unwrap();
        send.finish().unwrap();
        let event = receive_on_link(Arc::new(memory), (back, stream)).await;
        assert_eq!(event, Some(Event::StreamEnded { stream: 0, announced: 2, applied: 2 }));
    }

    #[tokio::test]
    async fn a_link_that_does_not_carry_what_it_counts_is_refused() {
        let bytes = frames(&[(1, 1, 7)], Some(2), Compression::Off);
        let (event, acknowledged, _) = received_on_link(&bytes).await;
        let Some(Event::DataFailed { detail }) = event else { panic!("{event:?}") };
        assert!(detail.to_string().contains("1 frames, 2 were sent"), "{detail}");
        assert_eq!(acknowledged, [1]);
    }

    #[tokio::test]
    async fn a_damaged_frame_on_a_link_is_refused_and_not_acknowledged() {
        let mut bytes = frames(&[(0, 0b11, 7)], Some(1), Compression::Off);
        bytes[HEADER_BYTES + 5000] ^= 1;
        let (event, acknowledged, notes) = received_on_link(&bytes).await;
        assert!(matches!(event, Some(Event::DataFailed { .. })), "{event:?}");
        assert!(acknowledged.is_empty() && notes.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn compression_that_was_not_agreed_on_is_refused() {
        let bytes = frames(&[(0, 0b11, 7)], Some(1), Compression::Lz4);
        let (event, notes) = received(&bytes, Ending::Finish, Features::default()).await;
        assert!(matches!(event, Some(Event::DataFailed { .. })), "{event:?}");
        assert!(notes.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn nothing_of_a_damaged_frame_touches_memory() {
        let mut bytes = frames(&[(0, 0b11, 7)], Some(1), Compression::Off);
        bytes[HEADER_BYTES + 5000] ^= 1;
        let (event, notes) = received(&bytes, Ending::Finish, FEATURE_LZ4).await;
        assert!(matches!(event, Some(Event::DataFailed { .. })), "{event:?}");
        assert!(notes.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_stream_stopped_by_the_source_is_not_reported_as_damaged() {
        let bytes = frames(&[(0, 1, 7)], None, Compression::Off);
        assert_eq!(received(&bytes, Ending::Reset(STOPPED), FEATURE_LZ4).await.0, None);
    }
}
