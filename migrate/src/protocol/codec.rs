//! Encodes messages and decodes them, with every length bounded before anything is allocated.
//!
//! A frame is an 8-byte head (`b"lC"`, kind, 0, length of the body as little-endian `u32`) and a
//! body: the message in bincode 2, with fixed-width little-endian integers. Each kind has its own
//! limit, which is checked when the head is read. Only this module uses bincode, so another serde
//! format would only change this module.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::Deserialize;

use super::front::{FrontReply, FrontRequest};
use super::{DestinationMessage, SourceMessage};

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 8;
/// Largest body of an ordinary message.
pub const SMALL_LIMIT: usize = 16 << 10;
/// Largest body of a message that describes a guest.
pub const DESCRIPTION_LIMIT: usize = 1 << 20;
/// Largest body of a message with the state of a guest.
pub const STATE_LIMIT: usize = 64 << 20;
/// Largest body of a message that lists pages; `PageMasks::CHUNKS_MAX` chunks fill it.
pub const PAGES_LIMIT: usize = 16 << 20;

const MAGIC: [u8; 2] = *b"lC";

/// Why bytes are not a valid message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not the start of a frame: the stream is damaged, or carries another protocol.
    #[error("not a control frame (starts with {0:02x?})")]
    BadHead([u8; HEAD_BYTES]),
    /// A kind that this release does not know.
    #[error("unknown kind {0} of control message")]
    UnknownKind(u8),
    /// The head announces more than the limit of its kind.
    #[error("control message of kind {kind} announces {bytes} bytes, at most {limit} are accepted")]
    TooLong {
        /// The kind of the message.
        kind: u8,
        /// The announced length.
        bytes: usize,
        /// The limit of the kind.
        limit: usize,
    },
    /// The body is not a valid message of its kind.
    #[error("control message of kind {kind} cannot be decoded: {detail}")]
    Malformed {
        /// The kind of the message.
        kind: u8,
        /// What is wrong with the body.
        detail: String,
    },
}

/// A checked frame head: kind and length of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    body_bytes: usize,
}

impl Head {
    /// Returns the length of the body, which is within the limit of its kind and so safe to
    /// allocate.
    pub const fn body_bytes(self) -> usize {
        self.body_bytes
    }
}

/// A message that can be sent in a frame.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// Returns the kind of this message, distinct across all message types.
    fn kind(&self) -> u8;

    /// Returns the largest body of a message of `kind`; none if this type has no such kind.
    fn limit(kind: u8) -> Option<usize>;
}

impl Message for SourceMessage {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Resolve { .. } => 2,
            Self::Prepare(_) => 3,
            Self::Switchover => 4,
            Self::State(_) => 5,
            Self::Commit => 6,
            Self::Abort(_) => 7,
            Self::Finish => 8,
            Self::Disks(_) => 9,
            Self::Node { .. } => 10,
            Self::Return => 11,
            Self::Missing(_) => 12,
            Self::Withdraw(_) => 13,
            Self::Continue { .. } => 14,
        }
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            3 => Some(DESCRIPTION_LIMIT),
            5 => Some(STATE_LIMIT),
            12 => Some(PAGES_LIMIT),
            1..=11 | 13..=14 => Some(SMALL_LIMIT),
            _ => None,
        }
    }
}

impl Message for DestinationMessage {
    fn kind(&self) -> u8 {
        match self {
            Self::Welcome { .. } => 33,
            Self::Refused(_) => 34,
            Self::Prepared => 35,
            Self::Ready { .. } => 36,
            Self::Running(_) => 37,
            Self::Abort(_) => 38,
            Self::Discarded => 39,
            Self::Unknown => 40,
            Self::NotTaken(_) => 41,
            Self::Cleared => 42,
            Self::Missing(_) => 43,
            Self::Complete { .. } => 44,
            Self::Lost(_) => 45,
            Self::GaveUp(_) => 46,
            Self::Applied { .. } => 47,
            Self::Returned => 48,
        }
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            43 => Some(PAGES_LIMIT),
            33..=48 => Some(SMALL_LIMIT),
            _ => None,
        }
    }
}

