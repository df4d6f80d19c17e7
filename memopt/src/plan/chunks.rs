//! Decides for each chunk of 2 MiB whether to merge it, make it huge, or leave it as it is.
//!
//! A chunk is either merged or huge: one merged page costs the whole huge page. Measured on 1 GiB
//! of huge pages with one common page in each 2 MiB: all huge pages were lost, 2 MiB were saved,
//! and the net loss was 14 MiB, because the kernel's records take 64 bytes for each page scanned.
//! With half of the pages equal, 491 MiB came back. Therefore a chunk is merged when it is cold and
//! has many duplicates, made huge when it is hot, and left alone in between. A decision is reversed
//! only when the chunk has clearly changed.

use std::collections::BTreeSet;

use crate::policy::Policy;
use crate::situation::{Chunk, Survey};
use crate::step::{ChunkRange, ranges};

/// Pages in a chunk.
const PAGES: f64 = 512.0;
/// Bytes in a page.
const PAGE_BYTES: f64 = 4096.0;
/// Size of the kernel's record for each page that it may merge.
const RECORD_BYTES: f64 = 64.0;
/// A chunk is hot when at least this share of its pages was written between two samples.
const HOT_WRITTEN: f64 = 0.0625;
/// A call to `madvise` splits a mapping in three, and a process has 65,530 (`vm.max_map_count`).
const RANGES_MAX: usize = 8192;

/// The decision for a chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    /// Leave it as it is.
    Same,
    /// Merge it, which returns this many bytes.
    Merged(i64),
    /// Keep it merged; merging it is worth this many bytes.
    StaysMerged(i64),
    /// Unmerge it; the bytes lost, as a negative number.
    Unmerged(i64),
    /// Make it a huge page; the bytes needed to fill the holes, as a negative number.
    Huge(i64),
}

/// The value of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worth {
    pub(super) index: u32,
    /// Pages that are present.
    pub(super) pages: u16,
    /// Bytes that the host gets back.
    pub(super) bytes: i64,
}

impl Worth {
    fn of(chunk: &Chunk, bytes: i64) -> Self {
        Self { index: chunk.index, pages: chunk.present_pages.min(512), bytes }
    }
}

/// Selected chunks, and their total value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) chunks: Vec<Worth>,
    pub(super) bytes: i64,
}

impl FromIterator<Worth> for Chosen {
    fn from_iter<I: IntoIterator<Item = Worth>>(worths: I) -> Self {
        let mut chosen = Self::default();
        worths.into_iter().for_each(|worth| chosen.push(worth));
        chosen
    }
}

impl Chosen {
    pub(super) fn push(&mut self, worth: Worth) {
        self.bytes = self.bytes.saturating_add(worth.bytes);
        self.chunks.push(worth);
    }

    /// Returns the number of present pages.
    pub(super) fn pages(&self) -> u64 {
        self.chunks.iter().map(|worth| u64::from(worth.pages)).sum()
    }

