//! Acknowledgements of pages on one of several links.
//!
//! Layout, 16 bytes, little-endian: round (4), zero (4), chunk (8). One for each frame with pages,
//! sent once the frame is applied, or is not needed any more.

/// Bytes of an acknowledgement.
pub(crate) const PAGE_ACK_BYTES: usize = 16;

/// A chunk that was applied in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageAck {
    pub(crate) round: u32,
    pub(crate) chunk: u64,
}

impl PageAck {
    /// Returns the bytes to send.
    pub(crate) fn encode(&self) -> [u8; PAGE_ACK_BYTES] {
        let mut bytes = [0; PAGE_ACK_BYTES];
        bytes[..4].copy_from_slice(&self.round.to_le_bytes());
        bytes[8..].copy_from_slice(&self.chunk.to_le_bytes());
        bytes
    }

    /// Returns what these bytes acknowledge, which may be nothing that was sent.
    pub(crate) fn decode(bytes: [u8; PAGE_ACK_BYTES]) -> Self {
        let [a, b, c, d, _, _, _, _, chunk @ ..] = bytes;
        Self { round: u32::from_le_bytes([a, b, c, d]), chunk: u64::from_le_bytes(chunk) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        let ack = PageAck { round: 0x0102_0304, chunk: 0x1122_3344_5566_7788 };
        let bytes = ack.encode();
        assert_eq!(bytes[..8], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(PageAck::decode(bytes), ack);
    }
}
