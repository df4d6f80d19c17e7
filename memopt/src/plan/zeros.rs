//! Pages of zeros go back to the host: no other guest is needed for that, and no ksmd.

use std::time::Duration;

use super::action::Action;
use super::because::Because;
use super::chunks::{self, Chosen, MayMerge};
use super::domain::Domain;
use super::need::Need;
use super::sheet::Draft;
use super::view::{Context, View};
use crate::policy::{Actuator, signed};
use crate::situation::Backing;

/// Splitting a huge page, and freeing what is zero of it: 430 us measured, with a quarter of it zeros (nested).
const CPU_PER_CHUNK: Duration = Duration::from_micros(450);

impl Context<'_> {
    /// Guests give their zeros back, those with the most of them first, until the goal is met. What comes after sees them as they
    /// will be then.
    pub(super) fn zeros(
        &self,
        views: &mut [View<'_>],
        domain: Option<&Domain>,
        need: &mut Need,
        draft: &mut Draft,
    ) {
        let mut found = Vec::new();
        for view in views {
            match self.zero_chunks(view, domain) {
                Ok(chosen) => found.push((view, chosen)),
                Err(because) => draft.skip(view.name(), Actuator::Zeros, because),
            }
        }
        found.sort_by(|a, b| (b.1.bytes, a.0.name()).cmp(&(a.1.bytes, b.0.name())));
        for (view, chosen) in found {
            if need.is_met() {
                draft.skip(view.name(), Actuator::Zeros, Because::HostHasEnough);
                continue;
            }
            let count = u32::try_from(chosen.chunks.len()).unwrap_or(u32::MAX);
            let (chunks, expected) = chosen.into_ranges();
            need.met_by(expected);
            let action = Action::DropZeros { guest: view.name().to_owned(), chunks };
            view.note(&action);
            let reason = "their pages of zeros come back without merging".to_owned();
            draft.step(action, expected, CPU_PER_CHUNK.saturating_mul(count), reason);
        }
    }

    fn zero_chunks(&self, view: &View<'_>, domain: Option<&Domain>) -> Result<Chosen, Because> {
        if let Some(because) = self.forbidden(view, Actuator::Zeros) {
            return Err(because);
        }
        if !view.limits.take {
            return Err(Because::NotTaken);
        }
        if !view.is_ours() {
            return Err(Because::ForeignVmm);
        }
        if view.guest.backing != Backing::Anonymous {
            return Err(Because::WrongBacking { backing: view.guest.backing });
        }
        if view.guest.is_preallocated {
            return Err(Because::Preallocated);
        }
        let is_merged = self.may_be_merged(view, domain).is_ok();
        let may_merge = if is_merged { MayMerge::Yes } else { MayMerge::No };
        let chosen = chunks::of_zeros(view.survey()?, may_merge, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(Because::FewZeros);
        }
        Ok(chosen)
    }
}
