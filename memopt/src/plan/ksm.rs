//! Windows for ksmd: opened for marked memory, closed when they return nothing more.

use std::time::Duration;

use super::afford::SCANS_PER_PAGE;
use super::domain::Domain;
use super::merge::Marked;
use super::need::Need;
use super::sheet::Draft;
use super::view::Context;
use crate::ledger::WindowEnd;
use crate::policy::Actuator;
use crate::step::{Action, Step};
use crate::units::signed;

impl Context<'_> {
    /// Drafts the step that opens or closes the window.
    pub(super) fn windows(
        &self,
        domain: Option<&Domain>,
        marked: &Marked,
        need: &mut Need,
        draft: &mut Draft,
    ) {
        if self.situation.host.ksm.is_none() {
            return;
        }
        let open = self.ledger.ksm.window;
        let of_last = || self.ledger.ksm.domain.as_ref().map_or(String::new(), |it| it.0.clone());
        if let Some(window) = open {
            if let Some(reason) = self.closes(window.end, domain) {
                let action = Action::StopKsm { domain: of_last() };
                draft.step(action, 0, Duration::ZERO, reason);
            }
            return;
        }
        let Some(domain) = domain.filter(|domain| domain.exposed.is_empty()) else { return };
        if self.ksmd_time().is_zero() {
            return;
        }
        let Marked { waiting_bytes, pages } = *marked;
        let marks = |step: &&Step| matches!(step.action, Action::Merge { .. });
        let marked = draft.steps.iter().filter(marks).map(|step| step.expected_bytes);
        let marked_bytes = marked.fold(0, i64::saturating_add);
        let enough = signed(self.policy.merge.gain_min_bytes.max(1));
        let is_pause = self.ledger.uptime < self.ledger.ksm.paused_until;
        let is_asked =
            marked_bytes >= enough || (waiting_bytes >= enough && !is_pause && !need.is_met());
        if !is_asked || self.ledger.bench(None, Actuator::Merge).is_some() {
            return;
        }
        let waiting_bytes = if is_pause { 0 } else { waiting_bytes };
        need.met_by(waiting_bytes);
        let policy = &self.policy.merge;
        let rate = self.ledger.ksm.pages_per_cpu_second();
        let pages_per_s = policy.pages_per_s.min((rate as f64 * policy.cpu) as u64).max(1);
        let page_scans = pages as f64 * SCANS_PER_PAGE;
        let cpu_time = Duration::from_secs_f64(page_scans / rate as f64).min(self.ksmd_time());
        let wanted_bytes = marked_bytes.saturating_add(waiting_bytes);
        let action = Action::DriveKsm {
            domain: domain.choice.domain.clone(),
            pages_per_s,
            cpu: policy.cpu,
            cpu_time: policy.cpu_time,
            window: policy.window,
            window_bytes: wanted_bytes,
        };
        let reason = "what is marked is merged only while ksmd runs".to_owned();
        draft.step(action, waiting_bytes, cpu_time, reason);
    }

    fn closes(&self, end: Option<WindowEnd>, domain: Option<&Domain>) -> Option<String> {
        let of_last = self.ledger.ksm.domain.as_ref().map(|(name, _)| name.as_str());
        let exposed = domain.and_then(|domain| domain.exposed.first());
        match (end, domain) {
            (Some(WindowEnd::Flat), _) => {
                Some("all memory was scanned, and the profit no longer rises".to_owned())
            }
            (Some(WindowEnd::Over), _) => Some("its time, or its CPU time, is over".to_owned()),
            (Some(WindowEnd::Stopped), _) => Some("another program stopped ksmd".to_owned()),
            (None, None) => Some("no merge domain is left to be merged".to_owned()),
            (None, Some(domain)) if Some(domain.choice.domain.as_str()) != of_last => {
                Some(format!("domain {} is to be merged now", domain.choice.domain))
            }
            (None, Some(_)) => exposed.map(|other| format!("{other} could share pages with it")),
        }
    }
}
