//! The state machine: its data, its public interface, and the dispatch of events.

use std::num::NonZeroU16;
use std::time::Duration;

use super::state::State;
use super::{Action, Event};
use crate::error::{
    CancelRefused, Failure, MigrationError, OperatorChoice, ProtocolError, ResolveRefused,
};
use crate::guest::{DiskCopy, GuestDescription, RunState};
use crate::memory::PAGE_BYTES;
use crate::phase::Phase;
use crate::progress::{Progress, Role, Transfer};
use crate::protocol::{
    DestinationMessage, FEATURE_EARLY_COMMIT, FEATURE_LINKS, Features, MigrationId, Offer,
    SourceMessage,
};
use crate::record::{DestinationState, RecordSlot};
use crate::report::Outcome;
use crate::telemetry::Telemetry;
use crate::text::PeerText;

/// How long a destination that has discarded its copy waits for the source to hear it.
const LAST_WORD: Duration = Duration::from_secs(10);
/// Longest wait for the source's first message. The source was admitted only a moment ago, and the
/// guest's name stays reserved while it is awaited.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The configuration of a destination.
#[derive(Debug, Clone)]
pub struct DestinationConfig {
    /// Id of the migration that was admitted; messages with another id are refused.
    pub migration: MigrationId,
    /// Versions and features of this side: [`Offer::ours`].
    pub offer: Offer,
    /// How long to wait for the source's `Finish` once the guest's fate is recorded. The node
    /// answers a source that asks later, from that record.
    pub linger: Duration,
}

/// The destination's side of one migration.
#[derive(Debug)]
pub struct Destination {
    pub(super) config: DestinationConfig,
    pub(super) state: State,
    pub(super) connected: bool,
    /// The source has said on this connection that the destination owns the guest, and waits for
    /// the result.
    pub(super) is_asked: bool,
    /// The source has committed, before this side was ready.
    pub(super) is_committed: bool,
    pub(super) notes: Telemetry,
    pub(super) records: RecordSlot<DestinationState>,
    pub(super) guest: Option<Box<GuestDescription>>,
    /// Disks that the source has announced, until it describes the guest.
    pub(super) disks: Vec<DiskCopy>,
    /// UDP port of the node of the source's host, once the source has sent it.
    pub(super) source_node_port: Option<NonZeroU16>,
    pub(super) streams: u16,
    pub(super) features: Features,
    pub(super) run_state: RunState,
    /// Memory follows the guest.
    pub(super) is_postcopy: bool,
    /// A part of memory is missing.
    pub(super) is_fetching: bool,
    /// How many pages were missing when fetching began, and the totals then.
    pub(super) was_missing: (u64, Transfer),
    /// Why no more memory comes, once the source says so: its process has ended, or it has the
    /// guest again.
    pub(super) withdrawn: Option<Failure>,
    /// An operator, not the source, has ordered the guest to run.
    pub(super) forced: bool,
    /// Why the last attempt to take over the guest failed.
    pub(super) not_taken: Option<PeerText>,
    /// The guest's fate if it could not be recorded: it must be, before this side may leave answers
    /// to its node.
    pub(super) unrecorded: Option<DestinationState>,
    pub(super) wait_until: Option<Duration>,
    pub(super) now: Duration,
    actions: Vec<Action>,
}

impl Destination {
    /// Creates a destination that waits for its source. `now` is the time since any fixed moment,
    /// from a clock that never goes back; all later calls must use the same clock.
    pub fn new(config: DestinationConfig, now: Duration) -> Self {
        Self {
            notes: Telemetry::new(Role::Destination, config.migration, now),
            wait_until: Some(now.saturating_add(FIRST_WORD)),
            config,
            state: State::Waiting,
            connected: false,
            is_asked: false,
            is_committed: false,
            records: RecordSlot::new(),
            guest: None,
            disks: Vec::new(),
            source_node_port: None,
            streams: 0,
            features: Features::default(),
            run_state: RunState::Running,
            is_postcopy: false,
            is_fetching: false,
            was_missing: (0, Transfer::default()),
            withdrawn: None,
            forced: false,
            not_taken: None,
            unrecorded: None,
            now,
            actions: Vec::new(),
        }
    }

