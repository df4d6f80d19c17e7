//! From the first connection to the pause: agree on a version, have the guest prepared, send
//! rounds.

use std::num::NonZeroU64;
use std::time::Duration;

use super::estimate::RECORDS_IN_DOWNTIME;
use super::postcopy::Postcopy;
use super::stall::{Remedy, RoundEnd};
use super::standstill::Step;
use super::state::State;
use super::{Action, DataPath, Probe, RoundSent, Source};
use crate::convergence::Verdict;
use crate::decisions::{Cause, Decided};
use crate::error::{Failure, ProtocolError};
use crate::guest::{Refusal, RefusalKind, Throttle, Throttled};
use crate::limits::{Limits, LimitsChange};
use crate::phase::Phase;
use crate::progress::Transfer;
use crate::protocol::{
    DestinationMessage, FEATURE_DISKS, FEATURE_EARLY_COMMIT, FEATURE_LINKS, FEATURE_NODE,
    FEATURE_PCI, Features, Prepare, SourceMessage, Version,
};
use crate::record::SourceState;
use crate::report::Round;
use crate::stall::OnStall;
use crate::text::PeerText;

/// What a guest that is slowed down may write to the disks that are copied with it, as a part of
/// what is sent: the rest is for its memory, and for what was written before.
const DISKS_SHARE: f64 = 0.25;

impl Source {
    pub(super) fn on_connected(&mut self) {
        self.link.up();
        match self.state {
            State::Connecting => {
                self.state = State::Opening;
                self.record(SourceState::Undecided);
            }
            State::Asking { .. } | State::Serving | State::Unwinding(_) => self.send_decision(),
            _ if self.present_outage().is_some() => self.say_continue(),
            _ => {}
        }
    }

    pub(super) fn on_opened(&mut self, answer: Result<(), PeerText>) {
        if !matches!(self.state, State::Opening) {
            return;
        }
        if let Err(detail) = answer {
            return self.abort(Failure::Record { detail });
        }
        self.estimate.set_records(self.now.saturating_sub(self.record_asked));
        let (migration, offer) = (self.config.migration, self.config.offer.clone());
        self.say(SourceMessage::Hello { migration, offer });
        self.await_answer("Welcome");
        self.state = State::Greeting;
    }

    pub(super) fn await_answer(&mut self, name: &'static str) {
        let limit = self.config.limits.answer;
        self.awaited = Some((name, self.now.saturating_add(limit), limit));
    }

