//! The connection is lost while rounds are sent: the guest runs on here, both sides keep what they
//! have, and the rounds go on once the destination is reached again.
//! docs/adr/0041-reconnection.md gives the reasons.

use std::time::Duration;

use super::state::State;
use super::{Action, Source};
use crate::decisions::{Cause, Decided};
use crate::error::{Failure, ProtocolError};
use crate::protocol::{FEATURE_RECONNECT, SourceMessage};
use crate::text::PeerText;

/// Longest time for which the source tries to reach the destination again. It is shorter than
/// [`crate::destination::KEPT_WITHOUT_SOURCE`], so that a destination that is reached has not given
/// up.
pub const RECONNECT_WITHIN: Duration = Duration::from_secs(120);

/// A loss of the connection after which the destination has not been reached again, while rounds
/// are to go on.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    since: Duration,
    /// The transport's error.
    pub(super) detail: PeerText,
}

/// State when the destination was last reached again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    at: Duration,
    /// Frames that it had applied by then, on all data streams.
    frames: u64,
    /// Since when connections are lost before another frame is applied.
    stuck_since: Duration,
}

impl Source {
    /// Returns whether a loss of the connection is to be repaired: nothing is under way but rounds,
    /// or what leads to one.
    pub(super) fn may_reconnect(&self) -> bool {
        let is_in_rounds =
            matches!(self.state, State::Copying | State::Resting { .. } | State::Reconnecting);
        self.features.has(FEATURE_RECONNECT) && (is_in_rounds || self.leads_to_round())
    }

    /// Returns whether a step of this side is under way that leads to a round.
    fn leads_to_round(&self) -> bool {
        let is_measuring =
            matches!(self.state, State::Starting | State::Probing | State::MeasuringRecord);
        is_measuring || matches!(self.state, State::Returning { .. })
    }

    /// Tries to reach the destination again. The guest is no longer slowed down: nothing is sent.
    pub(super) fn reconnect(&mut self, detail: PeerText) {
        if self.outage.is_none() {
            self.note(Decided::Disconnected { detail: detail.to_string() });
            if self.end_throttle() {
                self.note(Decided::Unthrottled { cause: Cause::Idle });
            }
            self.stall.restart();
            self.round.interrupt(&self.notes.transfer);
            self.outage = Some(Outage { since: self.now, detail });
        }
        self.link.plan_redial(self.now);
        if !self.leads_to_round() {
            self.state = State::Reconnecting;
        }
        if let State::Returning { round_sent, .. } = &mut self.state {
            // It is interrupted, as any other. `Continue` has the destination forget the hand-over.
            *round_sent = true;
            self.on_returned();
        }
    }

    /// Asks the destination what it has, on a new connection.
    pub(super) fn say_continue(&mut self) {
        let migration = self.config.migration;
        self.say(SourceMessage::Continue { migration });
        self.link.expect_list(self.now);
    }

    /// The destination has so many frames of each data stream: what it lacks is sent in the rounds
    /// that follow.
    pub(super) fn on_applied(&mut self, frames: Vec<u64>) {
        if frames.len() != usize::from(self.config.streams) {
            let text = format!("{} data streams, not {}", frames.len(), self.config.streams);
            return self.on_violation(ProtocolError::Invalid(text));
        }
        let Some(outage) = self.outage.take() else { return };
        let disconnected_seconds = self.now.saturating_sub(outage.since).as_secs_f64();
        self.note(Decided::Reconnected { disconnected_seconds });
        self.link.up();
        let sum = frames.iter().fold(0, |sum: u64, frames| sum.saturating_add(*frames));
        // A frame may take minutes if the bandwidth is limited.
        let is_soon = |at: Duration| outage.since.saturating_sub(at) < RECONNECT_WITHIN;
        let stuck = self.reached.filter(|before| before.frames == sum && is_soon(before.at));
        let stuck_since = stuck.map_or(outage.since, |before| before.stuck_since);
        if self.now.saturating_sub(stuck_since) >= RECONNECT_WITHIN {
            let failure = self.connection_lost(outage.detail);
            return self.abort(failure);
        }
        if stuck.is_none() {
            self.link.failures = 0;
        }
        self.reached = Some(Reached { at: self.now, frames: sum, stuck_since });
        self.push(Action::ReopenStreams { applied: frames });
        if matches!(self.state, State::Reconnecting) {
            self.send_round();
        }
    }

    /// The destination has no copy any more.
    pub(super) fn on_copy_gone(&mut self) {
        if let Some(outage) = &self.outage {
            let failure = self.connection_lost(outage.detail.clone());
            self.abort_notified(failure);
        }
    }

    /// Returns the present outage, if rounds are to go on after it.
    pub(super) fn present_outage(&self) -> Option<&Outage> {
        self.outage.as_ref().filter(|_| self.state.is_uncommitted())
    }

    /// Returns when to give up, and why.
    pub(super) fn end_of_outage(&self) -> Option<(Duration, Failure)> {
        let outage = self.present_outage()?;
        let until = outage.since.saturating_add(RECONNECT_WITHIN);
        Some((until, self.connection_lost(outage.detail.clone())))
    }
}
