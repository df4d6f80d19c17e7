//! Merges within the chosen domain, and unmerges what must not be merged.

use std::collections::BTreeSet;
use std::ptr;
use std::time::Duration;

use super::afford;
use super::chunks::{self, Chosen, Sorted, Worth};
use super::domain::Domain;
use super::need::Need;
use super::sheet::Draft;
use super::skip_reason::{Advice, SkipReason};
use super::view::{Context, View};
use crate::policy::Actuator;
use crate::situation::{Backing, Guest};
use crate::step::Action;
use crate::units::{Size, signed};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// A guest of the domain, with the value of its chunks.
struct Candidate<'v, 'a> {
    view: &'v View<'a>,
    sorted: Sorted,
    /// Whether chunks are left out because ksmd has no CPU time for them.
    is_cut: bool,
}

impl Candidate<'_, '_> {
    /// Whether some of its pages may be merged already. Assumed if the kernel does not report it.
    fn is_merged(&self) -> bool {
        !self.view.takes_chunks() || self.view.guest.cost.merged_bytes.is_none_or(|bytes| bytes > 0)
    }

    /// Returns the chunks that ksmd scans only if the plan marks them.
    fn open_chunks(&self) -> impl Iterator<Item = Worth> {
        let stay = if self.is_merged() { &[][..] } else { &self.sorted.stay.chunks };
        let merge = if self.view.takes_chunks() { &self.sorted.merge.chunks[..] } else { &[] };
        merge.iter().chain(stay).copied()
    }

    /// Returns the number of pages that ksmd scans in any case.
    fn pages_that_stay(&self) -> u64 {
        if self.is_merged() { self.marked_pages() } else { 0 }
    }

    /// Returns the number of marked pages. Marks of other programs cannot be removed.
    fn marked_pages(&self) -> u64 {
        let Sorted { merge, stay, unmerge } = &self.sorted;
        match self.view.takes_chunks() {
            true => stay.pages(),
            false => merge.pages() + stay.pages() + unmerge.pages(),
        }
    }
}

/// The mergeable memory of the domain after the steps of the plan.
pub(super) struct Marked {
    /// Bytes that guests marked earlier have yet to gain.
    pub(super) waiting_bytes: i64,
    /// Pages that ksmd scans.
    pub(super) pages: u64,
}

