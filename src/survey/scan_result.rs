//! The result of a scan of a guest's pages.

use std::collections::BTreeMap;
use std::time::Instant;

use memopt::situation::Chunk;
use memopt::survey::{Digests, Scanned, Written};
use vmm_core::memory::HugeView;

use super::CHUNK_BYTES;

/// What a scan found.
#[derive(Debug)]
pub(crate) struct ScanResult {
    pub(super) scanned: Scanned,
    pub(super) written: Written,
    /// By chunk number.
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

impl ScanResult {
    /// Returns a sample of the page contents, to compare with other guests of the domain.
    pub(crate) fn digests(&self) -> &Digests {
        &self.scanned.digests
    }

    /// Whether the host's kernel reports huge pages.
    pub(crate) fn reports_huge_pages(&self) -> bool {
        self.view == HugeView::Told
    }

    /// Returns how long ago the scan ended, in milliseconds.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.ended.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the chunks with pages present, in order, compared with the digests of all guests of
    /// the `domain`: a table with the same seed. `is_marked` says whether the memory at an address
    /// may be merged.
    pub(crate) fn chunks(
        &self,
        domain: &Digests,
        is_marked: impl Fn(u64) -> bool,
    ) -> impl Iterator<Item = Chunk> {
        self.scanned.chunks(domain).into_iter().map(move |mut chunk| {
            let mapped = self.mapped.get(&chunk.index).copied().unwrap_or_default();
            let written = self.written.pages(chunk.index, chunk.present_pages);
            // A chunk that was not watched counts as written.
            chunk.written_pages = written.unwrap_or(chunk.present_pages);
            chunk.template_pages = mapped.template_pages;
            chunk.has_twins = mapped.has_twins;
            chunk.is_huge = mapped.huge_pages * 2 > chunk.present_pages;
            chunk.is_mergeable = is_marked(u64::from(chunk.index) * CHUNK_BYTES);
            chunk
        })
    }
}
