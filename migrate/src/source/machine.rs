//! The state machine: its data, its public interface, and the dispatch of events.

use std::num::NonZeroU16;
use std::time::Duration;

use super::estimate::Estimate;
use super::postcopy::Postcopy;
use super::reconnect::{Outage, Reached};
use super::round::Current;
use super::stall::StallWatch;
use super::standstill::Standstill;
use super::state::{Link, LinkStatus, State};
use super::{Action, Event};
use crate::decisions::Decided;
use crate::error::ResolveRefused;
use crate::error::{
    CancelRefused, ChangeRefused, Failure, MigrationError, OperatorChoice, ProtocolError,
};
use crate::guest::{GuestDescription, RunState};
use crate::limits::{Limits, LimitsChange};
use crate::memory::{PAGE_BYTES, PageSet};
use crate::phase::Phase;
use crate::progress::{Progress, Role};
use crate::protocol::{Decision, Features, MigrationId, Offer, SourceMessage};
use crate::record::{RecordSlot, SourceState};
use crate::report::{Estimated, Outcome};
use crate::telemetry::Telemetry;
use crate::text::PeerText;

/// The configuration of a source.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Id of the migration, the same on both sides.
    pub migration: MigrationId,
    /// The guest, as described by its `describe`.
    pub guest: GuestDescription,
    /// Versions and features of this side: [`Offer::ours`].
    pub offer: Offer,
    /// Data streams to use, 1 to [`crate::protocol::MAX_STREAMS`].
    pub streams: u16,
    /// Whether several links are to be used at once, which share the pages of one data stream.
    pub has_links: bool,
    /// The operator's limits.
    pub limits: Limits,
    /// UDP port of this host's node, which the destination records; none if no node runs here.
    pub node_port: Option<NonZeroU16>,
    /// What an estimate said of this migration, for its report.
    pub estimate: Option<Estimated>,
}

/// The source's side of one migration.
#[derive(Debug)]
pub struct Source {
    pub(super) config: SourceConfig,
    pub(super) state: State,
    pub(super) link: Link,
    pub(super) notes: Telemetry,
    pub(super) records: RecordSlot<SourceState>,
    /// When the last record was requested.
    pub(super) record_asked: Duration,
    pub(super) features: Features,
    /// A message that must come: its name, its deadline, and the length of the wait.
    pub(super) awaited: Option<(&'static str, Duration, Duration)>,
    pub(super) standstill: Standstill,
    pub(super) estimate: Estimate,
    pub(super) stall: StallWatch,
    pub(super) round: Current,
    /// Whether the guest ran before this side paused it.
    pub(super) run_state: RunState,
    pub(super) postcopy: Postcopy,
    pub(super) outage: Option<Outage>,
    pub(super) reached: Option<Reached>,
    /// The memory that is to follow the guest, until it is served.
    pub(super) missing: PageSet,
    /// The present connection carries the pages that the destination lacks.
    pub(super) serves: bool,
    /// Why the operator's last order to run it here had no effect.
    pub(super) not_taken_back: Option<PeerText>,
    pub(super) now: Duration,
    actions: Vec<Action>,
}

impl Source {
    /// Creates a source that is about to connect. `now` is the time since any fixed moment, from a
    /// clock that never goes back; all later calls must use the same clock.
    pub fn new(config: SourceConfig, now: Duration) -> Self {
        let mut notes = Telemetry::new(Role::Source, config.migration, now);
        notes.guest.clone_from(&config.guest.name);
        notes.memory_bytes = config.guest.layout.bytes();
        notes.disk_bytes = config.guest.disk_bytes();
        notes.estimate = config.estimate;
        Self {
            estimate: Estimate::new(),
            stall: StallWatch::default(),
            round: Current::new(&config.guest, now),
            config,
            state: State::Connecting,
            link: Link::new(),
            notes,
            records: RecordSlot::new(),
            record_asked: now,
            features: Features::default(),
            awaited: None,
            standstill: Standstill::default(),
            run_state: RunState::Running,
            postcopy: Postcopy::default(),
            outage: None,
            reached: None,
            missing: PageSet::empty(0),
            serves: false,
            not_taken_back: None,
            now,
            actions: Vec::new(),
        }
    }

