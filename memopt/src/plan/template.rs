//! Sharing with the template again: for clones, of any merge domain.

use std::time::Duration;

use super::because::Because;
use super::chunks::{self, Chosen};
use super::give::Giving;
use super::need::Need;
use super::sheet::Draft;
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::Backing;
use crate::step::Action;
use crate::units::signed;

const SHARING: Giving = Giving {
    actuator: Actuator::Template,
    reason: "pages that it wrote equal its template's again",
    // Comparing a page and dropping it: 621,000 a second (EPYC, nested).
    cpu_per_chunk: Duration::from_micros(825),
    action: |guest, chunks| Action::RemergeTemplate { guest, chunks },
};

impl Context<'_> {
    /// Clones drop what equals their template, those with the most of it first, until the goal is
    /// met. What else could merge the same pages waits: returns the clones' names.
    pub(super) fn templates(
        &self,
        views: &[View<'_>],
        need: &mut Need,
        draft: &mut Draft,
    ) -> Vec<String> {
        let views = views.iter().filter(|view| view.guest.backing == Backing::Template);
        let mut clones = Vec::new();
        let find = |view: &View<'_>| self.equal_chunks(view);
        SHARING.draft(views, find, need, draft, |view, _| clones.push(view.name().to_owned()));
        clones
    }

    fn equal_chunks(&self, view: &View<'_>) -> Result<Chosen, Because> {
        self.may_take(view, Actuator::Template)?;
        if !view.takes_chunks() {
            return Err(Because::ForeignVmm);
        }
        let survey = view.survey()?;
        let chosen = chunks::like_template(survey, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(Because::FewEqual);
        }
        Ok(chosen)
    }
}
