//! The balloons of all guests together: what each must get, who shares the memory that the host has
//! left, and who gives the memory that it wants.

use super::balloon::{BalloonDecision, STEP_MIN_BYTES, Spare, cpu_of};
use super::need::Need;
use super::share::{self, Holder};
use super::sheet::Draft;
use super::skip_reason::{Advice, SkipReason};
use super::view::{Context, View};
use crate::ledger::Level;
use crate::policy::{Actuator, Goal};
use crate::situation::Balloon;
use crate::step::Action;
use crate::units::{MIB, Size, signed};

/// Guests whose balloons are decided together.
#[derive(Default)]
struct Queues<'v, 'a> {
    wants: Vec<(&'v View<'a>, u64, String)>,
    spares: Vec<(&'v View<'a>, Spare)>,
    content: Vec<(&'v View<'a>, SkipReason)>,
}

impl Context<'_> {
    /// Drafts the balloon steps for `views`. `need` is what is still wanted after all other steps.
    pub(super) fn balloons(&self, views: &[View<'_>], mut need: Need, draft: &mut Draft) {
        let mut queues = Queues::default();
        for view in views {
            self.advise(view, draft);
            match self.decide_balloon(view) {
                BalloonDecision::Must { to_bytes, reason } => {
                    set(view, to_bytes, reason, draft);
                }
                BalloonDecision::Shrinks { to_bytes, reason } => {
                    // The guest's limit requires this step, but what it returns reduces what others
                    // have to give.
                    need.met_by(set(view, to_bytes, reason, draft));
                }
                BalloonDecision::Wants { to_bytes, reason } => {
                    queues.wants.push((view, to_bytes, reason));
                }
                BalloonDecision::Spare(spare) => queues.spares.push((view, spare)),
                BalloonDecision::Leave(skip_reason) => {
                    let under_way = self.under_way(view, &skip_reason);
                    draft.under_way_bytes = draft.under_way_bytes.saturating_add(under_way);
                    need.met_by(signed(under_way));
                    queues.content.push((view, skip_reason));
                }
            }
        }
        let granted = grow(std::mem::take(&mut queues.wants), need.growth_bytes, draft);
        need.spare_bytes = need.spare_bytes.saturating_sub(granted);
        if self.may_return(&need) {
            self.give_back(queues, need.spare_bytes, draft);
        } else {
            for (view, skip_reason) in queues.content {
                draft.skip(view.name(), Actuator::Balloon, skip_reason);
            }
            self.squeeze(queues.spares, &need, draft);
        }
    }

    /// Returns what a balloon that is still inflating will return: at most one step, whatever size
    /// the guest reports.
    fn under_way(&self, view: &View<'_>, skip_reason: &SkipReason) -> u64 {
        match (&view.guest.balloon, skip_reason) {
            (Some(balloon), SkipReason::Settling) => {
                let open = balloon.actual_bytes.saturating_sub(balloon.target_bytes);
                open.min(self.step(view, balloon))
            }
            _ => 0,
        }
    }

    /// Whether the host's spare memory is returned to the guests. This happens for a headroom goal,
    /// but not while memory is being collected.
    fn may_return(&self, need: &Need) -> bool {
        matches!(self.goal, Goal::Keep(_))
            && self.ledger.level == Level::Green
            && need.is_met()
            && need.spare_bytes >= STEP_MIN_BYTES
    }

    /// Returns the host's spare memory in steps to guests below their maximum, because their page
    /// caches can use it.
    fn give_back(&self, queues: Queues<'_, '_>, spare_bytes: u64, draft: &mut Draft) {
        let spares = queues.spares.into_iter().map(|(view, _)| (view, SkipReason::HostHasEnough));
        let mut asks = Vec::new();
        for (view, skip_reason) in queues.content.into_iter().chain(spares) {
            match self.could_have(view, &skip_reason) {
                Some(bytes) => asks.push((view, bytes)),
                None => draft.skip(view.name(), Actuator::Balloon, skip_reason),
            }
        }
        asks.sort_by(|a, b| a.0.name().cmp(b.0.name()));
        let weights: Vec<(u64, u32)> =
            asks.iter().map(|(view, ask)| (*ask, view.limits.priority)).collect();
        for ((view, _), granted) in asks.iter().zip(share::give(&weights, spare_bytes)) {
            let granted = granted / MIB * MIB;
            if granted < STEP_MIN_BYTES {
                draft.skip(view.name(), Actuator::Balloon, SkipReason::HostHasEnough);
                continue;
            }
            let target = view.guest.balloon.as_ref().map_or(0, |balloon| balloon.target_bytes);
            let reason = "the host has it to spare".to_owned();
            set(view, target.saturating_add(granted), reason, draft);
        }
    }

    /// Returns how much more a guest skipped for this reason could get in one step.
    fn could_have(&self, view: &View<'_>, skip_reason: &SkipReason) -> Option<u64> {
        let content = [
            SkipReason::HostHasEnough,
            SkipReason::WithinDeadBand,
            SkipReason::AtFloor,
            SkipReason::NothingToGain,
            SkipReason::NotTaken,
        ];
        let balloon = view.guest.balloon.as_ref()?;
        let missing = view.limits.max_bytes.checked_sub(balloon.target_bytes)?;
        let is_content =
            content.contains(skip_reason) || matches!(skip_reason, SkipReason::Booting { .. });
        let may = is_content && !self.dampened(view) && missing >= STEP_MIN_BYTES;
        may.then(|| missing.min(self.step(view, balloon)))
    }

    fn dampened(&self, view: &View<'_>) -> bool {
        view.record.is_some_and(|record| record.turns.damping() > 1)
    }

    /// Takes the memory that the host wants, first from guests with the most idle memory for their
    /// priority.
    fn squeeze(&self, spares: Vec<(&View<'_>, Spare)>, need: &Need, draft: &mut Draft) {
        let holders: Vec<Holder> = spares
            .iter()
            .map(|(view, spare)| {
                let balloon = view.guest.balloon.as_ref();
                let surplus =
                    balloon.map_or(0, |it| it.actual_bytes.saturating_sub(spare.low_bytes));
                Holder {
                    held_bytes: spare.yields.held_bytes,
                    used_bytes: spare.used_bytes,
                    spare_bytes: spare.yields.gain(surplus),
                    weight: view.limits.priority,
                }
            })
            .collect();
        let all = holders.iter().map(|it| it.spare_bytes).fold(0, u64::saturating_add);
        let shares = share::take(&holders, need.at_most(all));
        let shares = share::in_portions(shares, STEP_MIN_BYTES);
        for ((view, spare), gain) in spares.into_iter().zip(shares) {
            self.shrink(view, spare, gain, draft);
        }
    }

    /// Drafts one step of a guest towards returning `gain` bytes to the host.
    fn shrink(&self, view: &View<'_>, spare: Spare, gain: u64, draft: &mut Draft) {
        let Some(balloon) = &view.guest.balloon else { return };
        let taken = spare.yields.taken_for(gain).min(spare.step_bytes);
        if gain < STEP_MIN_BYTES || taken == 0 {
            return draft.skip(view.name(), Actuator::Balloon, SkipReason::HostHasEnough);
        }
        let to_bytes = whole_mib(balloon.actual_bytes - taken.min(balloon.actual_bytes), balloon);
        if !asks_less(view, to_bytes) {
            // Its target is already that low, and its balloon has nearly reached it.
            return draft.skip(view.name(), Actuator::Balloon, SkipReason::WithinDeadBand);
        }
        let now = spare.yields.gain(balloon.actual_bytes - to_bytes);
        draft.later_bytes = draft.later_bytes.saturating_add(gain.saturating_sub(now));
        let needs = Size::of(spare.used_bytes.saturating_add(view.unseen_bytes()));
        let low = Size::of(spare.low_bytes);
        let why = if self.ledger.level == Level::Green { "the goal" } else { "the host" };
        let reason = format!("{why} asks for memory; it needs {needs} and is to keep {low}");
        let action = action(view, balloon, to_bytes);
        draft.step(action, signed(now), cpu_of(balloon.actual_bytes - to_bytes), reason);
    }

    fn advise(&self, view: &View<'_>, draft: &mut Draft) {
        let Some(balloon) = &view.guest.balloon else { return };
        let statistics = balloon.statistics.as_ref();
        let free_bytes = statistics.and_then(|it| it.free_bytes).unwrap_or(0);
        if balloon.has_driver && !balloon.reports_free_pages && free_bytes >= self.dead_band(view) {
            let guest = view.name().to_owned();
            draft.advice.push(Advice::EnableReporting { guest, free_bytes });
        }
    }
}

/// Divides what the host has left between guests that need more. Returns the total granted.
fn grow(mut wants: Vec<(&View<'_>, u64, String)>, budget: u64, draft: &mut Draft) -> u64 {
    wants.sort_by(|a, b| a.0.name().cmp(b.0.name()));
    let target = |view: &View<'_>| view.guest.balloon.as_ref().map_or(0, |it| it.target_bytes);
    let asks: Vec<(u64, u32)> = wants
        .iter()
        .map(|(view, to, _)| (to.saturating_sub(target(view)), view.limits.priority))
        .collect();
    let mut granted_bytes = 0;
    for ((view, to_bytes, reason), granted) in wants.into_iter().zip(share::give(&asks, budget)) {
        let from = target(view);
        // A guest always gets its floor, whatever the budget.
        let floor = view.limits.floor_bytes.min(to_bytes);
        let to = from.saturating_add(granted).max(floor);
        if to.saturating_sub(from) < STEP_MIN_BYTES {
            let is_little = to == to_bytes;
            let skip_reason =
                if is_little { SkipReason::WithinDeadBand } else { SkipReason::HostShort };
            draft.skip(view.name(), Actuator::Balloon, skip_reason);
            continue;
        }
        granted_bytes += to - from;
        let short = if to < to_bytes { ", and the host has no more" } else { "" };
        set(view, to, format!("{reason}{short}"), draft);
    }
    granted_bytes
}

/// Whether `to_bytes` is below the guest's present target.
fn asks_less(view: &View<'_>, to_bytes: u64) -> bool {
    view.guest.balloon.as_ref().is_some_and(|balloon| to_bytes < balloon.target_bytes)
}

/// Rounds up to whole MiB, but not above the guest's actual size: drivers move whole pages, and
/// round figures are easier to read.
fn whole_mib(bytes: u64, balloon: &Balloon) -> u64 {
    bytes.div_ceil(MIB).saturating_mul(MIB).min(balloon.actual_bytes)
}

/// Drafts a step to `to_bytes`. Returns the bytes that it is expected to return to the host.
fn set(view: &View<'_>, to_bytes: u64, reason: String, draft: &mut Draft) -> i64 {
    let Some(balloon) = &view.guest.balloon else { return 0 };
    let yields = super::yields::Yield::of(view, balloon);
    let expected = match balloon.actual_bytes.checked_sub(to_bytes) {
        Some(taken) if to_bytes < balloon.target_bytes => signed(yields.gain(taken)),
        // The target rises, but not above the actual size: the guest gets no memory yet.
        Some(_) => 0,
        // The guest may touch everything that it gets.
        None => -signed(to_bytes - balloon.actual_bytes),
    };
    let cpu = cpu_of(balloon.actual_bytes.abs_diff(to_bytes));
    draft.step(action(view, balloon, to_bytes), expected, cpu, reason);
    expected
}

fn action(view: &View<'_>, balloon: &Balloon, to_bytes: u64) -> Action {
    let guest = view.name().to_owned();
    Action::SetBalloon { guest, from_bytes: balloon.target_bytes, to_bytes }
}