    /// Handles an event; returns the actions to perform, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Connected => self.on_connected(),
            Event::NotConnected { reason, detail } => self.on_not_connected(reason, detail),
            Event::ConnectionLost { detail } => self.on_connection_lost(detail),
            Event::Message(message) => self.on_message(message),
            Event::Malformed(error) => self.on_violation(ProtocolError::Codec(error)),
            Event::Recorded => self.on_record_answer(Ok(())),
            Event::RecordFailed { detail } => self.on_record_answer(Err(detail)),
            Event::PrecopyStarted => self.on_precopy_started(),
            Event::Probed(probe) => self.on_probed(probe),
            Event::Transferred(transfer) => self.on_transferred(transfer),
            Event::RoundSent(round) => self.on_round_sent(round),
            Event::Throttled(throttled) => self.on_throttled(throttled),
            Event::Paused { was } => self.on_paused(was),
            Event::PauseFailed { was, error } => self.on_pause_failed(was, error),
            Event::Flushed { attempt } => self.on_flushed(attempt),
            Event::StateSaved { state } => self.on_state_saved(state),
            Event::RemainderSent(sent) => self.on_remainder_sent(sent),
            Event::StreamsEnded(missing) => self.on_streams_ended(missing),
            Event::MissingCollected(written) => self.on_missing_collected(&written),
            Event::Resumed(answer) => self.on_resumed(answer),
            Event::GuestFailed(error) => self.on_guest_failed(error),
            Event::GuestStopped { detail } => self.on_guest_stopped(detail),
            Event::Cancel { by } => self.on_cancel(by),
            Event::Change(change) => self.on_change(&change),
            Event::Postcopy => self.on_postcopy(),
            Event::Resolve(choice) => self.on_resolve(choice),
            Event::Tick => self.on_tick(),
        }
        std::mem::take(&mut self.actions)
    }

    /// Returns when [`Event::Tick`] must be reported, unless another event comes first.
    pub fn deadline(&self) -> Option<Duration> {
        let own = self.own_deadlines().into_iter().flatten().map(|(at, _)| at);
        own.chain(self.link.deadline()).chain(self.measure_at()).min()
    }

    /// Returns the current phase of the migration.
    pub fn phase(&self) -> Phase {
        self.notes.phase()
    }

    /// Returns the progress of the migration.
    pub fn progress(&self, now: Duration) -> Progress {
        let [memory, disks] = self.round.remaining_pages(&self.notes.transfer);
        let expected = self.estimate.expected_downtime();
        let throttled = self.stall.throttled(self.config.guest.vcpus);
        Progress {
            round: self.round.number,
            remaining_bytes: memory * PAGE_BYTES as u64,
            disk_remaining_bytes: disks * PAGE_BYTES as u64,
            bandwidth_bytes_per_second: self.bandwidth(now),
            dirty_pages_per_second: self.estimate.dirty_pages_per_second(),
            expected_downtime_seconds: expected.map(|expected| expected.as_secs_f64()),
            downtime_limit_seconds: self.limits().downtime.as_secs_f64(),
            converging: self.estimate.is_converging(),
            on_stall: Some(self.config.limits.on_stall),
            throttle_percent: throttled.percent,
            throttled_vcpus: throttled.vcpus,
            postcopy_refused: self.waits_for_want_of_postcopy().map(|why| why.to_string()),
            disconnected: self.present_outage().map(|outage| outage.detail.to_string()),
            in_doubt: self.is_in_doubt().then(|| self.way_out()),
            ..self.notes.progress(now)
        }
    }

    /// Returns memory sent per second: from the rounds so far, or, during the first round, from
    /// what it has sent.
    fn bandwidth(&self, now: Duration) -> f64 {
        let so_far = || {
            let transfer = &self.notes.transfer;
            let bytes = transfer.content_pages() as f64 * PAGE_BYTES as f64;
            let seconds = self.round.elapsed(now).as_secs_f64();
            if self.round.number == 1 && seconds > 0.0 { bytes / seconds } else { 0.0 }
        };
        self.estimate.bytes_per_second().unwrap_or_else(so_far)
    }

    /// Returns the operator's limits, with the downtime limit as it has been raised.
    pub(super) fn limits(&self) -> Limits {
        let limits = self.config.limits;
        Limits { downtime: self.stall.limit(&limits), ..limits }
    }

    /// Returns whether [`Event::Cancel`] would be accepted now.
    ///
    /// # Errors
    /// If the destination has been told to run the guest, or the migration is over.
    pub fn can_cancel(&self) -> Result<(), CancelRefused> {
        match self.state {
            ref state if state.is_uncommitted() => Ok(()),
            State::Deciding | State::Asking { .. } | State::Serving | State::InDoubt => {
                Err(CancelRefused::Committed)
            }
            _ => Err(CancelRefused::Over),
        }
    }

    /// Returns whether [`Event::Change`] would be accepted now.
    ///
    /// # Errors
    /// If the guest is being handed over, or the migration is over or undone, or the new maximum of
    /// the downtime limit is below that. A guest that is handed over before its memory needs the
    /// bandwidth from then on: only that may change.
    pub fn can_change(&self, change: &LimitsChange) -> Result<(), ChangeRefused> {
        match self.state {
            State::Settled | State::Closing { .. } => Err(ChangeRefused::Over),
            ref state if state.is_uncommitted() && self.phase() < Phase::Switchover => {
                let limit = change.downtime.unwrap_or(self.config.limits.downtime);
                match change.downtime_max {
                    Some(max) if max < limit => Err(ChangeRefused::BelowLimit { limit }),
                    _ => Ok(()),
                }
            }
            ref state if !self.will_serve(state) => Err(ChangeRefused::Late),
            _ if change.is_of_bandwidth() => Ok(()),
            _ => Err(ChangeRefused::OnlyBandwidth),
        }
    }

    /// Returns whether [`Event::Resolve`] would be accepted now.
    ///
    /// # Errors
    /// If the migration is not in doubt, or the choice is to run a guest that has run elsewhere.
    pub fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        match self.state {
            State::Serving if choice == OperatorChoice::Run => Err(ResolveRefused::RunsThere),
            _ if self.is_in_doubt() => Ok(()),
            State::Asking { .. } | State::Deciding | State::Serving => {
                Err(ResolveRefused::Connected)
            }
            ref state if state.is_uncommitted() => Err(ResolveRefused::NotInDoubt),
            _ => Err(ResolveRefused::Over),
        }
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Sends a message if there is a connection; otherwise the first message on the next connection
    /// replaces it.
    pub(super) fn say(&mut self, message: SourceMessage) {
        if self.link.is_up() {
            self.push(Action::Send(message));
        }
    }

    /// Notes a decision, for progress and the report.
    pub(super) fn note(&mut self, what: Decided) {
        self.notes.decides(what, self.now);
    }

    pub(super) fn record(&mut self, state: SourceState) {
        if let Some(state) = self.records.ask(state) {
            self.record_asked = self.now;
            self.push(Action::Record(state));
        }
    }

    pub(super) fn error(&self, failure: Failure) -> MigrationError {
        MigrationError { phase: self.notes.phase(), failure }
    }

    pub(super) fn finish(&mut self, outcome: Outcome, error: Option<&MigrationError>) {
        self.notes.expected_downtime = self.estimate.expected_downtime();
        let mut report = self.notes.report(outcome, error, self.now);
        report.way_out = match &self.state {
            State::Unwinding(unwind) => unwind.way_out(&self.config.guest.name),
            _ => (outcome == Outcome::InDoubt).then(|| self.way_out()),
        };
        self.push(Action::Finished(Box::new(report)));
    }

    pub(super) fn settle(&mut self) {
        if self.link.is_up() {
            self.push(Action::Disconnect);
        }
        self.link.down();
        self.state = State::Settled;
        self.push(Action::Settled);
    }

    fn on_record_answer(&mut self, answer: Result<(), PeerText>) {
        let (answered, next) = self.records.answered();
        if let Some(next) = next {
            self.record_asked = self.now;
            self.push(Action::Record(next));
        }
        match (answered, answer) {
            (Some(SourceState::Undecided), answer) => match &self.state {
                State::Reclaiming { .. } if next.is_none() => self.on_reclaimed(&answer),
                State::Asking { .. } if answer.is_ok() && next.is_none() => {
                    self.on_recorded_after_all();
                }
                State::Reclaiming { .. } | State::Asking { .. } => {}
                State::Unwinding(unwind) if unwind.end() == SourceState::Undecided => {
                    self.on_end_recorded(&answer);
                }
                State::MeasuringRecord if next.is_none() => self.on_record_measured(answer),
                _ => self.on_opened(answer),
            },
            (Some(SourceState::Committed | SourceState::Serving), answer) => {
                self.on_commit_recorded(answer);
            }
            (Some(SourceState::Done), answer) if matches!(self.state, State::Unwinding(_)) => {
                self.on_end_recorded(&answer);
            }
            (Some(SourceState::Done), _) => self.on_closed(),
            (Some(SourceState::Aborted), answer) => self.on_end_recorded(&answer),
            (None, _) => {}
        }
    }

    /// The peer broke the protocol: before the commit the migration is aborted; afterwards only the
    /// connection is closed.
    pub(super) fn on_violation(&mut self, error: ProtocolError) {
        if self.state.is_uncommitted() {
            self.abort(Failure::Protocol(error));
        } else if self.link.is_up() && !matches!(self.state, State::Settled) {
            self.drop_connection(&error.to_string());
        }
    }

    pub(super) fn drop_connection(&mut self, why: &str) {
        self.push(Action::Disconnect);
        self.on_connection_lost(PeerText::new(why));
    }

    fn on_cancel(&mut self, by: PeerText) {
        if self.can_cancel().is_ok() {
            self.abort(Failure::Cancelled { by });
        }
    }

    /// Returns when to measure again what exceeded its limit.
    fn measure_at(&self) -> Option<Duration> {
        match self.state {
            State::Resting { until } => Some(until),
            _ => None,
        }
    }

    fn own_deadlines(&self) -> [Option<(Duration, Failure)>; 4] {
        let standstill = self.standstill.until().map(|until| (until, self.stood_too_long()));
        let answer =
            self.awaited.map(|(expected, by, limit)| (by, Failure::NoAnswer { expected, limit }));
        match self.state {
            // The guest is wanted back.
            State::Asking { decision: Decision::Commit | Decision::Serve, .. } => {
                return [standstill, None, answer, None];
            }
            ref state if !state.is_uncommitted() => return [None, None, None, None],
            _ => {}
        }
        let limits = self.limits();
        let total = limits.total.map(|limit| {
            let why = self.estimate.why_not_over(&limits);
            (self.notes.began().saturating_add(limit), Failure::Timeout { limit, why })
        });
        [standstill, total, answer, self.end_of_outage()]
    }

    /// Returns why a guest that was paused for too long is no longer handed over.
    pub(super) fn stood_too_long(&self) -> Failure {
        let limits = self.limits();
        let allowed = self.standstill.allowed().unwrap_or_else(|| limits.standstill());
        let why = PeerText::new(&self.standstill.why());
        Failure::Downtime { allowed, limit: limits.downtime, why }
    }

    fn on_tick(&mut self) {
        let now = self.now;
        let due = self.own_deadlines().into_iter().flatten().find(|(at, _)| *at <= now);
        if let Some((_, failure)) = due {
            let is_slow = matches!(failure, Failure::Downtime { .. });
            return match self.state {
                State::Asking { .. } => self.withdraw(failure),
                _ if is_slow && self.may_return() => self.go_back(),
                _ => self.abort(failure),
            };
        }
        if self.measure_at().is_some_and(|at| at <= now) {
            return self.measure_again();
        }
        match self.link.status {
            LinkStatus::Up { answer_by: Some(at) } if at <= now => {
                self.drop_connection("the other side does not answer");
            }
            LinkStatus::Down { redial_at: Some(at) } if at <= now => {
                self.link.status = LinkStatus::Dialing;
                self.push(Action::Reconnect);
            }
            _ => {}
        }
    }

    fn is_in_doubt(&self) -> bool {
        match self.state {
            State::InDoubt => true,
            // A destination that was reached again but has not answered is treated as out of reach.
            State::Asking { .. } | State::Serving => !self.link.is_up() || self.link.failures > 0,
            _ => false,
        }
    }

    /// Returns what an operator can do if this side does not know whether the destination runs the
    /// guest.
    fn way_out(&self) -> String {
        let name = &self.config.guest.name;
        if matches!(self.state, State::Serving) {
            return self.way_out_while_serving();
        }
        let trouble = self.not_taken_back.as_ref();
        let trouble =
            trouble.map_or(String::new(), |why| format!("it could not be taken back: {why}; "));
        format!(
            "{trouble}guest {name} stays paused here until the destination says that it runs it. If the \
             destination is gone for good or does not run it: `lighter migrate --resolve run {name}` \
             here. If it does run it: `lighter migrate --resolve discard {name}` here. Never let \
             both run: they would use the same disks and addresses"
        )
    }
}
