//! Lets guests return pages without a balloon, those with the most first, until the goal is met.

use std::ops::Deref;
use std::time::Duration;

use super::chunks::Chosen;
use super::need::Need;
use super::sheet::Draft;
use super::skip_reason::SkipReason;
use super::view::View;
use crate::policy::Actuator;
use crate::step::{Action, ChunkRange};

/// A way in which guests return pages.
pub(super) struct Giving {
    pub(super) actuator: Actuator,
    /// Reason for the step, in one sentence.
    pub(super) reason: &'static str,
    pub(super) cpu_per_chunk: Duration,
    /// Builds the action from the name of the guest and its chunks.
    pub(super) action: fn(String, Vec<ChunkRange>) -> Action,
}

impl Giving {
    /// Drafts steps that return the chunks that `find` selects in `views`, as long as the goal is
    /// not met. Calls `drafted` with the view of each guest that gets a step, and its action.
    pub(super) fn draft<'a, V: Deref<Target = View<'a>>>(
        &self,
        views: impl Iterator<Item = V>,
        find: impl Fn(&View<'a>) -> Result<Chosen, SkipReason>,
        need: &mut Need,
        draft: &mut Draft,
        mut drafted: impl FnMut(V, &Action),
    ) {
        let mut found = Vec::new();
        for view in views {
            match find(&view) {
                Ok(chosen) => found.push((view, chosen)),
                Err(skip_reason) => draft.skip(view.name(), self.actuator, skip_reason),
            }
        }
        found.sort_by(|a, b| (b.1.bytes, a.0.name()).cmp(&(a.1.bytes, b.0.name())));
        for (view, chosen) in found {
            if need.is_met() {
                draft.skip(view.name(), self.actuator, SkipReason::HostHasEnough);
                continue;
            }
            let count = u32::try_from(chosen.chunks.len()).unwrap_or(u32::MAX);
            let (chunks, expected) = chosen.into_ranges();
            need.met_by(expected);
            let action = (self.action)(view.name().to_owned(), chunks);
            drafted(view, &action);
            let cpu = self.cpu_per_chunk.saturating_mul(count);
            draft.step(action, expected, cpu, self.reason.to_owned());
        }
    }
}