    pub(super) fn on_message(&mut self, message: DestinationMessage) {
        if !self.state.is_uncommitted() {
            return self.on_late_message(&message);
        }
        match (&mut self.state, message) {
            (State::Greeting, DestinationMessage::Welcome { version, features }) => {
                self.on_welcome(version, features);
            }
            (State::Describing, DestinationMessage::Prepared) => self.on_prepared(),
            (State::Ending { ready }, DestinationMessage::Ready { .. })
                if !self.features.has(FEATURE_EARLY_COMMIT) =>
            {
                *ready = true;
            }
            (State::AwaitingReady, DestinationMessage::Ready { .. })
                if !self.features.has(FEATURE_EARLY_COMMIT) =>
            {
                self.decide();
            }
            (State::Clearing, DestinationMessage::Cleared) => self.on_cleared(),
            (State::Returning { answered: false, .. }, DestinationMessage::Returned) => {
                self.on_returned();
            }
            (_, DestinationMessage::Applied { frames }) if self.outage.is_some() => {
                self.on_applied(frames);
            }
            (_, DestinationMessage::Discarded | DestinationMessage::Unknown)
                if self.outage.is_some() =>
            {
                self.on_copy_gone();
            }
            // While connecting, this is the answer of the destination's node.
            (
                State::Connecting | State::Greeting | State::Describing,
                DestinationMessage::Refused(refusal),
            ) => self.abort_notified(Failure::Refused(refusal)),
            (_, DestinationMessage::Abort(complaint) | DestinationMessage::GaveUp(complaint)) => {
                self.abort_notified(Failure::from(&complaint));
            }
            (state, message) => {
                let (message, waiting) = (message.name(), state.name());
                self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        }
    }

    fn on_welcome(&mut self, version: Version, features: Features) {
        let offer = &self.config.offer;
        if !offer.versions.contains(&version) || !offer.features.has(features) {
            let text = format!(
                "the destination chose protocol {version} with features {:#x}, which were not offered",
                features.0
            );
            return self.on_violation(ProtocolError::Invalid(text));
        }
        self.features = features;
        self.notes.enter(Phase::Prepare, self.now);
        if self.config.has_links && !features.has(FEATURE_LINKS) {
            let text = "the destination's release does not use several links at once: upgrade it, or give one address with --via";
            return self.abort(Failure::Refused(Refusal::new(RefusalKind::Version, text)));
        }
        let (guest, streams) = (self.config.guest.clone(), self.config.streams);
        if guest.has_pci && !features.has(FEATURE_PCI) {
            let text = "the destination's release runs no guests with a PCI bus: upgrade it";
            return self.abort(Failure::Refused(Refusal::new(RefusalKind::Version, text)));
        }
        if let Some(port) = self.config.node_port
            && features.has(FEATURE_NODE)
        {
            self.say(SourceMessage::Node { port });
        }
        if !guest.disks.is_empty() {
            if !features.has(FEATURE_DISKS) {
                let text = "the destination's release takes no disks along: upgrade it, or share the disks";
                return self.abort(Failure::Refused(Refusal::new(RefusalKind::Version, text)));
            }
            self.say(SourceMessage::Disks(guest.disks.clone()));
        }
        self.say(SourceMessage::Prepare(Prepare { guest, streams }));
        self.await_answer("Prepared");
        self.state = State::Describing;
    }

    fn on_prepared(&mut self) {
        self.awaited = None;
        self.notes.enter(Phase::Precopy, self.now);
        self.state = State::Starting;
        let (streams, features) = (self.config.streams, self.features);
        self.push(Action::StartPrecopy(DataPath { streams, features }));
    }

    pub(super) fn on_precopy_started(&mut self) {
        if matches!(self.state, State::Starting) {
            self.measure();
        }
    }

    fn measure(&mut self) {
        self.state = State::Probing;
        self.push(Action::Probe);
    }

    /// Measures the fixed part again. The disk may have been busy when the record was created, or
    /// the host when the guest was paused: a fixed part that was above the limit may be below it
    /// now.
    pub(super) fn measure_again(&mut self) {
        self.state = State::MeasuringRecord;
        self.record(SourceState::Undecided);
    }

    pub(super) fn on_record_measured(&mut self, answer: Result<(), PeerText>) {
        if let Err(detail) = answer {
            return self.abort(Failure::Record { detail });
        }
        let took = self.now.saturating_sub(self.record_asked);
        self.estimate.set_records(took.saturating_mul(RECORDS_IN_DOWNTIME));
        self.measure();
    }

    pub(super) fn on_probed(&mut self, probe: Probe) {
        if matches!(self.state, State::Probing) {
            self.notes.stood_in_dry_run(probe.stood);
            self.estimate.add_probe(&probe, self.commits_early());
            self.send_round();
        }
    }

    pub(super) fn send_round(&mut self) {
        if self.outage.is_some() {
            self.state = State::Reconnecting;
            return;
        }
        if self.postcopy == Postcopy::Wanted {
            return self.begin_postcopy();
        }
        self.begin_round();
        self.state = State::Copying;
        self.push(Action::SendRound { round: self.round.number });
    }

    pub(super) fn begin_round(&mut self) {
        self.round.begin(self.notes.transfer, self.now);
    }

    pub(super) fn on_round_sent(&mut self, sent: RoundSent) {
        match &mut self.state {
            State::Copying => {
                if sent.pages == 0 {
                    // It needs no frames.
                    self.reached = None;
                }
                self.note_round(&sent);
                self.estimate.set_dirty_rate(self.notes.dirtied(sent.dirty_pages, self.now));
                self.judge_round(&sent);
            }
            State::Returning { round_sent, .. } if !*round_sent => {
                *round_sent = true;
                self.note_round(&sent);
                self.go_on_after_return();
            }
            State::Finishing { round_sent, .. } if !*round_sent => {
                *round_sent = true;
                self.standstill.end(Step::Send, self.now);
                self.note_round(&RoundSent { dirty_pages: 0, dirty_disk_pages: 0, ..sent });
                self.end_streams();
            }
            _ => {}
        }
    }

    fn note_round(&mut self, sent: &RoundSent) {
        let elapsed = self.round.elapsed(self.now).saturating_sub(sent.waited);
        self.notes.add_round(Round {
            round: self.round.number,
            pages: sent.pages,
            zero_pages: sent.zero_pages,
            wire_bytes: sent.wire_bytes,
            seconds: elapsed.as_secs_f64(),
            dirty_pages: sent.dirty_pages,
        });
        self.estimate.add_round(sent, elapsed);
        self.round.end(sent, self.notes.transfer);
    }

    fn judge_round(&mut self, sent: &RoundSent) {
        let verdict = self.judge(sent);
        if verdict == Verdict::SwitchOver {
            return self.go_on(verdict);
        }
        let end = RoundEnd {
            verdict,
            dirty_pages: sent.dirty_pages,
            expected: self.estimate.expected_downtime().unwrap_or(Duration::MAX),
            fixed: self.estimate.fixed(),
            sent_per_dirtied: self.estimate.sent_per_dirtied() / sent.memory_part(),
            disks_share: if sent.dirty_disk_pages > 0 { DISKS_SHARE } else { 0.0 },
            now: self.now,
        };
        let limits = self.limits();
        let remedy = self.stall.after_round(&self.config.limits, &end);
        self.note_stall(&limits, verdict, remedy);
        match remedy {
            Remedy::None | Remedy::Wait => self.go_on(verdict),
            Remedy::Raise(limit) => {
                self.note_raise(limit, &end);
                let verdict = self.judge(sent);
                self.go_on(verdict);
            }
            Remedy::Throttle(percent) => {
                self.throttle(percent);
                self.go_on(verdict);
            }
            Remedy::Force => self.force(end.expected),
            Remedy::Postcopy if self.can_postcopy().is_ok() => self.begin_postcopy(),
            Remedy::Postcopy => self.go_on(verdict),
            Remedy::GiveUp => self.give_up(),
        }
    }

    /// Judges the last round by the downtime limit as it is now.
    fn judge(&mut self, sent: &RoundSent) -> Verdict {
        let elapsed = self.round.elapsed(self.now).saturating_sub(sent.waited);
        self.estimate.judge(sent, elapsed, self.limits().downtime)
    }

    fn go_on(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::SwitchOver => self.switch_over(self.limits().standstill()),
            Verdict::SendRound | Verdict::SendRoundInVain => self.send_round(),
            Verdict::MeasureAgain => {
                let until = self.now.saturating_add(self.estimate.rest());
                self.state = State::Resting { until };
            }
        }
    }

