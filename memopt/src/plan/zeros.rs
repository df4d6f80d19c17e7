//! Pages of zeros go back to the host: no other guest is needed for that, and no ksmd.

use std::collections::BTreeSet;
use std::time::Duration;

use super::because::Because;
use super::chunks::{self, Chosen, MayMerge};
use super::domain::Domain;
use super::give::Giving;
use super::need::Need;
use super::sheet::Draft;
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::{Backing, Chunk};
use crate::step::Action;
use crate::units::signed;

const DROPPING: Giving = Giving {
    actuator: Actuator::Zeros,
    reason: "their pages of zeros come back without merging",
    // Splitting a huge page, and freeing what is zero of it: 430 us measured, with a quarter of it
    // zeros (nested).
    cpu_per_chunk: Duration::from_micros(450),
    action: |guest, chunks| Action::DropZeros { guest, chunks },
};

impl Context<'_> {
    /// Guests give their zeros back, those with the most of them first, until the goal is met. What
    /// comes after sees them as they will be then.
    pub(super) fn zeros(
        &self,
        views: &mut [View<'_>],
        domain: Option<&Domain>,
        need: &mut Need,
        draft: &mut Draft,
    ) {
        // What ksmd has no CPU time for keeps its huge pages.
        let paid = self.paid_chunks(views, domain);
        let find = |view: &View<'_>| self.zero_chunks(view, domain, paid.as_ref());
        DROPPING.draft(views.iter_mut(), find, need, draft, View::note);
    }

    fn zero_chunks(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
        paid: Option<&BTreeSet<u32>>,
    ) -> Result<Chosen, Because> {
        self.may_take(view, Actuator::Zeros)?;
        if !view.takes_chunks() {
            return Err(Because::ForeignVmm);
        }
        if view.guest.backing != Backing::Anonymous {
            return Err(Because::WrongBacking { backing: view.guest.backing });
        }
        if view.guest.is_preallocated {
            return Err(Because::Preallocated);
        }
        let is_merged = self.may_be_merged(view, domain).is_ok();
        let may_merge = |chunk: &Chunk| match paid.is_none_or(|paid| paid.contains(&chunk.index)) {
            true if is_merged => MayMerge::Yes,
            _ => MayMerge::No,
        };
        let chosen = chunks::of_zeros(view.survey()?, may_merge, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(Because::FewZeros);
        }
        Ok(chosen)
    }
}
