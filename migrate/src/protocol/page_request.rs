//! A request for pages of memory that follows its guest: 16 bytes on the stream of requests, the
//! number of the chunk and the mask of its pages, both little-endian.

/// Bytes of a request.
pub(crate) const REQUEST_BYTES: usize = 16;

/// Pages of one chunk that the destination wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRequest {
    pub(crate) chunk: u64,
    /// Mask of the pages, not zero.
    pub(crate) pages: u64,
}

/// A request for pages that the guest does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the destination requests pages {pages:#x} of chunk {chunk}, but the guest has {chunks}")]
pub(crate) struct BadRequest {
    chunk: u64,
    pages: u64,
    chunks: usize,
}

impl PageRequest {
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..8].copy_from_slice(&self.chunk.to_le_bytes());
        bytes[8..].copy_from_slice(&self.pages.to_le_bytes());
        bytes
    }

    /// Returns the chunk and the mask of its pages, of a guest of `chunks` chunks.
    pub(crate) fn decode(
        bytes: [u8; REQUEST_BYTES],
        chunks: usize,
    ) -> Result<(usize, u64), BadRequest> {
        let both = u128::from_le_bytes(bytes);
        let (chunk, pages) = (both as u64, (both >> 64) as u64);
        match usize::try_from(chunk) {
            Ok(place) if place < chunks && pages != 0 => Ok((place, pages)),
            _ => Err(BadRequest { chunk, pages, chunks }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_way() {
        let sent = PageRequest { chunk: 3, pages: 1 << 63 };
        assert_eq!(PageRequest::decode(sent.encode(), 4), Ok((3, 1 << 63)));
    }

    #[test]
    fn a_request_for_nothing_or_outside_memory_is_refused() {
        for (chunk, pages) in [(4, 1), (u64::MAX, 1), (0, 0)] {
            let sent = PageRequest { chunk, pages };
            assert!(PageRequest::decode(sent.encode(), 4).is_err(), "{sent:?}");
        }
    }
}