    /// Notes once that the migration stalls, with the limits by which the round was judged. A limit
    /// that can be raised is not impossible.
    fn note_stall(&mut self, limits: &Limits, verdict: Verdict, remedy: Remedy) {
        let is_noted = match remedy {
            Remedy::None => false,
            Remedy::Raise(_) => verdict != Verdict::MeasureAgain,
            _ => true,
        };
        let stalled = self.estimate.stall(limits).filter(|_| is_noted);
        if let Some(stalled) = stalled
            && !self.notes.holds(stalled.kind())
        {
            self.note(stalled);
        }
    }

    fn note_raise(&mut self, limit: Duration, end: &RoundEnd) {
        self.note(Decided::LimitRaised {
            expected_downtime_seconds: end.expected.as_secs_f64(),
            fixed_seconds: end.fixed.as_secs_f64(),
            downtime_limit_seconds: limit.as_secs_f64(),
            downtime_max_seconds: self.config.limits.downtime_ceiling().as_secs_f64(),
        });
    }

    fn throttle(&mut self, percent: u8) {
        let (vcpus, throttle) = (self.config.guest.vcpus, self.throttle_at(percent));
        let limit = throttle.disk_bytes_per_second;
        let disk_bytes_per_second = limit.filter(|_| !self.config.guest.disks.is_empty());
        self.note(Decided::Throttled { percent, vcpus, disk_bytes_per_second });
        self.note_throttle();
        self.push(Action::Throttle(throttle));
    }

    /// Returns how to slow the guest down whose vCPUs are to run less by `percent`.
    fn throttle_at(&self, percent: u8) -> Throttle {
        let disks = self.estimate.bytes_per_second().map(|sent| (sent * DISKS_SHARE) as u64);
        let disks = disks.map(|bytes| NonZeroU64::new(bytes).unwrap_or(NonZeroU64::MIN));
        Throttle { percent, disk_bytes_per_second: disks }
    }

    pub(super) fn on_throttled(&mut self, throttled: Throttled) {
        if self.stall.on_throttled(throttled) {
            self.note_throttle();
        }
    }

    /// Notes for the report how much the guest is slowed down now.
    fn note_throttle(&mut self) {
        let throttled = self.stall.throttled(self.config.guest.vcpus);
        self.notes.throttles(throttled);
    }

    /// Hands the guest over although `expected` is above the downtime limit.
    fn force(&mut self, expected: Duration) {
        self.note(Decided::Forced {
            expected_downtime_seconds: expected.as_secs_f64(),
            downtime_limit_seconds: self.limits().downtime_ceiling().as_secs_f64(),
        });
        let planned = Limits { downtime: expected, ..self.config.limits };
        self.switch_over(planned.standstill());
    }

    fn give_up(&mut self) {
        let why = self.estimate.why_not_over(&self.limits());
        self.abort(Failure::Stalled { why });
    }

    /// Lets the guest run at full speed again; returns whether it was throttled.
    pub(super) fn end_throttle(&mut self) -> bool {
        let was_throttled = self.stall.end_throttle();
        if was_throttled {
            self.push(Action::Throttle(Throttle::default()));
        }
        was_throttled
    }

    pub(super) fn on_transferred(&mut self, transfer: Transfer) {
        self.notes.transfer = transfer;
        if let Some(percent) = self.stall.renew(transfer.wire_bytes, self.now) {
            let throttle = match percent {
                0 => {
                    self.note(Decided::Unthrottled { cause: Cause::Idle });
                    Throttle::default()
                }
                _ => self.throttle_at(percent),
            };
            self.push(Action::Throttle(throttle));
        }
    }

    /// Applies new limits. What has been found impossible may be possible now.
    pub(super) fn on_change(&mut self, change: &LimitsChange) {
        if self.can_change(change).is_err() {
            return;
        }
        self.config.limits.change(change);
        self.note(Decided::from(change));
        if change.bandwidth.is_some() {
            self.stall.restart();
        }
        if change.downtime.is_some() {
            self.stall.reset_limit();
        }
        if self.config.limits.on_stall != OnStall::Throttle && self.end_throttle() {
            self.note(Decided::Unthrottled { cause: Cause::Order });
        }
        if let State::Resting { until } = &mut self.state {
            *until = self.now;
        }
    }
}
