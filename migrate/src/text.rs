//! Types of bounded size that messages contain.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest text kept from a peer, in bytes.
pub const MAX_TEXT_BYTES: usize = 512;

/// Text for a person on the other side: at most [`MAX_TEXT_BYTES`], without control characters and
/// marks of text direction (they could forge log lines or control a terminal). Longer text is cut
/// and ends in `...`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PeerText(String);

impl PeerText {
    /// Truncates and cleans `text`.
    pub fn new(text: &str) -> Self {
        let room = MAX_TEXT_BYTES - "...".len();
        let mut clean = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
        for c in text.chars() {
            let c = if c.is_control() || is_direction_mark(c) { ' ' } else { c };
            if clean.len() + c.len_utf8() > room {
                clean.push_str("...");
                break;
            }
            clean.push(c);
        }
        Self(clean)
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Characters that reorder what a terminal shows.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for PeerText {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<PeerText> for String {
    fn from(text: PeerText) -> Self {
        text.0
    }
}

/// Opaque bytes inside a message. Decoding allocates only for bytes that have arrived.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

struct BlobVisitor;

impl<'de> serde::de::Visitor<'de> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(bytes.to_vec()))
    }

    /// Formats without a byte type, such as JSON, write a list of numbers.
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Blob, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(Blob(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_truncated_at_a_character_and_cleaned() {
        let long = PeerText::new(&"ä".repeat(1000));
        assert!(long.as_str().len() <= MAX_TEXT_BYTES);
        assert!(long.as_str().ends_with("ä..."));
        assert_eq!(PeerText::new("a\nb\x1b[2Jc\u{202e}d").as_str(), "a b [2Jc d");
    }
}
