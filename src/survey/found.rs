//! What a look at a guest's pages has found.

use std::collections::BTreeMap;
use std::time::Instant;

use memopt::situation::Chunk;
use memopt::survey::{Digests, Scanned, Written};
use vmm_core::memory::HugeView;

use super::CHUNK_BYTES;

/// What a look found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) scanned: Scanned,
    pub(super) written: Written,
    /// By the numbers of chunks.
    pub(super) mapped: BTreeMap<u32, Mapped>,
    pub(super) view: HugeView,
    pub(super) ended: Instant,
}

/// How a chunk is mapped, in pages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mapped {
    pub(super) huge_pages: u16,
    pub(super) template_pages: u16,
    pub(super) has_twins: bool,
}

impl Found {
    /// A sample of the contents, for the others of the domain.
    pub(crate) fn digests(&self) -> &Digests {
        &self.scanned.digests
    }

    /// Whether the host's kernel tells huge pages.
    pub(crate) fn tells_huge_pages(&self) -> bool {
        self.view == HugeView::Told
    }

    /// How long ago the look ended, in milliseconds.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.ended.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The chunks of which anything is there, in order, in the light of what all guests of the
    /// `domain` have: a table of the same seed. `is_marked` tells of an address whether it may be
    /// merged.
    pub(crate) fn chunks(
        &self,
        domain: &Digests,
        is_marked: impl Fn(u64) -> bool,
    ) -> impl Iterator<Item = Chunk> {
        self.scanned.chunks(domain).into_iter().map(move |mut chunk| {
            let mapped = self.mapped.get(&chunk.index).copied().unwrap_or_default();
            let written = self.written.pages(chunk.index, chunk.present_pages);
            // What nobody has seen standing still does not stand still.
            chunk.written_pages = written.unwrap_or(chunk.present_pages);
            chunk.template_pages = mapped.template_pages;
            chunk.has_twins = mapped.has_twins;
            chunk.is_huge = mapped.huge_pages * 2 > chunk.present_pages;
            chunk.is_mergeable = is_marked(u64::from(chunk.index) * CHUNK_BYTES);
            chunk
        })
    }
}
