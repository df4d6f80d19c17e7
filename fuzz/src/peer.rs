//! The other host of a migration, and clients of the node.

use arbitrary::{Arbitrary, Unstructured};
use migrate::memory::CHUNK_BYTES;
use migrate::pages::{Decoder, FrameHeader, FrameKind, HEADER_BYTES};
use migrate::protocol::codec::{self, HEAD_BYTES, Message};
use migrate::protocol::front::{FrontReply, FrontRequest};
use migrate::protocol::{DestinationMessage, SourceMessage};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Number of chunks of the guest that page frames are for.
const CHUNKS: u64 = 1024;
/// Offset of the checksum in a page frame's header.
const CHECKSUM_AT: usize = 40;

/// The content of a data stream.
#[derive(Debug, Arbitrary)]
pub struct PageStream {
    #[arbitrary(with = crate::all)]
    frames: Vec<PageFrame>,
}

/// A page frame with arbitrary fields, or with those that a compliant peer would send.
#[derive(Debug, Arbitrary)]
struct PageFrame {
    head: [u8; HEADER_BYTES],
    /// Whether magic, version and reserved bytes are valid.
    is_frame: bool,
    pages: u64,
    zero: u64,
    content: Content,
}

#[derive(Debug, Arbitrary)]
enum Content {
    AsIs(Vec<u8>),
    /// A repeated byte, compressed to the size that the header announces.
    Compressed(u8, [u8; 4]),
    /// Whole pages.
    Raw(u8),
}

impl PageFrame {
    fn bytes(&self) -> ([u8; HEADER_BYTES], Vec<u8>) {
        let mut head = self.head;
        let carried = (self.pages & !self.zero).count_ones() as usize * 4096;
        let payload = match &self.content {
            Content::AsIs(bytes) => bytes.clone(),
            Content::Raw(byte) => vec![*byte; carried],
            Content::Compressed(seed, text) => {
                let words =
                    (0..carried / 4).flat_map(|at| text.map(|byte| byte ^ (at as u8 & seed)));
                lz4_flex::block::compress(&words.collect::<Vec<u8>>())
            }
        };
        if self.is_frame {
            // The layout of `migrate::pages::header`; only the magic is copied from a valid frame.
            let mut good = [0; HEADER_BYTES];
            FrameHeader::end(0, 0).encode(&[], &mut good);
            head[..4].copy_from_slice(&good[..4]);
            (head[4], head[5]) = (head[4] % 2 + 1, head[5] % 2);
            head[6..8].fill(0);
            head[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            head[17..24].fill(0);
            head[24..32].copy_from_slice(&self.pages.to_le_bytes());
            head[32..40].copy_from_slice(&(self.pages & self.zero).to_le_bytes());
        }
        let sum = xxh3_64_with_seed(&payload, xxh3_64(&head[..CHECKSUM_AT]));
        head[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
        (head, payload)
    }
}

/// Reads page frames with one decoder, as on a stream; returns how many were valid.
///
/// # Panics
/// If the decoder accepts a frame that it must not.
pub fn pages(stream: &PageStream) -> u64 {
    let mut decoder = Decoder::new();
    let mut whole = 0;
    for frame in &stream.frames {
        let (head, payload) = frame.bytes();
        let Ok(header) = FrameHeader::decode(&head, CHUNKS) else { continue };
        assert!(header.payload_bytes as usize <= CHUNK_BYTES, "{header:?}");
        let announced = header.payload_bytes as usize;
        let Some(payload) = payload.get(..announced) else { continue };
        let Ok(content) = decoder.decode(&header, &head, payload) else { continue };
        if header.kind == FrameKind::Pages {
            assert!(header.chunk < CHUNKS, "{header:?}");
            assert_eq!(content.len(), header.content_bytes(), "{header:?}");
        }
        whole += 1;
    }
    whole
}

/// Reads `data` as a message of each party; returns for how many parties it is valid.
///
/// # Errors
/// If there is not enough data to choose a kind.
pub fn messages(data: &[u8]) -> arbitrary::Result<u64> {
    let mut input = Unstructured::new(data);
    let kind: u8 = input.arbitrary()?;
    let body = input.take_rest();
    let mut head = [0; HEAD_BYTES];
    head[..2].copy_from_slice(b"lC");
    head[2] = kind;
    head[4..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    Ok(message::<SourceMessage>(head, body)
        + message::<DestinationMessage>(head, body)
        + message::<FrontRequest>(head, body)
        + message::<FrontReply>(head, body))
}

fn message<M: Message>(head: [u8; HEAD_BYTES], body: &[u8]) -> u64 {
    let Ok(head) = codec::head::<M>(head) else { return 0 };
    assert_eq!(head.body_bytes(), body.len());
    let Ok(message) = codec::decode::<M>(head, body) else { return 0 };
    // A valid message can be encoded, and decodes as the same kind.
    let Ok(again) = codec::encode(&message) else { return 1 };
    let mut first = [0; HEAD_BYTES];
    first.copy_from_slice(&again[..HEAD_BYTES]);
    let known =
        codec::head::<M>(first).and_then(|head| codec::decode::<M>(head, &again[HEAD_BYTES..]));
    assert!(known.is_ok_and(|known| known.kind() == message.kind()));
    1
}
