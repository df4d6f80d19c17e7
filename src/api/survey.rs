//! What travels over a guest's API about looks at its pages.

use std::borrow::Cow;

use memopt::situation::Chunk;
use memopt::survey::Digests;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest body of a request with such a table, in bytes.
pub(crate) const DOMAIN_BYTES_MAX: usize = 2 << 20;

/// How a look stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SurveyState {
    /// Nobody has looked yet.
    None,
    /// Somebody looks.
    Running,
    /// It is over, and its findings are kept until the next one.
    Done,
    /// It was called off, or could not be done.
    Failed,
}

/// `GET /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SurveyStatus {
    /// How it stands.
    pub(crate) state: SurveyState,
    /// Pages that were looked at so far.
    pub(crate) pages: u64,
    /// CPU time that it took so far, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// Why it failed.
    pub(crate) error: Option<String>,
    /// What it found, for those of the same merge domain: a sample of the contents.
    pub(crate) digests: Option<Digests>,
}

/// `PUT /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SurveyDomain<'a> {
    /// The tables of all guests of the merge domain merged, this one's among them. Contents with
    /// one page may be left away.
    pub(crate) domain: Cow<'a, Digests>,
}

/// The answer to `PUT /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SurveyedMemory {
    /// How long ago the look ended, in milliseconds.
    pub(crate) age_ms: u64,
    /// Whether the host's kernel tells huge pages (Linux 6.7); without it no chunk is said to be
    /// huge.
    pub(crate) tells_huge_pages: bool,
    /// The chunks of which anything is there.
    pub(crate) chunks: Vec<ChunkRow>,
}

/// A chunk: its index, and of its pages those that are there, of zeros, with an equal elsewhere, as
/// in the template, and written; then 1 if it is huge, and 2 if it is mergeable. Short, for there
/// may be 131,072 of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ChunkRow(u32, u16, u16, u16, u16, u16, u8);

const IS_HUGE: u8 = 1;
const IS_MERGEABLE: u8 = 2;

impl From<Chunk> for ChunkRow {
    fn from(chunk: Chunk) -> Self {
        let flag = |flag, is: bool| if is { flag } else { 0 };
        Self(
            chunk.index,
            chunk.present_pages,
            chunk.zero_pages,
            chunk.duplicate_pages,
            chunk.template_pages,
            chunk.written_pages,
            flag(IS_HUGE, chunk.is_huge) | flag(IS_MERGEABLE, chunk.is_mergeable),
        )
    }
}

impl From<ChunkRow> for Chunk {
    fn from(row: ChunkRow) -> Self {
        let ChunkRow(
            index,
            present_pages,
            zero_pages,
            duplicate_pages,
            template_pages,
            written_pages,
            flags,
        ) = row;
        Self {
            index,
            present_pages,
            zero_pages,
            duplicate_pages,
            template_pages,
            written_pages,
            is_huge: flags & IS_HUGE != 0,
            is_mergeable: flags & IS_MERGEABLE != 0,
            // The guest's process takes them apart.
            has_twins: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_travel_whole() {
        let chunk = Chunk {
            index: 7,
            present_pages: 512,
            zero_pages: 1,
            duplicate_pages: 2,
            template_pages: 3,
            written_pages: 4,
            is_huge: false,
            is_mergeable: true,
            has_twins: false,
        };
        let text = serde_json::to_string(&ChunkRow::from(chunk)).unwrap();
        assert_eq!(text, "[7,512,1,2,3,4,2]");
        assert_eq!(Chunk::from(serde_json::from_str::<ChunkRow>(&text).unwrap()), chunk);
    }
}
