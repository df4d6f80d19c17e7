//! Returns pages of zeros to the host, which needs neither another guest nor ksmd.

use std::collections::BTreeSet;
use std::time::Duration;

use super::chunks::{self, Chosen, MayMerge};
use super::domain::Domain;
use super::give::Giving;
use super::need::Need;
use super::sheet::Draft;
use super::skip_reason::SkipReason;
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::{Backing, Chunk};
use crate::step::Action;
use crate::units::signed;

const DROPPING: Giving = Giving {
    actuator: Actuator::Zeros,
    reason: "their pages of zeros come back without merging",
    // Splitting a huge page and freeing its zero pages: 430 us measured, with a quarter of it zeros
    // (nested).
    cpu_per_chunk: Duration::from_micros(450),
    action: |guest, chunks| Action::DropZeros { guest, chunks },
};

impl Context<'_> {
    /// Drafts steps in which guests drop their zero pages until the goal is met, those with the
    /// most first. The views are updated with the effect, for the decisions that follow.
    pub(super) fn zeros(
        &self,
        views: &mut [View<'_>],
        domain: Option<&Domain>,
        need: &mut Need,
        draft: &mut Draft,
    ) {
        // Chunks that ksmd has no CPU time for keep their huge pages.
        let paid = self.paid_chunks(views, domain);
        let find = |view: &View<'_>| self.zero_chunks(view, domain, paid.as_ref());
        DROPPING.draft(views.iter_mut(), find, need, draft, View::note);
    }

    fn zero_chunks(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
        paid: Option<&BTreeSet<u32>>,
    ) -> Result<Chosen, SkipReason> {
        self.may_take(view, Actuator::Zeros)?;
        if !view.takes_chunks() {
            return Err(SkipReason::ForeignVmm);
        }
        if view.guest.backing != Backing::Anonymous {
            return Err(SkipReason::WrongBacking { backing: view.guest.backing });
        }
        if view.guest.is_preallocated {
            return Err(SkipReason::Preallocated);
        }
        let is_merged = self.may_be_merged(view, domain).is_ok();
        let may_merge = |chunk: &Chunk| match paid.is_none_or(|paid| paid.contains(&chunk.index)) {
            true if is_merged => MayMerge::Yes,
            _ => MayMerge::No,
        };
        let chosen = chunks::of_zeros(view.survey()?, may_merge, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(SkipReason::FewZeros);
        }
        Ok(chosen)
    }
}