impl Message for FrontRequest {
    fn kind(&self) -> u8 {
        match self {
            Self::Admit { .. } => 65,
            Self::Resolve { .. } => 66,
            Self::Find { .. } => 67,
            Self::Trace { .. } => 68,
            Self::DiskUsers { .. } => 69,
            Self::BootFiles { .. } => 70,
            Self::Sink => 71,
            Self::IsAttachable { .. } => 72,
            Self::AttachDevice { .. } => 73,
        }
    }

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            65 => Some(DESCRIPTION_LIMIT),
            66..=73 => Some(SMALL_LIMIT),
            _ => None,
        }
    }
}

impl Message for FrontReply {
    fn kind(&self) -> u8 {
        match self {
            Self::Admitted { .. } => 97,
            Self::Refused(_) => 98,
            Self::Resolved(_) => 99,
            Self::AskProcess { .. } => 100,
            Self::Found(_) => 101,
            Self::Traced { .. } => 102,
            Self::DiskUsers(_) => 103,
            Self::BootFiles(_) => 104,
            Self::Sink { .. } => 105,
            Self::Attachable => 106,
            Self::Attached(_) => 107,
        }
    }

    fn limit(kind: u8) -> Option<usize> {
        matches!(kind, 97..=107).then_some(SMALL_LIMIT)
    }
}

/// Returns the whole frame of `message`.
///
/// # Errors
/// If the message is larger than its kind allows.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let kind = message.kind();
    #[allow(clippy::disallowed_methods)] // only this module may use bincode
    let body = bincode::serde::encode_to_vec(message, config())
        .map_err(|error| CodecError::Malformed { kind, detail: error.to_string() })?;
    let limit = M::limit(kind).ok_or(CodecError::UnknownKind(kind))?;
    if body.len() > limit {
        return Err(CodecError::TooLong { kind, bytes: body.len(), limit });
    }
    let length = u32::try_from(body.len()).map_err(|_| CodecError::TooLong {
        kind,
        bytes: body.len(),
        limit,
    })?;
    let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Checks the head of a frame that should hold an `M`.
///
/// # Errors
/// If it is not a valid head, its kind is not one of `M`, or it announces more than that kind
/// allows.
pub fn head<M: Message>(bytes: [u8; HEAD_BYTES]) -> Result<Head, CodecError> {
    let [m0, m1, kind, reserved, l0, l1, l2, l3] = bytes;
    if [m0, m1] != MAGIC || reserved != 0 {
        return Err(CodecError::BadHead(bytes));
    }
    let limit = M::limit(kind).ok_or(CodecError::UnknownKind(kind))?;
    let body_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if body_bytes > limit {
        return Err(CodecError::TooLong { kind, bytes: body_bytes, limit });
    }
    Ok(Head { kind, body_bytes })
}

/// Decodes the body that followed `head`.
///
/// # Errors
/// If it is not exactly one message of the kind in the head.
pub fn decode<M: Message>(head: Head, body: &[u8]) -> Result<M, CodecError> {
    let malformed = |detail: String| CodecError::Malformed { kind: head.kind, detail };
    if body.len() != head.body_bytes {
        return Err(malformed(format!("{} bytes, not {}", body.len(), head.body_bytes)));
    }
    #[allow(clippy::disallowed_methods)] // only this module may use bincode
    let (message, used): (M, usize) = bincode::serde::borrow_decode_from_slice(body, config())
        .map_err(|error| malformed(error.to_string()))?;
    if used != body.len() {
        return Err(malformed(format!("{} bytes too many", body.len() - used)));
    }
    if message.kind() != head.kind {
        return Err(malformed(format!("the body is of kind {}", message.kind())));
    }
    Ok(message)
}

const fn config() -> Configuration<LittleEndian, Fixint, Limit<STATE_LIMIT>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<STATE_LIMIT>()
}

#[cfg(test)]
mod tests;
