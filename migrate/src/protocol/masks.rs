//! Sets of pages as messages carry them.

use serde::{Deserialize, Serialize};

use super::codec::PAGES_LIMIT;
use crate::memory::{CHUNK_BYTES, PageSet};

/// Bytes of a message's body before its pages: which message it is, and the number of chunks.
const HEAD_BYTES: usize = size_of::<u32>() + size_of::<u64>();
/// Bytes of a chunk in a message's body: its number, and the mask of its pages.
const ENTRY_BYTES: usize = size_of::<u32>() + size_of::<u64>();

/// Pages of a guest's memory: its chunks in ascending order, each with the mask of its pages, which
/// is not 0. Chunks without pages are absent.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageMasks(Vec<(u32, u64)>);

impl PageMasks {
    /// Chunks of the largest guest whose pages always fit into a message.
    pub(crate) const CHUNKS_MAX: usize = (PAGES_LIMIT - HEAD_BYTES) / ENTRY_BYTES;
    /// Memory of that guest, in whole GiB.
    pub(crate) const GIB_MAX: usize = (Self::CHUNKS_MAX * CHUNK_BYTES) >> 30;

    /// Returns the pages of `set`.
    pub fn of(set: &PageSet) -> Self {
        // A guest has at most 2^26 chunks.
        Self(set.iter().map(|(chunk, mask)| (chunk as u32, mask)).collect())
    }

    /// Returns these pages as a set over `chunks` chunks; none if a peer has listed other chunks,
    /// or not in order.
    pub fn to_set(&self, chunks: usize) -> Option<PageSet> {
        let mut set = PageSet::empty(chunks);
        let mut next = 0;
        for &(chunk, mask) in &self.0 {
            let chunk = chunk as usize;
            if chunk < next || mask == 0 {
                return None;
            }
            *set.words_mut().get_mut(chunk)? = mask;
            next = chunk + 1;
        }
        Some(set)
    }
}

impl std::fmt::Debug for PageMasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageMasks({} chunks)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec::{CodecError, Message, encode};
    use crate::protocol::{DestinationMessage, SourceMessage};

    /// Encodes a message that lists `chunks` chunks.
    fn listing<M: Message>(chunks: usize, message: fn(PageMasks) -> M) -> Result<(), CodecError> {
        encode(&message(PageMasks::of(&PageSet::full(chunks)))).map(drop)
    }

    #[test]
    fn a_message_lists_as_many_chunks_as_fit_and_no_more() {
        let (most, too_many) = (PageMasks::CHUNKS_MAX, PageMasks::CHUNKS_MAX + 1);
        listing(most, SourceMessage::Missing).unwrap();
        listing(most, DestinationMessage::Missing).unwrap();
        let refused = listing(too_many, SourceMessage::Missing).unwrap_err();
        assert!(matches!(refused, CodecError::TooLong { .. }), "{refused}");
        assert!(listing(too_many, DestinationMessage::Missing).is_err());
        assert_eq!(PageMasks::GIB_MAX, 341, "the documentation says so");
    }

    #[test]
    fn a_set_survives_the_way_there_and_back() {
        let mut set = PageSet::empty(5);
        set.insert(0, 63);
        set.insert(4, 2);
        assert_eq!(PageMasks::of(&set).to_set(5), Some(set));
        assert_eq!(PageMasks::default().to_set(0), Some(PageSet::empty(0)));
    }

    #[test]
    fn what_no_peer_of_ours_sends_is_refused() {
        for masks in [vec![(2, 1)], vec![(1, 1), (0, 1)], vec![(1, 1), (1, 2)], vec![(0, 0)]] {
            assert_eq!(PageMasks(masks).to_set(2), None);
        }
    }
}