    /// Splits into the chunks whose index is in `wanted`, and the others.
    pub(super) fn split(self, wanted: &BTreeSet<u32>) -> (Self, Self) {
        let (wanted, others): (Vec<_>, Vec<_>) =
            self.chunks.into_iter().partition(|worth| wanted.contains(&worth.index));
        (wanted.into_iter().collect(), others.into_iter().collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Converts to as few ranges as possible, and returns them with their value. Beyond the number
    /// that a process can have, the least valuable ranges are omitted.
    pub(super) fn into_ranges(mut self) -> (Vec<ChunkRange>, i64) {
        self.chunks.sort_unstable_by_key(|worth| worth.index);
        self.chunks.dedup_by_key(|worth| worth.index);
        let all = ranges(self.chunks.iter().map(|worth| worth.index));
        if all.len() <= RANGES_MAX {
            let bytes = self.chunks.iter().map(|worth| worth.bytes);
            return (all, bytes.fold(0, i64::saturating_add));
        }
        let mut chunks = self.chunks.into_iter().peekable();
        let mut valued: Vec<(i64, ChunkRange)> = Vec::with_capacity(all.len());
        for range in all {
            let end = range.first.saturating_add(range.count);
            let mut bytes = 0_i64;
            while let Some(worth) = chunks.next_if(|worth| worth.index < end) {
                bytes = bytes.saturating_add(worth.bytes);
            }
            valued.push((bytes, range));
        }
        valued.sort_unstable_by_key(|(bytes, range)| (std::cmp::Reverse(*bytes), *range));
        valued.truncate(RANGES_MAX);
        let bytes = valued.iter().map(|(bytes, _)| *bytes).fold(0, i64::saturating_add);
        let mut kept: Vec<ChunkRange> = valued.into_iter().map(|(_, range)| range).collect();
        kept.sort_unstable();
        (kept, bytes)
    }
}

/// The chunks of a guest, sorted by what merging should do with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    pub(super) merge: Chosen,
    pub(super) stay: Chosen,
    pub(super) unmerge: Chosen,
}

/// Sorts the chunks of `survey`, for a guest that the kernel may merge.
pub(super) fn sort(survey: &Survey, policy: &Policy) -> Sorted {
    let mut sorted = Sorted::default();
    for chunk in &survey.chunks {
        match fate(chunk, survey.copies, MayMerge::Yes, policy) {
            Fate::Same | Fate::Huge(_) => {}
            Fate::Merged(bytes) => sorted.merge.push(Worth::of(chunk, bytes)),
            Fate::StaysMerged(bytes) => sorted.stay.push(Worth::of(chunk, bytes)),
            Fate::Unmerged(bytes) => sorted.unmerge.push(Worth::of(chunk, bytes)),
        }
    }
    sorted
}

/// Whether the kernel may merge this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayMerge {
    Yes,
    No,
}

/// Decides about `chunk`, whose duplicates have `copies` of each content.
pub(super) fn fate(chunk: &Chunk, copies: f64, may_merge: MayMerge, policy: &Policy) -> Fate {
    let present = f64::from(chunk.present_pages.min(512));
    let written = f64::from(chunk.written_pages.min(512));
    let saved = saved_pages(chunk, copies);
    let bytes = (saved * PAGE_BYTES - present * RECORD_BYTES) as i64;
    let (merge, huge) = (&policy.merge, &policy.huge);
    let is_hot = written >= HOT_WRITTEN * PAGES;
    let is_worth_it = bytes > 0 && is_worth_it(chunk, saved, policy);
    if chunk.is_mergeable {
        let is_poor = saved < merge.leave_share * PAGES;
        return match may_merge {
            // The whole guest is marked, and nothing of this chunk is merged yet, because its huge
            // page is not split.
            MayMerge::Yes if chunk.is_huge && !is_worth_it => Fate::Unmerged(0),
            MayMerge::Yes if is_hot || is_poor => Fate::Unmerged(-bytes.max(0)),
            MayMerge::Yes => Fate::StaysMerged(bytes),
            // The whole guest is unmerged by another step.
            MayMerge::No => Fate::Same,
        };
    }
    if may_merge == MayMerge::Yes && is_worth_it {
        return Fate::Merged(bytes);
    }
    if is_hot && !chunk.is_huge && present >= huge.present * PAGES {
        return Fate::Huge(-((PAGES - present) * PAGE_BYTES) as i64);
    }
    Fate::Same
}

/// Returns the chunks that are hot and in small pages. Mergeable marks that this program cannot
/// remove do not matter, because ksmd skips pages that change. But with such marks a chunk in which
/// one merged page is mapped twice is excluded: it cannot become huge as long as it is merged.
pub(super) fn hot(survey: &Survey, marks: Marks, policy: &Policy) -> Chosen {
    let mut chosen = Chosen::default();
    let can_be_huge = |chunk: &&Chunk| marks == Marks::Ours || !chunk.has_twins;
    for chunk in survey.chunks.iter().filter(can_be_huge) {
        let is_mergeable = chunk.is_mergeable && marks == Marks::Ours;
        let chunk = Chunk { is_mergeable, ..*chunk };
        if let Fate::Huge(bytes) = fate(&chunk, survey.copies, MayMerge::No, policy) {
            chosen.push(Worth::of(&chunk, bytes));
        }
    }
    chosen
}

/// The program that marked memory as mergeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// This program, which can remove the marks.
    Ours,
    /// Another program, whose marks cannot be removed.
    Theirs,
}

