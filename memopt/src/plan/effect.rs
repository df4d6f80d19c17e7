//! Updates a survey with the effect of a step, so that the guest does not have to be surveyed
//! again.

use crate::situation::{Chunk, Survey};
use crate::step::{Action, ChunkRange};

/// The chunks to change (all of them when absent), and the change to each.
type Change<'a> = (Option<&'a [ChunkRange]>, fn(&mut Chunk));

impl Action {
    /// Whether the action changes surveys: that of its guest or, for a ksmd window, that of any
    /// guest.
    #[must_use]
    pub fn changes_pages(&self) -> bool {
        self.change().is_some()
    }

    /// Updates `survey`, made before the action, with the effect of the action. The survey is that
    /// of the action's guest or, for a ksmd window, that of any guest.
    pub fn note(&self, survey: &mut Survey) {
        let Some((ranges, change)) = self.change() else { return };
        let is_meant = |chunk: &&mut Chunk| ranges.is_none_or(|ranges| has(ranges, chunk.index));
        survey.chunks.iter_mut().filter(is_meant).for_each(change);
    }

    fn change(&self) -> Option<Change<'_>> {
        Some(match self {
            Self::Merge { chunks, .. } => (Some(chunks), |chunk| chunk.is_mergeable = true),
            Self::Unmerge { chunks, .. } => (chunks.as_deref(), |chunk| chunk.is_mergeable = false),
            Self::MakeHuge { chunks, .. } => {
                (Some(chunks), |chunk| (chunk.is_mergeable, chunk.is_huge) = (false, true))
            }
            Self::RemergeTemplate { chunks, .. } => (Some(chunks), share_with_template),
            Self::DropZeros { chunks, .. } => (Some(chunks), drop_zeros),
            Self::DriveKsm { .. } => (None, merge),
            Self::SetBalloon { .. } | Self::StopKsm { .. } | Self::ResizePool { .. } => {
                return None;
            }
        })
    }
}

/// Whether `ranges`, which are in order, contain the chunk `index`.
fn has(ranges: &[ChunkRange], index: u32) -> bool {
    let after = ranges.partition_point(|range| range.first <= index);
    let last = after.checked_sub(1).and_then(|before| ranges.get(before));
    last.is_some_and(|range| index - range.first < range.count)
}

fn share_with_template(chunk: &mut Chunk) {
    chunk.present_pages = chunk.present_pages.saturating_sub(chunk.template_pages);
    chunk.template_pages = 0;
}

/// ksmd splits the huge pages of mergeable memory, zero pages first.
fn merge(chunk: &mut Chunk) {
    chunk.is_huge &= !chunk.is_mergeable;
}

/// The dropped pages do not count as written, since they were still zero.
fn drop_zeros(chunk: &mut Chunk) {
    chunk.present_pages = chunk.present_pages.saturating_sub(chunk.zero_pages);
    chunk.written_pages = chunk.written_pages.min(chunk.present_pages);
    chunk.zero_pages = 0;
    chunk.is_huge = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_change_only_the_record_of_their_own_chunks() {
        let chunk = |index| Chunk {
            index,
            present_pages: 512,
            template_pages: 9,
            zero_pages: 100,
            written_pages: 500,
            is_huge: true,
            ..Chunk::default()
        };
        let mut survey = Survey { chunks: (0..5).map(chunk).collect(), ..Survey::default() };
        let guest = || "a".to_owned();
        let chunks = |first, count| vec![ChunkRange { first, count }];
        let steps = [
            Action::Merge { guest: guest(), chunks: chunks(1, 2) },
            Action::MakeHuge { guest: guest(), chunks: chunks(2, 1) },
            Action::RemergeTemplate { guest: guest(), chunks: chunks(3, 1) },
            Action::DropZeros { guest: guest(), chunks: chunks(4, 1) },
        ];
        steps.iter().for_each(|step| step.note(&mut survey));
        let marks = |survey: &Survey| -> Vec<_> {
            let marks =
                |it: &Chunk| (it.is_mergeable, it.is_huge, it.present_pages, it.written_pages);
            survey.chunks.iter().map(marks).collect()
        };
        let expected = [
            (false, true, 512, 500),
            (true, true, 512, 500),
            (false, true, 512, 500),
            (false, true, 503, 500),
            (false, false, 412, 412),
        ];
        assert_eq!(marks(&survey), expected);
        let (domain, window) = ("shop".to_owned(), std::time::Duration::ZERO);
        Action::DriveKsm {
            domain,
            pages_per_s: 1,
            cpu: 0.1,
            cpu_time: window,
            window,
            window_bytes: 0,
        }
        .note(&mut survey);
        let huge: Vec<bool> = survey.chunks.iter().map(|chunk| chunk.is_huge).collect();
        assert_eq!(huge, [true, false, true, true, false], "what is marked is merged");
        Action::Unmerge { guest: guest(), chunks: None }.note(&mut survey);
        assert!(survey.chunks.iter().all(|chunk| !chunk.is_mergeable));
    }
}
