//! Compares a plan that an operator has reviewed and agreed to with what would be done now.

use super::sheet::Plan;
use crate::step::{Action, ChunkRange, Step, ranges};

impl Plan {
    /// Reduces this plan, which was just made, to what `agreed` also contains. Also returns the
    /// steps of `agreed` of which nothing is left, because they would no longer be taken.
    #[must_use]
    pub fn within(mut self, agreed: &Self) -> (Self, Vec<Step>) {
        let steps = std::mem::take(&mut self.steps).into_iter();
        self.steps = steps.filter_map(|step| step.within(agreed)).collect();
        self.expected_bytes = self.steps.iter().map(|step| step.expected_bytes).sum();
        let is_left_out = |old: &&Step| {
            let is_of_it = |step: &Step| step.action.within(&old.action).is_some();
            !self.steps.iter().any(is_of_it)
        };
        let left_out = agreed.steps.iter().filter(is_left_out).cloned().collect();
        (self, left_out)
    }
}

impl Step {
    fn within(self, agreed: &Plan) -> Option<Self> {
        let action = agreed.steps.iter().find_map(|step| self.action.within(&step.action))?;
        let (kept, all) = (action.amount(), self.action.amount());
        let expected = i128::from(self.expected_bytes) * i128::from(kept) / i128::from(all.max(1));
        let expected_bytes = i64::try_from(expected).unwrap_or(self.expected_bytes);
        Some(Self { action, expected_bytes, ..self })
    }
}

impl Action {
    /// Returns the part of this action that `agreed` allows: no further than its target, and no
    /// other chunks. `None` when `agreed` is about something else.
    fn within(&self, agreed: &Self) -> Option<Self> {
        if self.guest() != agreed.guest() {
            return None;
        }
        let mut action = self.clone();
        match (&mut action, agreed) {
            (
                Self::SetBalloon { from_bytes: from, to_bytes: to, .. },
                Self::SetBalloon { to_bytes: bound, .. },
            ) => *to = toward(*from, *to, *bound)?,
            (
                Self::ResizePool { page_bytes, from_pages: from, to_pages: to },
                Self::ResizePool { page_bytes: of, to_pages: bound, .. },
            ) if page_bytes == of => *to = toward(*from, *to, *bound)?,
            (Self::Merge { chunks, .. }, Self::Merge { chunks: bound, .. })
            | (Self::MakeHuge { chunks, .. }, Self::MakeHuge { chunks: bound, .. })
            | (Self::RemergeTemplate { chunks, .. }, Self::RemergeTemplate { chunks: bound, .. })
            | (Self::DropZeros { chunks, .. }, Self::DropZeros { chunks: bound, .. }) => {
                *chunks = common(chunks, bound)?;
            }
            (Self::Unmerge { chunks, .. }, Self::Unmerge { chunks: bound, .. }) => {
                *chunks = match (chunks.as_ref(), bound) {
                    (Some(chunks), Some(bound)) => Some(common(chunks, bound)?),
                    (chunks, bound) => chunks.or(bound.as_ref()).cloned(),
                };
            }
            (
                Self::DriveKsm { domain, pages_per_s, cpu, cpu_time, window, .. },
                Self::DriveKsm {
                    domain: of,
                    pages_per_s: pages_bound,
                    cpu: cpu_bound,
                    cpu_time: time_bound,
                    window: window_bound,
                    ..
                },
            ) if domain == of => {
                *pages_per_s = (*pages_per_s).min(*pages_bound);
                *cpu = cpu.min(*cpu_bound);
                *cpu_time = (*cpu_time).min(*time_bound);
                *window = (*window).min(*window_bound);
            }
            (Self::StopKsm { domain }, Self::StopKsm { domain: of }) if domain == of => {}
            _ => return None,
        }
        Some(action)
    }

    /// Returns the size of the action, for comparison with an action of the same kind.
    fn amount(&self) -> u64 {
        match self {
            Self::SetBalloon { from_bytes: from, to_bytes: to, .. }
            | Self::ResizePool { from_pages: from, to_pages: to, .. } => from.abs_diff(*to),
            Self::Merge { chunks, .. }
            | Self::MakeHuge { chunks, .. }
            | Self::RemergeTemplate { chunks, .. }
            | Self::DropZeros { chunks, .. } => chunks.iter().map(|it| u64::from(it.count)).sum(),
            Self::Unmerge { .. } | Self::DriveKsm { .. } | Self::StopKsm { .. } => 1,
        }
    }
}

/// Returns the target from `from` toward `to`, but not beyond `bound`; `None` if that changes
/// nothing.
fn toward(from: u64, to: u64, bound: u64) -> Option<u64> {
    if to < from {
        Some(to.max(bound)).filter(|to| *to < from)
    } else {
        Some(to.min(bound)).filter(|to| *to > from)
    }
}

