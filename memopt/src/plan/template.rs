//! Shares pages with the template again, for clones of any merge domain.

use std::time::Duration;

use super::chunks::{self, Chosen};
use super::give::Giving;
use super::need::Need;
use super::sheet::Draft;
use super::skip_reason::SkipReason;
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::Backing;
use crate::step::Action;
use crate::units::signed;

const SHARING: Giving = Giving {
    actuator: Actuator::Template,
    reason: "pages that it wrote equal its template's again",
    // Comparing and dropping a page: 621,000 per second (EPYC, nested).
    cpu_per_chunk: Duration::from_micros(825),
    action: |guest, chunks| Action::RemergeTemplate { guest, chunks },
};

impl Context<'_> {
    /// Drafts steps in which clones drop what equals their template until the goal is met, those
    /// with the most first. Returns the names of these clones: other ways of merging the same pages
    /// have to wait.
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

    fn equal_chunks(&self, view: &View<'_>) -> Result<Chosen, SkipReason> {
        self.may_take(view, Actuator::Template)?;
        if !view.takes_chunks() {
            return Err(SkipReason::ForeignVmm);
        }
        let survey = view.survey()?;
        let chosen = chunks::like_template(survey, self.policy);
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            return Err(SkipReason::FewEqual);
        }
        Ok(chosen)
    }
}