    /// Handles an event; returns the actions to perform, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Connected => self.on_connected(),
            Event::ConnectionLost { detail } => self.on_connection_lost(detail),
            Event::Message(message) => self.on_message(message),
            Event::Malformed(error) => self.on_violation(ProtocolError::Codec(error)),
            Event::Checked(answer) => self.on_checked(answer),
            Event::Created(answer) => self.on_created(answer),
            Event::StreamEnded { stream, announced, applied } => {
                self.on_stream_ended(stream, announced, applied);
            }
            Event::Counted(frames) => self.on_counted(frames),
            Event::DataFailed { detail } => self.on_data_failed(detail),
            Event::Transferred(transfer) => self.notes.transfer = transfer,
            Event::Waited(waits) => self.notes.page_waits = Some(waits),
            Event::Loaded(answer) => self.on_loaded(answer),
            Event::Cleared(answer) => self.on_cleared(answer),
            Event::Fetched => self.on_fetched(),
            Event::Recorded => self.on_record_answer(Ok(())),
            Event::RecordFailed { detail } => self.on_record_answer(Err(detail)),
            Event::Adopted(answer) => self.on_adopted(answer),
            Event::Resumed(answer) => self.on_resumed(answer),
            Event::Cancel { by } => self.on_cancel(by),
            Event::Resolve(choice) => self.on_resolve(choice),
            Event::Tick => self.on_tick(),
        }
        std::mem::take(&mut self.actions)
    }

    /// Returns when [`Event::Tick`] must be reported, unless another event comes first.
    pub fn deadline(&self) -> Option<Duration> {
        self.wait_until
    }

    /// Returns the UDP port of the node of the source's host, for the record; none if the source
    /// has not sent it.
    pub fn source_node_port(&self) -> Option<NonZeroU16> {
        self.source_node_port
    }

    /// Returns whether a record of this side was requested.
    pub fn has_record(&self) -> bool {
        self.records.last_asked().is_some()
    }

    /// Returns whether the source may add links to its control stream: it has been greeted, and has
    /// not answered yet.
    pub fn may_add_links(&self) -> bool {
        matches!(self.state, State::Greeted) && self.features.has(FEATURE_LINKS)
    }

    /// Returns the current phase of the migration.
    pub fn phase(&self) -> Phase {
        self.notes.phase()
    }

    /// Returns the progress of the migration.
    pub fn progress(&self, now: Duration) -> Progress {
        let waiting = self.can_resolve(OperatorChoice::Discard).is_ok();
        Progress {
            remaining_bytes: self.missing_pages().saturating_mul(PAGE_BYTES as u64),
            disconnected: self.out_of_reach().map(ToString::to_string),
            in_doubt: waiting.then(|| self.way_out()),
            ..self.notes.progress(now)
        }
    }

    /// Returns whether [`Event::Cancel`] would be accepted now.
    ///
    /// # Errors
    /// If the source may have decided already, or the migration is over.
    pub fn can_cancel(&self) -> Result<(), CancelRefused> {
        match self.state {
            ref state if state.is_before_ready() => Ok(()),
            State::RecordingReady { .. } | State::Ready => Err(CancelRefused::SourceDecides),
            State::Fetching { .. } => Err(CancelRefused::Committed),
            _ => Err(CancelRefused::Over),
        }
    }

    /// Returns whether [`Event::Resolve`] would be accepted now.
    ///
    /// # Errors
    /// If the destination is not waiting for a source that is out of reach, is to run a guest of
    /// whose memory a part is there, or runs it.
    pub fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        match self.state {
            State::Ready if choice == OperatorChoice::Run && self.is_fetching => {
                Err(ResolveRefused::MemoryElsewhere)
            }
            State::Ready if !self.connected => Ok(()),
            // Loading may wait for a page.
            State::Loading { .. } if self.is_kept() && self.is_fetching && !self.connected => {
                match choice {
                    OperatorChoice::Discard => Ok(()),
                    OperatorChoice::Run => Err(ResolveRefused::NotInDoubt),
                }
            }
            State::Ready | State::RecordingReady { .. } => Err(ResolveRefused::Connected),
            State::TakingOver { .. }
            | State::Adopting { .. }
            | State::Resuming { .. }
            | State::Fetching { .. } => Err(ResolveRefused::RunsHere),
            ref state if state.is_before_ready() => Err(ResolveRefused::NotInDoubt),
            _ => Err(ResolveRefused::Over),
        }
    }

    /// Returns whether the source may commit before this side says that it is ready.
    pub(super) fn is_early(&self) -> bool {
        self.features.has(FEATURE_EARLY_COMMIT)
    }

    /// Returns whether everything is here, and the source may have committed: the copy is kept when
    /// the connection is lost.
    pub(super) fn is_kept(&self) -> bool {
        self.is_early() && matches!(self.state, State::Loading { .. })
    }

    /// Returns whether the copy may be discarded without asking the source.
    pub(super) fn may_discard(&self) -> bool {
        self.state.is_before_ready() && !self.is_kept()
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Sends a message if there is a connection; a source that does not receive it asks again.
    pub(super) fn say(&mut self, message: DestinationMessage) {
        if self.connected {
            self.push(Action::Send(message));
        }
    }

    pub(super) fn record(&mut self, state: DestinationState) {
        if let Some(state) = self.records.ask(state) {
            self.push(Action::Record(state));
        }
    }

    pub(super) fn error(&self, failure: Failure) -> MigrationError {
        MigrationError { phase: self.notes.phase(), failure }
    }

    pub(super) fn finish(&mut self, outcome: Outcome, error: Option<&MigrationError>) {
        let report = self.notes.report(outcome, error, self.now);
        self.push(Action::Finished(Box::new(report)));
    }

    pub(super) fn settle(&mut self) {
        if self.connected {
            self.push(Action::Disconnect);
        }
        self.connected = false;
        self.wait_until = None;
        self.state = State::Settled;
        self.push(Action::Settled);
    }

    /// Waits a short time for the source to hear that the copy is discarded.
    pub(super) fn await_goodbye(&mut self) {
        self.wait_until = Some(self.now.saturating_add(LAST_WORD));
    }

    fn on_record_answer(&mut self, answer: Result<(), PeerText>) {
        let (answered, next) = self.records.answered();
        if let Some(next) = next {
            self.push(Action::Record(next));
        }
        match (answered, answer) {
            (Some(DestinationState::Loading), answer) => self.on_opened(answer),
            (Some(DestinationState::Ready), answer) => self.on_ready_recorded(answer),
            (Some(DestinationState::Taking), answer) => self.on_takeover_recorded(answer),
            (Some(DestinationState::Discarded | DestinationState::Lost), _) => match self.state {
                State::Stranded { .. } => self.on_stranded(),
                _ => self.on_discard_recorded(),
            },
            (
                Some(
                    fate @ (DestinationState::Fetching
                    | DestinationState::Running
                    | DestinationState::Failed),
                ),
                answer,
            ) => self.on_fate_recorded(fate, answer.is_ok()),
            (None, _) => {}
        }
    }

    fn on_connected(&mut self) {
        if std::mem::replace(&mut self.connected, true) {
            self.connected = false;
            let detail =
                "the source has connected again: its process has ended, or lost the other one";
            self.on_connection_lost(detail.into());
            self.connected = !matches!(self.state, State::Settled);
        }
    }

    pub(super) fn on_connection_lost(&mut self, detail: PeerText) {
        self.connected = false;
        self.is_asked = false;
        if self.keep_for_source(&detail) {
            return;
        }
        match &self.state {
            _ if self.may_discard() => {
                let farewell = DestinationMessage::Discarded;
                self.discard(Failure::ConnectionLost { detail }, farewell);
            }
            State::Discarded => self.settle(),
            _ => {}
        }
    }

    fn on_message(&mut self, message: SourceMessage) {
        if self.may_discard() {
            self.on_message_before_ready(message);
        } else {
            self.on_message_from_ready(&message);
        }
    }

    /// The source broke the protocol. While something is missing, the copy is discarded; afterwards
    /// only the connection is closed, since the guest may already be the destination's.
    pub(super) fn on_violation(&mut self, error: ProtocolError) {
        if self.may_discard() {
            self.give_up(Failure::Protocol(error));
        } else if self.connected {
            self.push(Action::Disconnect);
            self.on_connection_lost(PeerText::new(&error.to_string()));
        }
    }

    fn on_cancel(&mut self, by: PeerText) {
        if self.can_cancel().is_ok() {
            self.give_up(Failure::Cancelled { by });
        }
    }

    fn on_tick(&mut self) {
        if self.wait_until.is_none_or(|until| until > self.now) {
            return;
        }
        if let Some(fate) = self.unrecorded.take() {
            self.wait_until = None;
            return self.record(fate);
        }
        match self.state {
            State::Waiting => {
                self.give_up(Failure::NoAnswer { expected: "Hello", limit: FIRST_WORD });
            }
            State::Receiving(_) => self.give_up_source(),
            _ => self.settle(),
        }
    }

    fn way_out(&self) -> String {
        let name = self.guest.as_ref().map_or("NAME", |guest| guest.name.as_str());
        if self.is_fetching {
            return format!(
                "guest {name} waits for its source to say whether to run, and for the rest of its memory. \
                 If the source is gone for good, or kept it: `lighter migrate --resolve discard {name}` here"
            );
        }
        let trouble = self.not_taken.as_ref();
        let trouble = trouble.map_or(String::new(), |why| format!("it could not be run: {why}; "));
        format!(
            "{trouble}guest {name} is complete here and waits for its source to say whether to run. If the \
             source is gone for good: `lighter migrate --resolve run {name}` here. If the source \
             kept it: `lighter migrate --resolve discard {name}` here. Never let both run: they \
             would use the same disks and addresses"
        )
    }
}
