//! The connection is lost while rounds come: what is here is kept for a while, and rounds go on
//! once the source is there again. docs/adr/0041-reconnection.md gives the reasons.

use std::time::Duration;

use super::receive::wrong_migration;
use super::state::{Received, State};
use super::{Action, Destination};
use crate::error::{Failure, ProtocolError};
use crate::protocol::{DestinationMessage, FEATURE_RECONNECT, MigrationId};
use crate::source::RECONNECT_WITHIN;
use crate::text::PeerText;

/// How long a copy is kept whose source is out of reach. The source gives up earlier, or says so
/// when it is back; if its host is gone, this is how long its memory stays reserved.
pub const KEPT_WITHOUT_SOURCE: Duration = RECONNECT_WITHIN.saturating_add(Duration::from_secs(15));

impl Destination {
    /// Returns what has been received, if rounds may go on over another connection.
    fn continuable(&mut self) -> Option<&mut Received> {
        let may_go_on = self.features.has(FEATURE_RECONNECT) && !self.is_committed;
        match &mut self.state {
            State::Receiving(received) if may_go_on && received.may_continue() => Some(received),
            _ => None,
        }
    }

    /// Keeps what is here if rounds may go on over another connection; returns whether it does.
    pub(super) fn keep_for_source(&mut self, detail: &PeerText) -> bool {
        let until = self.now.saturating_add(KEPT_WITHOUT_SOURCE);
        let Some(received) = self.continuable() else { return false };
        // An earlier loss says since when.
        if received.lost.is_none() {
            received.lost = Some(detail.clone());
            self.wait_until = Some(until);
        }
        true
    }

    /// The source goes on. A hand-over that it had begun is called off.
    pub(super) fn on_continue(&mut self, migration: MigrationId) {
        if migration != self.config.migration {
            return self.on_violation(wrong_migration(migration));
        }
        let Some(received) = self.continuable() else {
            let waiting = self.state.name();
            return self.on_violation(ProtocolError::Unexpected { message: "Continue", waiting });
        };
        received.lost = None;
        received.state = None;
        received.counts_owed += 1;
        let was_switching_over = std::mem::take(&mut received.switching_over);
        self.wait_until = None;
        if was_switching_over {
            self.notes.goes_back(self.now);
        }
        self.push(Action::CountFrames);
    }

    /// Tells the source what is here, once nothing of a lost connection is under way. If that has
    /// been lost too, another count follows.
    pub(super) fn on_counted(&mut self, frames: Vec<u64>) {
        let Some(received) = self.continuable() else { return };
        received.counts_owed = received.counts_owed.saturating_sub(1);
        if received.counts_owed == 0 && received.lost.is_none() {
            self.say(DestinationMessage::Applied { frames });
        }
    }

    /// The source has not come back in time.
    pub(super) fn give_up_source(&mut self) {
        self.wait_until = None;
        let State::Receiving(received) = &mut self.state else { return };
        let Some(detail) = received.lost.take() else { return };
        self.discard(Failure::ConnectionLost { detail }, DestinationMessage::Discarded);
    }

    /// Returns why the source is out of reach, if it is and rounds may go on.
    pub(super) fn out_of_reach(&self) -> Option<&PeerText> {
        match &self.state {
            State::Receiving(received) => received.lost.as_ref(),
            _ => None,
        }
    }
}
