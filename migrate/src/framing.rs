//! Messages on a QUIC stream: the frame of [`crate::protocol::codec`], followed by its checksum.
//!
//! The checksum is the xxh3-64 of the frame, little-endian. TLS already protects messages in
//! transit; the checksum catches corruption at either end before or after encryption.

use quinn::{ReadExactError, RecvStream, SendStream};
use xxhash_rust::xxh3::xxh3_64;

use crate::protocol::CodecError;
use crate::protocol::codec::{self, HEAD_BYTES, Message};

/// Bytes of the checksum after a frame.
pub(crate) const CHECKSUM_BYTES: usize = 8;
/// Bytes read at once: memory is allocated as data arrives, not for what the peer announces.
const STEP_BYTES: usize = 256 << 10;

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFailure {
    /// A frame that does not hold a valid message; the next frame can be read.
    #[error(transparent)]
    Malformed(CodecError),
    /// Bytes that are not a frame: the start of the next one is unknown.
    #[error(transparent)]
    OutOfStep(CodecError),
    /// The stream ended or broke.
    #[error("{0}")]
    Lost(String),
}

/// Returns the bytes of `message` as they are written to a stream.
pub(crate) fn frame<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut bytes = codec::encode(message)?;
    let sum = xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// Sends one message.
pub(crate) async fn write<M: Message>(stream: &mut SendStream, message: &M) -> Result<(), String> {
    let bytes = frame(message).map_err(|error| error.to_string())?;
    stream.write_chunk(bytes.into()).await.map_err(|error| error.to_string())
}

/// Reads one message.
pub(crate) async fn read<M: Message>(stream: &mut RecvStream) -> Result<M, ReadFailure> {
    let mut first = [0; HEAD_BYTES];
    fill(stream, &mut first).await?;
    let head = codec::head::<M>(first).map_err(ReadFailure::OutOfStep)?;
    let mut frame = first.to_vec();
    let end = HEAD_BYTES + head.body_bytes();
    while frame.len() < end {
        let from = frame.len();
        frame.resize(end.min(from + STEP_BYTES), 0);
        fill(stream, &mut frame[from..]).await?;
    }
    let mut sum = [0; CHECKSUM_BYTES];
    fill(stream, &mut sum).await?;
    if xxh3_64(&frame) != u64::from_le_bytes(sum) {
        let detail = "it does not match its checksum: the data was damaged on its way".into();
        return Err(ReadFailure::Malformed(CodecError::Malformed { kind: first[2], detail }));
    }
    codec::decode(head, &frame[HEAD_BYTES..]).map_err(ReadFailure::Malformed)
}

async fn fill(stream: &mut RecvStream, bytes: &mut [u8]) -> Result<(), ReadFailure> {
    stream.read_exact(bytes).await.map_err(|error| {
        ReadFailure::Lost(match error {
            ReadExactError::FinishedEarly(0) => "the stream ended".into(),
            ReadExactError::FinishedEarly(read) => format!("the stream ended after {read} bytes"),
            ReadExactError::ReadError(error) => error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DestinationMessage, SourceMessage};
    use crate::quic::pair::{Ending, Pair};

    async fn read_bytes(bytes: &[u8]) -> Result<SourceMessage, ReadFailure> {
        let pair = Pair::new().await;
        let mut stream = pair.incoming(bytes, Ending::Finish).await;
        read(&mut stream).await
    }

    #[tokio::test]
    async fn a_message_survives_the_trip() {
        let bytes = frame(&SourceMessage::Commit).unwrap();
        assert_eq!(read_bytes(&bytes).await.unwrap(), SourceMessage::Commit);
    }

    #[tokio::test]
    async fn every_flipped_byte_is_noticed() {
        let pair = Pair::new().await;
        let good = frame(&SourceMessage::Switchover).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            let mut stream = pair.incoming(&bytes, Ending::Finish).await;
            assert!(read::<SourceMessage>(&mut stream).await.is_err(), "byte {at}");
        }
    }

    #[tokio::test]
    async fn a_message_can_be_read_after_a_damaged_one() {
        let mut bytes = frame(&SourceMessage::Switchover).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        bytes.extend(frame(&SourceMessage::Commit).unwrap());
        let pair = Pair::new().await;
        let mut stream = pair.incoming(&bytes, Ending::Finish).await;
        let first = read::<SourceMessage>(&mut stream).await;
        assert!(matches!(first, Err(ReadFailure::Malformed(_))), "{first:?}");
        assert_eq!(read::<SourceMessage>(&mut stream).await.unwrap(), SourceMessage::Commit);
    }

    #[tokio::test]
    async fn an_oversized_length_is_refused_before_anything_is_allocated() {
        let mut bytes = frame(&SourceMessage::Commit).unwrap();
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let outcome = read_bytes(&bytes).await;
        assert!(matches!(outcome, Err(ReadFailure::OutOfStep(CodecError::TooLong { .. }))));
    }

    #[tokio::test]
    async fn a_message_of_the_other_side_is_refused() {
        let bytes = frame(&DestinationMessage::Prepared).unwrap();
        let outcome = read_bytes(&bytes).await;
        assert!(matches!(outcome, Err(ReadFailure::OutOfStep(CodecError::UnknownKind(_)))));
    }

    #[tokio::test]
    async fn a_truncated_message_is_lost() {
        let bytes = frame(&SourceMessage::Commit).unwrap();
        for length in [0, 3, HEAD_BYTES, bytes.len() - 1] {
            let outcome = read_bytes(&bytes[..length]).await;
            assert!(matches!(outcome, Err(ReadFailure::Lost(_))), "{length}: {outcome:?}");
        }
    }
}
