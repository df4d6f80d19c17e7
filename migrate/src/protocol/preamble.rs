//! The first bytes of every stream to a process that receives a guest.
//!
//! Layout, 64 bytes: magic `LTRS` (4), role (1: 1 control, 2 data, 3 background, 4 requests, 5
//! control on a further link, 6 pages of one of several links), reserved zero (1), stream number,
//! little-endian (2; zero except for data), migration id (16), token (32), reserved zero (8). A
//! stream that does not show the right migration and token is closed together with its connection,
//! so that no other host of the fleet can join.

use super::{MAX_STREAMS, MigrationId, Token};

/// Bytes of a preamble.
pub(crate) const PREAMBLE_BYTES: usize = 64;
/// What a process answers on the control stream of a further link, before any message: it has heard
/// all that was sent before, and sends all that follows on this link as well.
pub(crate) const LINK_JOINED: [u8; 1] = [1];

const MAGIC: [u8; 4] = *b"LTRS";

/// The purpose of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamRole {
    /// Messages, in both directions.
    Control,
    /// Pages, from source to destination.
    Data {
        /// Number of the stream, from 0.
        stream: u16,
    },
    /// Pages that follow the guest, from source to destination.
    Background,
    /// Requests for pages that follow the guest, from destination to source, and those pages.
    Requests,
    /// The messages of the control stream, on a further link.
    Link,
    /// Pages from source to destination on one of several links, and acknowledgements of them.
    LinkPages,
}

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PreambleError {
    #[error("not a stream of lighter")]
    Magic,
    #[error("unknown kind of stream")]
    Role,
    #[error("this process waits for another migration")]
    Migration,
    #[error("wrong token for this migration")]
    Token,
}

/// Names the migration that a stream belongs to, with the token that proves it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preamble {
    pub(crate) role: StreamRole,
    pub(crate) migration: MigrationId,
    pub(crate) token: Token,
}

impl Preamble {
    /// Returns the bytes that a stream begins with.
    pub(crate) fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        match self.role {
            StreamRole::Control => bytes[4] = 1,
            StreamRole::Data { stream } => {
                bytes[4] = 2;
                bytes[6..8].copy_from_slice(&stream.to_le_bytes());
            }
            StreamRole::Background => bytes[4] = 3,
            StreamRole::Requests => bytes[4] = 4,
            StreamRole::Link => bytes[4] = 5,
            StreamRole::LinkPages => bytes[4] = 6,
        }
        bytes[8..24].copy_from_slice(self.migration.as_bytes());
        bytes[24..56].copy_from_slice(&self.token.0);
        bytes
    }

    /// Checks a stream's preamble against the migration and token that this process waits for.
    pub(crate) fn admit(
        bytes: &[u8; PREAMBLE_BYTES],
        migration: MigrationId,
        token: &Token,
    ) -> Result<StreamRole, PreambleError> {
        if bytes[..4] != MAGIC || bytes[5] != 0 || bytes[56..] != [0; 8] {
            return Err(PreambleError::Magic);
        }
        if bytes[8..24] != migration.as_bytes()[..] {
            return Err(PreambleError::Migration);
        }
        let mut shown = [0; 32];
        shown.copy_from_slice(&bytes[24..56]);
        if !token.matches(&Token(shown)) {
            return Err(PreambleError::Token);
        }
        let stream = u16::from_le_bytes([bytes[6], bytes[7]]);
        match bytes[4] {
            1 if stream == 0 => Ok(StreamRole::Control),
            2 if stream < MAX_STREAMS => Ok(StreamRole::Data { stream }),
            3 if stream == 0 => Ok(StreamRole::Background),
            4 if stream == 0 => Ok(StreamRole::Requests),
            5 if stream == 0 => Ok(StreamRole::Link),
            6 if stream == 0 => Ok(StreamRole::LinkPages),
            _ => Err(PreambleError::Role),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(role: StreamRole) -> Preamble {
        Preamble { role, migration: MigrationId::random(), token: Token::random() }
    }

    #[test]
    fn accepts_the_right_token() {
        let both = [StreamRole::Link, StreamRole::LinkPages];
        let data = StreamRole::Data { stream: 63 };
        let others = [StreamRole::Control, data, StreamRole::Background, StreamRole::Requests];
        for role in others.into_iter().chain(both) {
            let sent = preamble(role);
            let seen = Preamble::admit(&sent.encode(), sent.migration, &sent.token);
            assert_eq!(seen, Ok(role));
        }
    }

    #[test]
    fn refuses_another_token_and_another_migration() {
        let sent = preamble(StreamRole::Control);
        let other = preamble(StreamRole::Control);
        let bytes = sent.encode();
        let wrong_token = Preamble::admit(&bytes, sent.migration, &other.token);
        assert_eq!(wrong_token, Err(PreambleError::Token));
        let wrong_migration = Preamble::admit(&bytes, other.migration, &sent.token);
        assert_eq!(wrong_migration, Err(PreambleError::Migration));
    }

    #[test]
    fn refuses_every_flipped_byte() {
        let sent = preamble(StreamRole::Data { stream: 1 });
        for at in 0..PREAMBLE_BYTES {
            let mut bytes = sent.encode();
            bytes[at] ^= 0xA5;
            let seen = Preamble::admit(&bytes, sent.migration, &sent.token);
            assert!(seen.is_err(), "byte {at}: {seen:?}");
        }
    }
}