/// Returns the pages that merging would save: of `n` equal pages all but one. Pages that will soon
/// be written again do not count.
fn saved_pages(chunk: &Chunk, copies: f64) -> f64 {
    let present = f64::from(chunk.present_pages.min(512));
    if present == 0.0 {
        return 0.0;
    }
    // A duplicate has at least two copies; this is also used for a missing or hostile value.
    let copies = if copies.is_finite() { copies.max(2.0) } else { 2.0 };
    let zero = f64::from(chunk.zero_pages).min(present);
    let duplicate = f64::from(chunk.duplicate_pages).min(present - zero);
    let stays = 1.0 - (f64::from(chunk.written_pages) / present).min(1.0);
    (zero + duplicate * (1.0 - 1.0 / copies)) * stays
}

/// Returns the chunks whose zero pages are worth dropping. If a huge page holds them, they must be
/// worth splitting it, on their own or together with what merging would save there, because the
/// huge page is lost only once. Chunks in small pages that may already be merged are excluded: ksmd
/// merges their zero pages.
pub(super) fn of_zeros(
    survey: &Survey,
    may_merge: impl Fn(&Chunk) -> MayMerge,
    policy: &Policy,
) -> Chosen {
    let mut chosen = Chosen::default();
    let untouched = |chunk: &&Chunk| chunk.is_huge || !chunk.is_mergeable;
    for chunk in survey.chunks.iter().filter(untouched) {
        let saved = saved_pages(&Chunk { duplicate_pages: 0, ..*chunk }, survey.copies);
        let fate = || fate(chunk, survey.copies, may_merge(chunk), policy);
        let is_merged = || matches!(fate(), Fate::Merged(_) | Fate::StaysMerged(_));
        if saved >= 1.0 && (is_worth_it(chunk, saved, policy) || is_merged()) {
            chosen.push(Worth::of(chunk, (saved * PAGE_BYTES) as i64));
        }
    }
    chosen
}

/// Whether the chunk is cold, and saving `saved` pages is worth holding it in small pages.
fn is_worth_it(chunk: &Chunk, saved: f64, policy: &Policy) -> bool {
    let merge = &policy.merge;
    let share = if chunk.is_huge { merge.split_share } else { merge.join_share };
    let is_cold = f64::from(chunk.written_pages.min(512)) <= merge.cold_written * PAGES;
    is_cold && saved >= share * PAGES
}