/// Returns the chunks of `ours` that are also in `agreed`, which is untrusted input; `None` if
/// there are none.
fn common(ours: &[ChunkRange], agreed: &[ChunkRange]) -> Option<Vec<ChunkRange>> {
    let mut agreed = agreed.to_vec();
    agreed.sort();
    // For each range, the furthest end of any range that begins no later.
    let ends: Vec<u32> = agreed
        .iter()
        .scan(0, |end: &mut u32, range| {
            *end = range.first.saturating_add(range.count).max(*end);
            Some(*end)
        })
        .collect();
    let has = |index: &u32| {
        let before = agreed.partition_point(|range| range.first <= *index);
        before.checked_sub(1).is_some_and(|last| *index < ends[last])
    };
    let indices = ours.iter().flat_map(|range| (range.first..).take(range.count as usize));
    Some(ranges(indices.filter(has))).filter(|chunks| !chunks.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::fixture::{plan_of, step};

    fn plan(steps: Vec<(Action, i64)>) -> Plan {
        plan_of(steps.into_iter().map(|(action, bytes)| step(action, bytes)).collect())
    }

    fn balloon(from_bytes: u64, to_bytes: u64) -> Action {
        Action::SetBalloon { guest: "a".to_owned(), from_bytes, to_bytes }
    }

    fn pool(page_bytes: u64, from_pages: u64, to_pages: u64) -> Action {
        Action::ResizePool { page_bytes, from_pages, to_pages }
    }

    fn merge(chunks: &[(u32, u32)]) -> Action {
        let chunks = chunks.iter().map(|&(first, count)| ChunkRange { first, count }).collect();
        Action::Merge { guest: "a".to_owned(), chunks }
    }

    /// What is left of the step `now`, which returns 100 bytes, and what the rest returns.
    fn left(now: Action, agreed: Action) -> Option<(Action, i64)> {
        let (plan, left_out) = plan(vec![(now, 100)]).within(&plan(vec![(agreed, 0)]));
        assert_eq!(left_out.len(), usize::from(plan.steps.is_empty()));
        assert_eq!(plan.expected_bytes, plan.steps.first().map_or(0, |it| it.expected_bytes));
        plan.steps.into_iter().next().map(|step| (step.action, step.expected_bytes))
    }

    #[test]
    fn balloons_and_pools_stay_within_both_plans() {
        assert_eq!(left(balloon(100, 60), balloon(100, 80)), Some((balloon(100, 80), 50)));
        assert_eq!(left(balloon(100, 60), balloon(100, 50)), Some((balloon(100, 60), 100)));
        assert_eq!(left(balloon(70, 60), balloon(100, 80)), None, "it has gone further");
        assert_eq!(left(balloon(60, 100), balloon(60, 80)), Some((balloon(60, 80), 50)));
        assert_eq!(left(balloon(90, 100), balloon(100, 80)), None, "it needs it back");
        assert_eq!(left(pool(2, 10, 0), pool(2, 10, 5)), Some((pool(2, 10, 5), 50)));
        assert_eq!(left(pool(2, 10, 0), pool(4, 10, 0)), None, "another pool");
    }

    #[test]
    fn only_chunks_of_both_plans_are_kept() {
        let agreed = merge(&[(8, 4), (0, 3), (1, 1), (u32::MAX, u32::MAX)]);
        let now = merge(&[(2, 2), (10, 6)]);
        assert_eq!(left(now, agreed), Some((merge(&[(2, 1), (10, 2)]), 37)));
        assert_eq!(left(merge(&[(0, 1)]), merge(&[(1, 1)])), None);
        let zeros = Action::DropZeros { guest: "a".to_owned(), chunks: Vec::new() };
        assert_eq!(left(merge(&[(0, 1)]), zeros), None, "something else");
        let all =
            |chunks: Option<Vec<ChunkRange>>| Action::Unmerge { guest: "a".to_owned(), chunks };
        let some = all(Some(vec![ChunkRange { first: 3, count: 1 }]));
        assert_eq!(left(all(None), some.clone()), Some((some.clone(), 100)));
        assert_eq!(left(some.clone(), all(None)), Some((some, 100)));
    }

    #[test]
    fn ksmd_has_no_more_time_and_no_other_domain_than_was_agreed_to() {
        let drive = |domain: &str, pages_per_s, seconds| Action::DriveKsm {
            domain: domain.to_owned(),
            pages_per_s,
            cpu: 0.5,
            cpu_time: Duration::from_secs(seconds),
            window: Duration::from_secs(100),
            window_bytes: 7,
        };
        let kept = left(drive("shop", 20, 3), drive("shop", 10, 9));
        assert_eq!(kept, Some((drive("shop", 10, 3), 100)));
        assert_eq!(left(drive("shop", 20, 3), drive("other", 20, 3)), None);
    }
}
