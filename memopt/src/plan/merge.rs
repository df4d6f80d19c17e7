//! Merging within the domain that may, and taking apart what may not be merged.

use std::time::Duration;

use super::action::Action;
use super::because::{Advice, Because};
use super::chunks::{self, Chosen, Sorted};
use super::domain::Domain;
use super::need::Need;
use super::sheet::Draft;
use super::view::{Context, View};
use crate::policy::{Actuator, Size, signed};
use crate::situation::Backing;

/// A guest of the domain, with what its chunks are worth.
struct Candidate<'v, 'a> {
    view: &'v View<'a>,
    sorted: Sorted,
}

impl Context<'_> {
    /// Takes apart what the kernel could merge with the wrong guests, and marks what is worth it. Returns what
    /// windows would bring in for guests that are marked already.
    pub(super) fn merges(
        &self,
        free: &[View<'_>],
        domain: Option<&Domain>,
        need: &mut Need,
        draft: &mut Draft,
    ) -> i64 {
        let mut candidates = Vec::new();
        for view in free {
            match self.candidate(view, domain) {
                Ok(Some(sorted)) => candidates.push(Candidate { view, sorted }),
                Ok(None) => unmerge_all(view, domain, draft),
                Err(because) => draft.skip(view.name(), Actuator::Merge, because),
            }
            if view.guest.is_mergeable && view.limits.merge_domain.is_none() && !view.is_ours() {
                draft.advice.push(Advice::NameDomain { guest: view.name().to_owned() });
            }
        }
        self.take_apart(&mut candidates, need, draft);
        self.mark(candidates, need, draft)
    }

    /// What the chunks of a guest are worth; `None` for one that has to be taken apart as a whole.
    fn candidate(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
    ) -> Result<Option<Sorted>, Because> {
        // For the tenants' sake, whatever else holds for it.
        if view.guest.is_mergeable && is_of_other(view, domain) {
            return if view.is_ours() { Ok(None) } else { Err(Because::ForeignVmm) };
        }
        self.may_be_merged(view, domain)?;
        Ok(Some(chunks::sort(view.survey()?, self.policy)))
    }

    /// Whether the kernel may merge chunks of a guest, or why not.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_be_merged(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
    ) -> Result<(), Because> {
        self.may_take(view, Actuator::Merge)?;
        if !matches!(view.guest.backing, Backing::Anonymous | Backing::Template) {
            return Err(Because::WrongBacking { backing: view.guest.backing });
        }
        if view.limits.merge_domain.is_none() {
            return Err(Because::NoDomain);
        }
        if self.situation.host.ksm.is_none() {
            return Err(Because::NoKsm);
        }
        if let Some(bench) = self.ledger.bench(None, Actuator::Merge) {
            let left = bench.until.saturating_sub(self.ledger.uptime);
            return Err(Because::Benched { reason: bench.reason.clone(), left });
        }
        let Some(domain) = domain else { return Err(Because::NoProfit) };
        if is_of_other(view, Some(domain)) {
            return Err(Because::OtherDomain { domain: domain.choice.domain.clone() });
        }
        if let Some(guest) = domain.exposed.first() {
            return Err(Because::Exposed { guest: guest.clone() });
        }
        Ok(())
    }

    /// Takes chunks apart that turned hot or poor, as far as the host has the memory for it.
    fn take_apart(&self, candidates: &mut [Candidate<'_, '_>], need: &mut Need, draft: &mut Draft) {
        for Candidate { view, sorted } in candidates {
            let chosen = std::mem::take(&mut sorted.unmerge);
            if chosen.is_empty() || !view.is_ours() {
                continue;
            }
            if !need.spend(chosen.bytes.min(0).unsigned_abs()) {
                draft.skip(view.name(), Actuator::Merge, Because::HostShort);
                continue;
            }
            let (chunks, expected) = chosen.into_ranges();
            let action = Action::Unmerge { guest: view.name().to_owned(), chunks: Some(chunks) };
            let reason = "they are written too often, or have too few equals".to_owned();
            draft.step(action, expected, Duration::from_millis(1), reason);
        }
    }

    /// Marks what is worth merging, the guests with the most to gain first, until the goal is met.
    fn mark(&self, candidates: Vec<Candidate<'_, '_>>, need: &mut Need, draft: &mut Draft) -> i64 {
        let mut waiting_bytes = 0_i64;
        let mut order = Vec::new();
        for Candidate { view, sorted } in candidates {
            if view.guest.is_mergeable {
                let merged = signed(view.guest.cost.merged_bytes.unwrap_or(0));
                let marked = if view.is_ours() { sorted.stay.bytes } else { all_of(&sorted) };
                waiting_bytes = waiting_bytes.saturating_add(marked.saturating_sub(merged).max(0));
            }
            let is_marked = !sorted.stay.is_empty();
            order.push((view, sorted.merge, is_marked));
        }
        order.sort_by(|a, b| (b.1.bytes, a.0.name()).cmp(&(a.1.bytes, b.0.name())));
        for (view, chosen, is_marked) in order {
            match self.unmarked(view, &chosen, is_marked, need) {
                Some(because) => draft.skip(view.name(), Actuator::Merge, because),
                None => mark_one(view, chosen, need, draft),
            }
        }
        waiting_bytes
    }

    fn unmarked(
        &self,
        view: &View<'_>,
        chosen: &Chosen,
        is_marked: bool,
        need: &Need,
    ) -> Option<Because> {
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            Some(if is_marked { Because::Marked } else { Because::NoProfit })
        } else if need.is_met() {
            Some(Because::HostHasEnough)
        } else if !view.is_ours() {
            Some(Because::ForeignVmm)
        } else {
            None
        }
    }
}

/// Whether a guest belongs to no domain, or not to the one that is merged.
fn is_of_other(view: &View<'_>, domain: Option<&Domain>) -> bool {
    let own = view.limits.merge_domain.as_deref();
    let chosen = domain.map(|domain| domain.choice.domain.as_str());
    own.is_none() || (chosen.is_some() && own != chosen)
}

/// What a guest has to gain that is marked as a whole.
fn all_of(sorted: &Sorted) -> i64 {
    sorted.stay.bytes.saturating_add(sorted.merge.bytes)
}

fn mark_one(view: &View<'_>, chosen: Chosen, need: &mut Need, draft: &mut Draft) {
    let count = chosen.chunks.len();
    let (chunks, expected) = chosen.into_ranges();
    need.met_by(expected);
    let each = Size(expected / i64::try_from(count.max(1)).unwrap_or(i64::MAX));
    let reason = format!("they are still, and merging brings {each} of each 2 MiB");
    let cpu = Duration::from_micros(chunks.len() as u64);
    draft.step(Action::Merge { guest: view.name().to_owned(), chunks }, expected, cpu, reason);
}

/// Takes a guest apart that the kernel could merge with others than its own.
fn unmerge_all(view: &View<'_>, domain: Option<&Domain>, draft: &mut Draft) {
    let merged = view.guest.cost.merged_bytes.unwrap_or(0);
    let reason = match (view.limits.merge_domain.as_ref(), domain) {
        (None, _) => "its pages are its own".to_owned(),
        (Some(own), Some(domain)) => {
            format!("it is of domain {own}, and {} is merged now", domain.choice.domain)
        }
        (Some(own), None) => format!("domain {own} is merged no more"),
    };
    let action = Action::Unmerge { guest: view.name().to_owned(), chunks: None };
    // Copying them apart: about 4 GiB/s.
    let cpu = Duration::from_nanos(merged / 4);
    draft.step(action, -signed(merged), cpu, reason);
}