/// Returns the chunks with pages that equal the guest's template and are not likely to be written
/// soon.
pub(super) fn like_template(survey: &Survey, policy: &Policy) -> Chosen {
    let mut chosen = Chosen::default();
    for chunk in &survey.chunks {
        let present = f64::from(chunk.present_pages.min(512));
        let equal = f64::from(chunk.template_pages).min(present);
        let written = f64::from(chunk.written_pages);
        if equal > 0.0 && written <= policy.merge.cold_written * PAGES {
            let bytes = equal * PAGE_BYTES * (1.0 - (written / present).min(1.0));
            chosen.push(Worth::of(chunk, bytes as i64));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Preset;
    use crate::step::Action;

    const HUGE: Chunk = Chunk {
        index: 0,
        present_pages: 512,
        zero_pages: 0,
        duplicate_pages: 0,
        template_pages: 0,
        written_pages: 0,
        is_huge: true,
        is_mergeable: false,
        has_twins: false,
    };

    fn fate_of(chunk: Chunk) -> Fate {
        fate(&chunk, 8.0, MayMerge::Yes, &Policy::default())
    }

    #[test]
    fn what_is_cold_is_not_hot() {
        for preset in Preset::ALL {
            assert!(preset.policy().merge.cold_written < HOT_WRITTEN, "{preset}");
        }
    }

    #[test]
    fn one_common_page_is_not_worth_a_huge_page() {
        assert_eq!(fate_of(Chunk { duplicate_pages: 1, ..HUGE }), Fate::Same);
    }

    #[test]
    fn half_of_its_pages_are_worth_a_huge_page() {
        // 256 of 512 pages, each with 7 copies elsewhere: 224 saved, less the records of 512.
        let expected = 224 * 4096 - 512 * 64;
        assert_eq!(fate_of(Chunk { duplicate_pages: 256, ..HUGE }), Fate::Merged(expected));
        let zeroes = Chunk { zero_pages: 256, ..HUGE };
        assert_eq!(fate_of(zeroes), Fate::Merged(256 * 4096 - 512 * 64));
    }

    #[test]
    fn small_pages_are_merged_for_less() {
        let chunk = Chunk { duplicate_pages: 64, is_huge: false, ..HUGE };
        assert!(matches!(fate_of(chunk), Fate::Merged(_)));
        assert_eq!(fate_of(Chunk { is_huge: true, ..chunk }), Fate::Same);
    }

    #[test]
    fn hot_chunks_are_huge_and_warm_ones_are_left_alone() {
        let hot = Chunk { written_pages: 100, is_huge: false, duplicate_pages: 400, ..HUGE };
        assert_eq!(fate_of(hot), Fate::Huge(0));
        assert_eq!(fate_of(Chunk { present_pages: 500, ..hot }), Fate::Huge(-12 * 4096));
        assert_eq!(fate_of(Chunk { present_pages: 300, ..hot }), Fate::Same, "it would bloat");
        assert_eq!(fate_of(Chunk { written_pages: 20, ..hot }), Fate::Same, "neither hot nor cold");
        assert_eq!(fate_of(Chunk { is_huge: true, ..hot }), Fate::Same);
    }

    #[test]
    fn marks_of_others_let_a_chunk_become_huge_but_not_where_a_merged_page_stands_twice() {
        let one = Chunk { written_pages: 100, is_huge: false, is_mergeable: true, ..HUGE };
        let hot_of = |chunk: Chunk, marks: Marks| {
            let survey = Survey { chunks: vec![chunk], ..Survey::default() };
            hot(&survey, marks, &Policy::default()).chunks.len()
        };
        assert_eq!(hot_of(one, Marks::Theirs), 1);
        let twins = Chunk { has_twins: true, ..one };
        assert_eq!(hot_of(twins, Marks::Theirs), 0, "nobody else can take them apart");
        assert_eq!(hot_of(Chunk { is_mergeable: false, ..twins }, Marks::Ours), 1);
    }

    #[test]
    fn what_is_merged_stays_until_it_is_clearly_hot_or_poor() {
        let merged = Chunk { duplicate_pages: 30, is_huge: false, is_mergeable: true, ..HUGE };
        assert!(matches!(fate_of(merged), Fate::StaysMerged(_)), "less than would be merged now");
        assert!(matches!(fate_of(Chunk { written_pages: 20, ..merged }), Fate::StaysMerged(_)));
        assert!(matches!(fate_of(Chunk { written_pages: 40, ..merged }), Fate::Unmerged(_)));
        assert!(matches!(fate_of(Chunk { duplicate_pages: 2, ..merged }), Fate::Unmerged(_)));
    }

    #[test]
    fn a_mark_on_a_huge_page_stays_only_where_it_would_be_made() {
        let marked = Chunk { is_mergeable: true, ..HUGE };
        let fate = |chunk: Chunk| fate_of(Chunk { is_mergeable: true, ..chunk });
        assert_eq!(fate_of(marked), Fate::Unmerged(0), "it has no equals");
        assert_eq!(fate(Chunk { duplicate_pages: 64, ..marked }), Fate::Unmerged(0), "too few");
        let rich = Chunk { duplicate_pages: 256, ..marked };
        assert_eq!(fate(rich), Fate::StaysMerged(224 * 4096 - 512 * 64));
        assert_eq!(fate(Chunk { written_pages: 20, ..rich }), Fate::Unmerged(0), "it is warm");
        assert_eq!(fate(Chunk { written_pages: 400, ..rich }), Fate::Unmerged(0), "it is hot");
    }

    #[test]
    fn zeros_are_returned_where_they_are_worth_a_huge_page_alone_or_with_merged_pages() {
        let bytes_of = |chunk: Chunk, may_merge: MayMerge| {
            let survey = Survey { chunks: vec![chunk], copies: 8.0, ..Survey::default() };
            of_zeros(&survey, |_| may_merge, &Policy::default()).bytes
        };
        let few = Chunk { zero_pages: 64, ..HUGE };
        assert_eq!(bytes_of(Chunk { zero_pages: 128, ..HUGE }, MayMerge::No), 128 * 4096);
        assert_eq!(bytes_of(few, MayMerge::No), 0, "a huge page is worth more");
        assert_eq!(bytes_of(Chunk { is_huge: false, ..few }, MayMerge::No), 64 * 4096);
        let rich = Chunk { duplicate_pages: 128, ..few };
        assert_eq!(bytes_of(rich, MayMerge::No), 0);
        assert_eq!(bytes_of(rich, MayMerge::Yes), 64 * 4096, "merging gives it up anyway");
        assert_eq!(bytes_of(Chunk { is_mergeable: true, ..rich }, MayMerge::Yes), 64 * 4096);
        let merged = Chunk { is_huge: false, is_mergeable: true, zero_pages: 400, ..HUGE };
        assert_eq!(bytes_of(merged, MayMerge::Yes), 0, "they are merged");
        let warm = Chunk { zero_pages: 400, written_pages: 20, ..HUGE };
        assert_eq!(bytes_of(warm, MayMerge::Yes), 0);
    }

    #[test]
    fn too_many_ranges_are_cut_to_the_best() {
        let mut chosen = Chosen::default();
        for index in 0..20_000_u32 {
            chosen.push(Worth { index: index * 2, pages: 512, bytes: i64::from(index) });
        }
        let (ranges, bytes) = chosen.into_ranges();
        assert_eq!(ranges.len(), RANGES_MAX);
        assert_eq!(ranges[0], ChunkRange { first: 2 * (20_000 - 8192), count: 1 });
        assert_eq!(bytes, (20_000 - 8192..20_000).sum::<i64>());
    }

    fn some_chunk() -> impl Strategy<Value = Chunk> {
        (any::<[u16; 5]>(), any::<(u32, bool, bool)>()).prop_map(|(pages, (index, huge, merge))| {
            Chunk {
                index,
                present_pages: pages[0],
                zero_pages: pages[1],
                duplicate_pages: pages[2],
                template_pages: pages[3],
                written_pages: pages[4],
                is_huge: huge,
                is_mergeable: merge,
                has_twins: false,
            }
        })
    }

    proptest! {
        #[test]
        fn zeros_are_given_back_once(chunk in some_chunk(), copies in any::<f64>()) {
            let survey = Survey { chunks: vec![chunk], copies, ..Survey::default() };
            let chosen = of_zeros(&survey, |_| MayMerge::Yes, &Policy::default());
            prop_assert!((0..=2 << 20).contains(&chosen.bytes));
            let (ranges, _) = chosen.into_ranges();
            let mut after = survey;
            Action::DropZeros { guest: String::new(), chunks: ranges }.note(&mut after);
            prop_assert!(of_zeros(&after, |_| MayMerge::Yes, &Policy::default()).is_empty());
        }

        #[test]
        fn no_chunk_is_worth_more_than_its_memory(chunk in some_chunk(), copies in any::<f64>()) {
            match fate(&chunk, copies, MayMerge::Yes, &Policy::default()) {
                Fate::Same => {}
                Fate::Merged(bytes) => prop_assert!((1..=2 << 20).contains(&bytes)),
                Fate::StaysMerged(bytes) | Fate::Unmerged(bytes) | Fate::Huge(bytes) => {
                    prop_assert!(bytes.abs() <= 2 << 20);
                }
            }
        }

        #[test]
        fn what_has_just_been_decided_is_not_turned_at_once(chunk in some_chunk(), copies in 2.0..100.0) {
            let policy = Policy::default();
            if let Fate::Merged(_) = fate(&chunk, copies, MayMerge::Yes, &policy) {
                let merged = Chunk { is_mergeable: true, is_huge: false, ..chunk };
                let next = fate(&merged, copies, MayMerge::Yes, &policy);
                prop_assert!(matches!(next, Fate::StaysMerged(_)), "{next:?}");
            }
            if let Fate::Huge(_) = fate(&chunk, copies, MayMerge::Yes, &policy) {
                let huge = Chunk { is_huge: true, present_pages: 512, ..chunk };
                let next = fate(&huge, copies, MayMerge::Yes, &policy);
                prop_assert_eq!(next, Fate::Same);
            }
            if let Fate::Unmerged(_) = fate(&chunk, copies, MayMerge::Yes, &policy) {
                let left = Chunk { is_mergeable: false, ..chunk };
                let next = fate(&left, copies, MayMerge::Yes, &policy);
                prop_assert!(!matches!(next, Fate::Merged(_)), "{next:?}");
            }
        }
    }
}
