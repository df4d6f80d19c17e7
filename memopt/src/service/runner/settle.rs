//! Waits until the effects of a round's steps can be measured, and checks them.

use std::collections::BTreeSet;

use super::{Pending, Run, is_of_window};
use crate::history::StepResult;
use crate::service::core::Core;
use crate::service::error::ServiceError;
use crate::service::events::Event;
use crate::service::view::none;
use crate::situation::{Guest, Situation};
use crate::step::Action;
use crate::verify::{Outcome, Verdict};

impl Run {
    /// Inspects the host repeatedly, and checks each step once it has settled. When the run must
    /// end, checks the remaining steps at once.
    pub(super) async fn settle(
        &mut self,
        mut pending: Vec<Pending>,
        names: &BTreeSet<String>,
    ) -> Result<(), ServiceError> {
        while !pending.is_empty() {
            self.pause().await;
            let must_end = self.must_end().is_some();
            if must_end {
                self.handle.call(|core| core.host.end_window()).await;
            }
            let drives_ksm = self.handle.call(|core| core.host.drives_ksm()).await;
            if !must_end && self.nothing_shows_yet(&pending, drives_ksm) {
                continue;
            }
            self.note_window_end().await;
            let mut now = self.inspect(none()).await?;
            let drives_ksm = self.handle.call(|core| core.host.drives_ksm()).await;
            // A step that relies on ksmd is settled when ksmd's window has ended.
            let window_is_over = |pending: &Pending| is_of_window(pending) && !drives_ksm;
            let is_over = |pending: &Pending, now: &Situation| {
                must_end || pending.expectation.is_settled(now) || window_is_over(pending)
            };
            if pending.iter().any(|pending| is_over(pending, &now)) {
                let names = names.clone();
                let is_concerned = move |guest: &Guest| names.contains(&guest.name);
                now = self.inspect(Box::new(is_concerned)).await?;
            }
            let (over, rest): (Vec<_>, Vec<_>) =
                pending.into_iter().partition(|pending| is_over(pending, &now));
            pending = rest;
            self.check_all(over, &now).await;
        }
        Ok(())
    }

    /// Whether an inspection would reveal nothing about these steps: a window shows its effect when
    /// it is over, and other steps, except those of balloons, are given their time. Inspecting all
    /// guests every second would take a fifth of the CPU time that ksmd uses. Guests under pressure
    /// still get their memory back (`watch`).
    fn nothing_shows_yet(&self, pending: &[Pending], drives_ksm: bool) -> bool {
        let now = self.handle.uptime();
        pending.iter().all(|pending| {
            let is_of_balloon =
                matches!(pending.expectation.step.action, Action::SetBalloon { .. });
            let shows_by_itself = is_of_balloon || (is_of_window(pending) && !drives_ksm);
            !shows_by_itself && pending.expectation.due > now
        })
    }

    async fn note_window_end(&mut self) {
        let Some(outcome) = self.handle.call(|core| core.host.take_outcome()).await else { return };
        let merge = &mut self.order.policy.merge;
        // The remaining CPU time is for later windows.
        merge.cpu_time = merge.cpu_time.saturating_sub(outcome.cpu.unwrap_or_default());
        let (end, merge) = (outcome.end.into(), *merge);
        let note = move |core: &mut Core<'_>| {
            let uptime = core.now().uptime;
            core.remember(|ledger| ledger.ksm.ended(end, uptime, &merge));
        };
        self.handle.call(note).await;
    }

    pub(super) async fn check_all(&mut self, steps: Vec<Pending>, now: &Situation) {
        for step in steps {
            self.check(&step, now).await;
        }
    }

    async fn check(&mut self, pending: &Pending, now: &Situation) {
        let outcome = pending.expectation.check(now);
        tracing::info!(run = %self.id, expected_bytes = outcome.expected_bytes, verified_bytes = outcome.returned_bytes, "{outcome}");
        self.handle.notice(&Event::Verified(&outcome));
        self.returned_bytes = self.returned_bytes.saturating_add(outcome.returned_bytes);
        let error = (outcome.verdict == Verdict::Nothing).then(|| outcome.reason.clone());
        let found = StepResult {
            index: pending.index,
            verified_bytes: Some(outcome.returned_bytes),
            error,
        };
        self.conclude(found, &outcome).await;
    }

    /// Records the result of a step in the history, and its outcome in the ledger.
    pub(super) async fn conclude(&self, found: StepResult, outcome: &Outcome) {
        self.record_results(vec![found]).await;
        let outcome = outcome.clone();
        let note = move |core: &mut Core<'_>| core.remember(|ledger| ledger.verified(&outcome));
        self.handle.call(note).await;
    }
}
