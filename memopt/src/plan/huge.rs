//! Huge pages for hot memory.

use std::time::Duration;

use super::chunks::{self, Chosen, Marks};
use super::need::Need;
use super::sheet::Draft;
use super::skip_reason::SkipReason;
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::Backing;
use crate::step::Action;

/// Copying 2 MiB, and updating the page tables.
const CPU_PER_CHUNK: Duration = Duration::from_micros(500);

impl Context<'_> {
    /// Drafts steps that make hot chunks huge, as far as the host has the memory to fill their
    /// holes.
    pub(super) fn hot(&self, views: &[View<'_>], need: &mut Need, draft: &mut Draft) {
        for view in views {
            match self.hot_chunks(view) {
                Ok(chosen) => self.make_huge(view, chosen, need, draft),
                Err(skip_reason) => draft.skip(view.name(), Actuator::Huge, skip_reason),
            }
        }
    }

    fn hot_chunks(&self, view: &View<'_>) -> Result<Chosen, SkipReason> {
        self.may_take(view, Actuator::Huge)?;
        // Guests of other programs are surveyed only if they are mergeable and have a merge domain.
        let may_be_seen = view.guest.is_mergeable && view.limits.merge_domain.is_some();
        if !view.takes_chunks() && !may_be_seen {
            return Err(SkipReason::ForeignVmm);
        }
        if view.guest.backing != Backing::Anonymous {
            return Err(SkipReason::WrongBacking { backing: view.guest.backing });
        }
        let survey = view.survey()?;
        let marks = if view.takes_chunks() { Marks::Ours } else { Marks::Theirs };
        let mut chosen = chunks::hot(survey, marks, self.policy);
        if chosen.is_empty() {
            return Err(SkipReason::NothingHot);
        }
        // Prefer the chunks that cost least.
        chosen.chunks.sort_by_key(|worth| (std::cmp::Reverse(worth.bytes), worth.index));
        chosen.chunks.truncate(self.policy.huge.chunks_max as usize);
        Ok(chosen)
    }

    fn make_huge(&self, view: &View<'_>, chosen: Chosen, need: &mut Need, draft: &mut Draft) {
        let count = chosen.chunks.len();
        let (chunks, expected) = chosen.into_ranges();
        if !need.spend(expected.unsigned_abs()) {
            return draft.skip(view.name(), Actuator::Huge, SkipReason::HostShort);
        }
        let action = Action::MakeHuge { guest: view.name().to_owned(), chunks };
        let cpu = CPU_PER_CHUNK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        draft.step(action, expected, cpu, "they are hot and consist of small pages".to_owned());
    }
}
