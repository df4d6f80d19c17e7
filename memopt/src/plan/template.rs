//! Sharing with the template again: for clones, of any merge domain.

use std::time::Duration;

use super::action::Action;
use super::because::Because;
use super::chunks::{self, Chosen};
use super::need::Need;
use super::sheet::Draft;
use super::view::{Context, View};
use crate::policy::{Actuator, signed};
use crate::situation::Backing;

/// Comparing a page and dropping it: 621,000 a second (EPYC, nested).
const CPU_PER_CHUNK: Duration = Duration::from_micros(825);

impl Context<'_> {
    /// Clones drop what equals their template, those with the most of it first, until the goal is met. What else
    /// could merge the same pages waits: returns the clones' names.
    pub(super) fn templates(
        &self,
        views: &[View<'_>],
        need: &mut Need,
        draft: &mut Draft,
    ) -> Vec<String> {
        let mut found: Vec<(&View<'_>, Chosen)> = Vec::new();
        for view in views.iter().filter(|view| view.guest.backing == Backing::Template) {
            match self.equal_chunks(view) {
                Ok(chosen) => found.push((view, chosen)),
                Err(because) => draft.skip(view.name(), Actuator::Template, because),
            }
        }
        found.sort_by(|a, b| (b.1.bytes, a.0.name()).cmp(&(a.1.bytes, b.0.name())));
        let mut clones = Vec::new();
        for (view, chosen) in found {
            if need.is_met() {
                draft.skip(view.name(), Actuator::Template, Because::HostHasEnough);
                continue;
            }
            let count = u32::try_from(chosen.chunks.len()).unwrap_or(u32::MAX);
            let (chunks, expected) = chosen.into_ranges();
            need.met_by(expected);
            let action = Action::RemergeTemplate { guest: view.name().to_owned(), chunks };
            let reason = "pages that it wrote equal its template's again".to_owned();
            draft.step(action, expected, CPU_PER_CHUNK.saturating_mul(count), reason);
            clones.push(view.name().to_owned());
        }
        clones
    }

    fn equal_chunks(&self, view: &View<'_>) -> Result<Chosen, Because> {
        if let Some(because) = self.forbidden(view, Actuator::Template) {
            return Err(because);
        }
        if !view.limits.take {
            return Err(Because::NotTaken);
        }
        if !view.is_ours() {
            return Err(Because::ForeignVmm);
        }
        let survey = view.survey()?;
        let chosen = chunks::like_template(survey, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(Because::NoProfit);
        }
        Ok(chosen)
    }
}