impl Context<'_> {
    /// Unmerges what the kernel could merge with the wrong guests, and marks what is worth merging.
    pub(super) fn merges(
        &self,
        free: &[View<'_>],
        domain: Option<&Domain>,
        need: &mut Need,
        draft: &mut Draft,
    ) -> Marked {
        let mut candidates = Vec::new();
        for view in free {
            match self.candidate(view, domain) {
                Ok(Some(sorted)) => {
                    candidates.push(Candidate { view, sorted, is_cut: false });
                }
                Ok(None) => unmerge_all(view, domain, draft),
                Err(skip_reason) => draft.skip(view.name(), Actuator::Merge, skip_reason),
            }
            if view.guest.is_mergeable && view.limits.merge_domain.is_none() && !view.takes_chunks()
            {
                draft.advice.push(Advice::NameDomain { guest: view.name().to_owned() });
            }
        }
        self.cut(&mut candidates);
        self.unmerge_chunks(&mut candidates, need, draft);
        self.mark(candidates, need, draft)
    }

    /// Returns the indices of the chunks of `views` that ksmd has the CPU time for; `None` when it
    /// has enough for all.
    pub(super) fn paid_chunks(
        &self,
        views: &[View<'_>],
        domain: Option<&Domain>,
    ) -> Option<BTreeSet<u32>> {
        let candidates = views.iter().filter_map(|view| {
            let sorted = self.candidate(view, domain).ok().flatten()?;
            Some(Candidate { view, sorted, is_cut: false })
        });
        self.paid(&candidates.collect::<Vec<_>>())
    }

    fn paid(&self, candidates: &[Candidate<'_, '_>]) -> Option<BTreeSet<u32>> {
        let open = || candidates.iter().flat_map(Candidate::open_chunks);
        let stays = candidates.iter().map(Candidate::pages_that_stay).sum::<u64>();
        let stays = stays.saturating_add(self.pages_of_others(candidates));
        afford::best(open(), self.affordable_pages().saturating_sub(stays))
    }

    /// Returns the pages of guests that cannot be acted on now or were not surveyed: ksmd scans
    /// their marked memory all the same.
    fn pages_of_others(&self, candidates: &[Candidate<'_, '_>]) -> u64 {
        let is_other = |guest: &&Guest| !candidates.iter().any(|it| ptr::eq(it.view.guest, *guest));
        let marked = self.situation.guests.iter().filter(|guest| guest.is_mergeable);
        let pages = marked.filter(is_other).map(|guest| guest.cost.resident_bytes / PAGE_BYTES);
        pages.fold(0, u64::saturating_add)
    }

    /// Drops the chunks that ksmd has no CPU time for. What is merged already stays merged.
    fn cut(&self, candidates: &mut [Candidate<'_, '_>]) {
        let Some(paid) = self.paid(candidates) else { return };
        for candidate in candidates {
            let is_merged = candidate.is_merged();
            let Candidate { sorted, is_cut, .. } = candidate;
            let (merge, rest) = std::mem::take(&mut sorted.merge).split(&paid);
            (sorted.merge, *is_cut) = (merge, !rest.is_empty());
            if !is_merged {
                let (stay, rest) = std::mem::take(&mut sorted.stay).split(&paid);
                (sorted.stay, *is_cut) = (stay, *is_cut || !rest.is_empty());
                rest.chunks.iter().for_each(|it| sorted.unmerge.push(Worth { bytes: 0, ..*it }));
            }
        }
    }

    /// Returns the value of a guest's chunks; `None` for a guest that has to be unmerged as a
    /// whole.
    fn candidate(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
    ) -> Result<Option<Sorted>, SkipReason> {
        // Isolation between tenants comes first, whatever else applies to the guest.
        if view.guest.is_mergeable && is_of_other(view, domain) {
            return match view.takes_chunks() {
                true => Ok(None),
                false if view.limits.lacks_user => Err(SkipReason::DomainByNameAlone),
                false => Err(SkipReason::ForeignVmm),
            };
        }
        self.may_be_merged(view, domain)?;
        Ok(Some(chunks::sort(view.survey()?, self.policy)))
    }

    /// Checks whether the kernel may merge chunks of a guest.
    ///
    /// # Errors
    /// If it may not; the error is the reason.
    pub(super) fn may_be_merged(
        &self,
        view: &View<'_>,
        domain: Option<&Domain>,
    ) -> Result<(), SkipReason> {
        self.may_take(view, Actuator::Merge)?;
        if !matches!(view.guest.backing, Backing::Anonymous | Backing::Template) {
            return Err(SkipReason::WrongBacking { backing: view.guest.backing });
        }
        if view.limits.lacks_user {
            return Err(SkipReason::DomainByNameAlone);
        }
        if view.limits.merge_domain.is_none() {
            return Err(SkipReason::NoDomain);
        }
        if let Some(domain) = &view.guest.merged_instead {
            return Err(SkipReason::OtherDomain { domain: domain.clone() });
        }
        if self.situation.host.ksm.is_none() {
            return Err(SkipReason::NoKsm);
        }
        if let Some(bench) = self.ledger.bench(None, Actuator::Merge) {
            let left = bench.until.saturating_sub(self.ledger.uptime);
            return Err(SkipReason::Benched { reason: bench.reason.clone(), left });
        }
        let Some(domain) = domain else { return Err(SkipReason::NoProfit) };
        if is_of_other(view, Some(domain)) {
            return Err(SkipReason::OtherDomain { domain: domain.choice.domain.clone() });
        }
        if let Some(other) = domain.exposed.first() {
            return Err(SkipReason::Exposed { other: other.clone() });
        }
        Ok(())
    }

    /// Unmerges chunks that became hot or lost their duplicates, as far as the host has memory for
    /// it.
    fn unmerge_chunks(
        &self,
        candidates: &mut [Candidate<'_, '_>],
        need: &mut Need,
        draft: &mut Draft,
    ) {
        for Candidate { view, sorted, is_cut } in candidates {
            let chosen = std::mem::take(&mut sorted.unmerge);
            if chosen.is_empty() || !view.takes_chunks() {
                continue;
            }
            if !need.spend(chosen.bytes.min(0).unsigned_abs()) {
                draft.skip(view.name(), Actuator::Merge, SkipReason::HostShort);
                continue;
            }
            let (chunks, expected) = chosen.into_ranges();
            let action = Action::Unmerge { guest: view.name().to_owned(), chunks: Some(chunks) };
            let reason = match is_cut {
                true => "they are too hot, have too few equals, or ksmd has no CPU time for them",
                false => "they are written too often, or have too few equals",
            };
            let reason = reason.to_owned();
            draft.step(action, expected, Duration::from_millis(1), reason);
        }
    }

    /// Marks what is worth merging until the goal is met, starting with the guests with the most to
    /// gain.
    fn mark(
        &self,
        candidates: Vec<Candidate<'_, '_>>,
        need: &mut Need,
        draft: &mut Draft,
    ) -> Marked {
        let pages = self.pages_of_others(&candidates);
        let mut marked = Marked { waiting_bytes: 0, pages };
        let mut order = Vec::new();
        for candidate in candidates {
            marked.pages += candidate.marked_pages();
            let Candidate { view, sorted, is_cut } = candidate;
            if view.guest.is_mergeable {
                let merged = signed(view.guest.cost.merged_bytes.unwrap_or(0));
                let worth = if view.takes_chunks() { sorted.stay.bytes } else { all_of(&sorted) };
                let waiting = worth.saturating_sub(merged).max(0);
                marked.waiting_bytes = marked.waiting_bytes.saturating_add(waiting);
            }
            let otherwise = match (is_cut, sorted.stay.is_empty()) {
                (true, _) => SkipReason::NoCpuTime,
                (false, false) => SkipReason::Marked,
                (false, true) => SkipReason::NoProfit,
            };
            order.push((view, sorted.merge, otherwise));
        }
        order.sort_by(|a, b| (b.1.bytes, a.0.name()).cmp(&(a.1.bytes, b.0.name())));
        for (view, chosen, otherwise) in order {
            match self.unmarked(view, &chosen, otherwise, need) {
                Some(skip_reason) => draft.skip(view.name(), Actuator::Merge, skip_reason),
                None => {
                    marked.pages += chosen.pages();
                    mark_one(view, chosen, need, draft);
                }
            }
        }
        marked
    }

    fn unmarked(
        &self,
        view: &View<'_>,
        chosen: &Chosen,
        otherwise: SkipReason,
        need: &Need,
    ) -> Option<SkipReason> {
        if chosen.bytes < signed(self.policy.merge.gain_min_bytes.max(1)) {
            Some(otherwise)
        } else if need.is_met() {
            Some(SkipReason::HostHasEnough)
        } else if !view.takes_chunks() {
            Some(SkipReason::ForeignVmm)
        } else {
            None
        }
    }
}

/// Whether a guest belongs to no domain, or to another one than the chosen one.
fn is_of_other(view: &View<'_>, domain: Option<&Domain>) -> bool {
    let own = view.limits.merge_domain.as_deref();
    let chosen = domain.map(|domain| domain.choice.domain.as_str());
    own.is_none() || (chosen.is_some() && own != chosen)
}

/// Returns what a guest whose whole memory is marked has to gain.
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

/// Unmerges a guest that the kernel could merge with guests outside its domain.
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
    // The kernel copies the pages apart at about 4 GiB/s.
    let cpu = Duration::from_nanos(merged / 4);
    draft.step(action, -signed(merged), cpu, reason);
}
