//! Extracts pages from frames.

use lz4_flex::block::decompress_into;

use super::header::{Encoding, FrameError, FrameHeader, HEADER_BYTES};
use crate::memory::CHUNK_BYTES;

/// Checks and decodes the payloads of one data stream.
#[derive(Debug)]
pub struct Decoder {
    content: Box<[u8]>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Creates a decoder; its buffer of [`CHUNK_BYTES`] is all the memory it uses.
    pub fn new() -> Self {
        Self { content: vec![0; CHUNK_BYTES].into_boxed_slice() }
    }

    /// Returns the pages in `payload`, packed in the order of [`FrameHeader::carried`].
    ///
    /// `bytes` is the header as received, which the checksum covers too. A damaged frame returns no
    /// pages at all.
    ///
    /// # Errors
    /// [`FrameError::Checksum`] for damaged bytes, [`FrameError::Decompress`] for an lz4 block that
    /// does not hold exactly the announced pages.
    pub fn decode<'a>(
        &'a mut self,
        header: &FrameHeader,
        bytes: &[u8; HEADER_BYTES],
        payload: &'a [u8],
    ) -> Result<&'a [u8], FrameError> {
        header.verify(bytes, payload)?;
        match header.encoding {
            Encoding::Raw => Ok(payload),
            Encoding::Lz4 => {
                let expected = header.content_bytes();
                let content = &mut self.content[..expected];
                match decompress_into(payload, content) {
                    Ok(written) if written == expected => Ok(content),
                    _ => Err(FrameError::Decompress { chunk: header.chunk, expected }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::BufferPool;
    use super::super::compress::{Compression, WireRate};
    use super::super::encode::{Encoder, Position};
    use super::super::header::FrameKind;
    use super::*;
    use crate::memory::PAGE_BYTES;

    /// A page of one of four kinds, chosen by its number.
    fn page(number: usize) -> Vec<u8> {
        match number % 4 {
            0 => vec![0; PAGE_BYTES],
            1 => b"lighter ".repeat(PAGE_BYTES / 8),
            2 => (0..PAGE_BYTES).map(|at| (at / 64 + number) as u8).collect(),
            _ => random(number as u64),
        }
    }

    fn random(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.take(PAGE_BYTES / 8).flatten().collect()
    }

    fn frame(compression: Compression, pages: u64) -> Vec<u8> {
        let mut batch = BufferPool::new().batch();
        let position = Position { round: 1, chunk: 2, pages };
        let copied = Encoder::new(compression).encode::<()>(
            &mut batch,
            position,
            &WireRate::default(),
            |first, out| {
                for (offset, out) in out.chunks_mut(PAGE_BYTES).enumerate() {
                    out.copy_from_slice(&page(first + offset));
                }
                Ok(())
            },
        );
        let counts = copied.unwrap();
        assert_eq!(counts.wire_bytes as usize, batch.len());
        assert_eq!(counts.pages(), u64::from(pages.count_ones()));
        batch.into_bytes().to_vec()
    }

    fn split(frame: &[u8]) -> ([u8; HEADER_BYTES], &[u8]) {
        let (head, payload) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
        (*head, payload)
    }

    fn unpack(frame: &[u8], pages: u64) {
        let (bytes, payload) = split(frame);
        let header = FrameHeader::decode(&bytes, 3).unwrap();
        assert_eq!((header.kind, header.pages, header.round), (FrameKind::Pages, pages, 1));
        let mut decoder = Decoder::new();
        let mut content = decoder.decode(&header, &bytes, payload).unwrap().chunks(PAGE_BYTES);
        for number in 0..64 {
            let expected = page(number);
            if header.carried() >> number & 1 == 1 {
                assert_eq!(content.next(), Some(&expected[..]), "page {number}");
            } else if header.zero >> number & 1 == 1 {
                assert!(expected.iter().all(|&byte| byte == 0), "page {number}");
            }
        }
        assert_eq!(content.next(), None);
    }

    #[test]
    fn pages_survive_the_trip_in_every_mode() {
        for compression in [Compression::Off, Compression::Lz4, Compression::Auto] {
            for pages in [1, u64::MAX, 0xF00F, 1 << 63, 0x1111_1111_1111_1111, 0x8888_0000] {
                unpack(&frame(compression, pages), pages);
            }
        }
    }

    #[test]
    fn zero_pages_cost_a_header_only() {
        assert_eq!(frame(Compression::Lz4, 0x1111_1111_1111_1111).len(), HEADER_BYTES);
    }

    #[test]
    fn text_shrinks_and_random_does_not_grow() {
        assert!(frame(Compression::Lz4, 0x2222_2222_2222_2222).len() < 16 * PAGE_BYTES / 10);
        let random = frame(Compression::Lz4, 0x8888_8888_8888_8888);
        assert_eq!(random.len(), HEADER_BYTES + 16 * PAGE_BYTES);
    }

    #[test]
    fn refuses_an_lz4_block_of_the_wrong_size() {
        let payload = lz4_flex::block::compress(&[7; 2 * PAGE_BYTES]);
        for pages in [0b1, 0b111] {
            let header = FrameHeader {
                kind: FrameKind::Pages,
                encoding: Encoding::Lz4,
                round: 0,
                payload_bytes: payload.len() as u32,
                chunk: 0,
                pages,
                zero: 0,
            };
            let mut bytes = [0; HEADER_BYTES];
            header.encode(&payload, &mut bytes);
            let outcome = Decoder::new().decode(&header, &bytes, &payload).map(<[u8]>::len);
            assert!(matches!(outcome, Err(FrameError::Decompress { .. })), "{pages:#x}");
        }
    }

    #[test]
    fn refuses_every_flipped_byte_of_a_compressed_payload() {
        let good = frame(Compression::Lz4, 0b10);
        for at in HEADER_BYTES..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x11;
            let (bytes, payload) = split(&damaged);
            let header = FrameHeader::decode(&bytes, 3).unwrap();
            assert!(Decoder::new().decode(&header, &bytes, payload).is_err(), "byte {at}");
        }
    }
}
