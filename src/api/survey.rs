//! What a guest's API says about surveys of its pages.

use std::borrow::Cow;

use memopt::situation::Chunk;
use memopt::survey::Digests;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest body of a request with a `SurveyDomain`, in bytes.
pub(crate) const DOMAIN_BYTES_MAX: usize = 2 << 20;

/// State of a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SurveyState {
    /// There has been no survey yet.
    None,
    /// A survey is running.
    Running,
    /// The survey is over; its findings are kept until the next one.
    Done,
    /// The survey was cancelled, or failed.
    Failed,
}

/// `GET /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SurveyStatus {
    /// State of the survey.
    pub(crate) state: SurveyState,
    /// Pages scanned so far.
    pub(crate) pages: u64,
    /// CPU time used so far, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// Why the survey failed.
    pub(crate) error: Option<String>,
    /// What the survey found, for guests of the same merge domain: a sample of the page contents.
    pub(crate) digests: Option<Digests>,
}

/// `PUT /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SurveyDomain<'a> {
    /// The merged tables of all guests of the merge domain, including this one. Contents that only
    /// one page has may be omitted.
    pub(crate) domain: Cow<'a, Digests>,
}

/// The answer to `PUT /v1/guest/survey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SurveyedMemory {
    /// How long ago the survey ended, in milliseconds.
    pub(crate) age_ms: u64,
    /// Whether the host's kernel reports huge pages (Linux 6.7); without it no chunk is reported as
    /// huge.
    pub(crate) reports_huge_pages: bool,
    /// The chunks that have present pages.
    pub(crate) chunks: Vec<ChunkRow>,
}

/// A chunk: its index; how many of its pages are present, zero, duplicated elsewhere, equal to the
/// template's, and written; and flags, 1 for huge and 2 for mergeable. An array, to be short: there
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
            // The guest's process can split merged pages, so this does not matter for it.
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
