//! The machine itself: its data, its public face, and who handles which event.

use std::num::NonZeroU16;
use std::time::Duration;

use super::standstill::Standstill;
use super::state::{Link, LinkStatus, State};
use super::{Action, Event};
use crate::convergence::{BandwidthMeter, ExpectedDowntime, Verdict};
use crate::error::ResolveRefused;
use crate::error::{CancelRefused, Failure, MigrationError, OperatorChoice, ProtocolError};
use crate::guest::{GuestDescription, RunState};
use crate::limits::Limits;
use crate::memory::PAGE_BYTES;
use crate::phase::Phase;
use crate::progress::{Progress, Role, Transfer};
use crate::protocol::{Features, MigrationId, Offer, SourceMessage};
use crate::record::{RecordSlot, SourceState};
use crate::report::Outcome;
use crate::telemetry::Telemetry;
use crate::text::PeerText;

/// What a source must know before it starts.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// This migration.
    pub migration: MigrationId,
    /// The guest, as its `describe` gave it.
    pub guest: GuestDescription,
    /// What this side speaks: [`Offer::ours`].
    pub offer: Offer,
    /// Data streams to use, 1 to [`crate::protocol::MAX_STREAMS`].
    pub streams: u16,
    /// What the operator allows.
    pub limits: Limits,
    /// UDP port of this host's node, which the destination records; none when no node runs here.
    pub node_port: Option<NonZeroU16>,
}

/// The source's side of one migration.
#[derive(Debug)]
pub struct Source {
    pub(super) config: SourceConfig,
    pub(super) state: State,
    pub(super) link: Link,
    pub(super) notes: Telemetry,
    pub(super) records: RecordSlot<SourceState>,
    pub(super) record_asked: Duration,
    pub(super) record_time: Duration,
    pub(super) features: Features,
    /// An answer that must come: its name, until when, and how long that is.
    pub(super) awaited: Option<(&'static str, Duration, Duration)>,
    /// When a guest that ran has stood still for too long to be handed over.
    pub(super) stands_until: Option<Duration>,
    pub(super) standstill: Standstill,
    pub(super) meter: BandwidthMeter,
    pub(super) fixed: Duration,
    /// The wait before that is measured again.
    pub(super) rest: Duration,
    pub(super) round: u32,
    pub(super) round_began: Duration,
    /// Pages of the round, of memory and of disks.
    pub(super) round_pages: u64,
    /// Pages of disks among them.
    pub(super) round_disk_pages: u64,
    /// What had been sent when the round began.
    pub(super) sent_before: Transfer,
    pub(super) dirty_pages_per_second: f64,
    pub(super) expected: Option<ExpectedDowntime>,
    pub(super) verdict: Verdict,
    /// What the guest did before this side paused it.
    pub(super) run_state: RunState,
    /// Why the operator's last order to run it here came to nothing.
    pub(super) not_taken_back: Option<PeerText>,
    pub(super) now: Duration,
    actions: Vec<Action>,
}

impl Source {
    /// A source about to connect. `now` is the time since any fixed moment, of a clock that never
    /// goes back; all later calls must use the same clock.
    pub fn new(config: SourceConfig, now: Duration) -> Self {
        let mut notes = Telemetry::new(Role::Source, config.migration, now);
        notes.guest.clone_from(&config.guest.name);
        notes.memory_bytes = config.guest.layout.bytes();
        notes.disk_bytes = config.guest.disk_bytes();
        let disk_pages = notes.disk_bytes.div_ceil(PAGE_BYTES as u64);
        Self {
            round_pages: config.guest.layout.pages().saturating_add(disk_pages),
            round_disk_pages: disk_pages,
            config,
            state: State::Connecting,
            link: Link::new(),
            notes,
            records: RecordSlot::new(),
            record_asked: now,
            record_time: Duration::ZERO,
            features: Features::default(),
            awaited: None,
            stands_until: None,
            standstill: Standstill::default(),
            meter: BandwidthMeter::default(),
            fixed: Duration::ZERO,
            rest: Duration::ZERO,
            round: 0,
            round_began: now,
            sent_before: Transfer::default(),
            dirty_pages_per_second: 0.0,
            expected: None,
            verdict: Verdict::SendRound,
            run_state: RunState::Running,
            not_taken_back: None,
            now,
            actions: Vec::new(),
        }
    }

    /// Takes an event, returns what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Connected => self.on_connected(),
            Event::ConnectionLost { detail } => self.on_connection_lost(detail),
            Event::Message(message) => self.on_message(message),
            Event::Malformed(error) => self.on_violation(ProtocolError::Codec(error)),
            Event::Recorded => self.on_record_answer(Ok(())),
            Event::RecordFailed { detail } => self.on_record_answer(Err(detail)),
            Event::PrecopyStarted => self.on_precopy_started(),
            Event::Probed(probe) => self.on_probed(probe),
            Event::Transferred(transfer) => self.notes.transfer = transfer,
            Event::RoundSent(round) => self.on_round_sent(round),
            Event::Paused { was } => self.on_paused(was),
            Event::PauseFailed { was, error } => self.on_pause_failed(was, error),
            Event::Flushed => self.on_flushed(),
            Event::StateSaved { state } => self.on_state_saved(state),
            Event::RemainderSent(sent) => self.on_remainder_sent(sent),
            Event::Resumed(answer) => self.on_resumed(answer),
            Event::GuestFailed(error) => self.on_guest_failed(error),
            Event::GuestStopped { detail } => self.on_guest_stopped(detail),
            Event::Cancel { by } => self.on_cancel(by),
            Event::Resolve(choice) => self.on_resolve(choice),
            Event::Tick => self.on_tick(),
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] must be told, unless something else happens before.
    pub fn deadline(&self) -> Option<Duration> {
        let own = self.own_deadlines().into_iter().flatten().map(|(at, _)| at);
        own.chain(self.link.deadline()).chain(self.measure_at()).min()
    }

    /// Where the migration is.
    pub fn phase(&self) -> Phase {
        self.notes.phase()
    }

    /// How the migration is doing.
    pub fn progress(&self, now: Duration) -> Progress {
        let [memory, disks] = self.remaining_pages();
        Progress {
            round: self.round,
            remaining_bytes: memory * PAGE_BYTES as u64,
            disk_remaining_bytes: disks * PAGE_BYTES as u64,
            bandwidth_bytes_per_second: self.bandwidth(now),
            dirty_pages_per_second: self.dirty_pages_per_second,
            expected_downtime_seconds: self.expected.map(|expected| expected.total().as_secs_f64()),
            downtime_limit_seconds: self.config.limits.downtime.as_secs_f64(),
            converging: !matches!(self.verdict, Verdict::SendRoundInVain | Verdict::MeasureAgain),
            in_doubt: self.is_in_doubt().then(|| self.way_out()),
            ..self.notes.progress(now)
        }
    }

    /// What the round still has to send, of memory and of disks.
    fn remaining_pages(&self) -> [u64; 2] {
        let (now, before) = (&self.notes.transfer, &self.sent_before);
        let sent_disk = now.all_disk_pages().saturating_sub(before.all_disk_pages());
        let done = |transfer: &Transfer| transfer.pages().saturating_add(transfer.hinted_pages);
        let sent = done(now).saturating_sub(done(before)).saturating_sub(sent_disk);
        let memory = self.round_pages.saturating_sub(self.round_disk_pages);
        [memory.saturating_sub(sent), self.round_disk_pages.saturating_sub(sent_disk)]
    }

    /// Memory sent each second: by the rounds so far, and before the first is through by what it
    /// has sent.
    fn bandwidth(&self, now: Duration) -> f64 {
        let so_far = || {
            let transfer = &self.notes.transfer;
            let bytes = transfer.content_pages() as f64 * PAGE_BYTES as f64;
            let seconds = now.saturating_sub(self.round_began).as_secs_f64();
            if self.round == 1 && seconds > 0.0 { bytes / seconds } else { 0.0 }
        };
        self.meter.bytes_per_second().unwrap_or_else(so_far)
    }

    /// Whether [`Event::Cancel`] would be heeded now.
    ///
    /// # Errors
    /// Why not: the destination has been told to run the guest, or it is over already.
    pub fn can_cancel(&self) -> Result<(), CancelRefused> {
        match self.state {
            ref state if state.is_uncommitted() => Ok(()),
            State::Deciding | State::Asking { .. } | State::InDoubt => {
                Err(CancelRefused::Committed)
            }
            _ => Err(CancelRefused::Over),
        }
    }

    /// Whether [`Event::Resolve`] would be heeded now; on this side either choice is as good.
    ///
    /// # Errors
    /// Why not: the migration is not in doubt.
    pub fn can_resolve(&self, _choice: OperatorChoice) -> Result<(), ResolveRefused> {
        match self.state {
            _ if self.is_in_doubt() => Ok(()),
            State::Asking { .. } | State::Deciding => Err(ResolveRefused::Connected),
            ref state if state.is_uncommitted() => Err(ResolveRefused::NotInDoubt),
            _ => Err(ResolveRefused::Over),
        }
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Sends a message when there is a connection; without one, the next connection's first
    /// message says it all.
    pub(super) fn say(&mut self, message: SourceMessage) {
        if self.link.is_up() {
            self.push(Action::Send(message));
        }
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
        self.notes.expected_downtime = self.expected.map(|expected| expected.total());
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
                State::Reclaiming { .. } => self.on_reclaimed(&answer),
                State::Unwinding(unwind) if unwind.end() == SourceState::Undecided => {
                    self.on_end_recorded(&answer);
                }
                State::Weighing => self.on_weighed(answer),
                _ => self.on_opened(answer),
            },
            (Some(SourceState::Committed), answer) => self.on_commit_recorded(answer),
            (Some(SourceState::Done), answer) if matches!(self.state, State::Unwinding(_)) => {
                self.on_end_recorded(&answer);
            }
            (Some(SourceState::Done), _) => self.on_closed(),
            (Some(SourceState::Aborted), answer) => self.on_end_recorded(&answer),
            (None, _) => {}
        }
    }

    /// The peer broke the protocol: before the commit the migration is off; afterwards, only the
    /// connection.
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

    /// When to measure again what was beyond its limit.
    fn measure_at(&self) -> Option<Duration> {
        match self.state {
            State::Resting { until } => Some(until),
            _ => None,
        }
    }

    fn own_deadlines(&self) -> [Option<(Duration, Failure)>; 3] {
        if !self.state.is_uncommitted() {
            return [None, None, None];
        }
        let limits = &self.config.limits;
        let total = limits.total.map(|limit| {
            let why = self.why_not_over();
            (self.notes.began().saturating_add(limit), Failure::Timeout { limit, why })
        });
        let answer =
            self.awaited.map(|(expected, by, limit)| (by, Failure::NoAnswer { expected, limit }));
        let standstill = self.stands_until.map(|until| (until, self.stood_too_long()));
        [standstill, total, answer]
    }

    /// Why a guest that stands still is not handed over any more.
    pub(super) fn stood_too_long(&self) -> Failure {
        let limits = &self.config.limits;
        let why = PeerText::new(&self.standstill.why());
        Failure::Downtime { allowed: limits.standstill(), limit: limits.downtime, why }
    }

    /// Why rounds have not ended.
    fn why_not_over(&self) -> PeerText {
        let limit = self.config.limits.downtime.as_secs_f64();
        let text = match (self.verdict, self.expected) {
            (Verdict::SendRoundInVain, Some(expected)) => format!(
                ": the guest dirties {:.0} pages/s, too fast to be paused for less than {:.3} s, and \
                 the downtime limit is {limit:.3} s",
                self.dirty_pages_per_second,
                expected.total().as_secs_f64()
            ),
            (Verdict::MeasureAgain, Some(expected)) => format!(
                ": pausing the guest takes {:.3} s even without dirty memory, and the downtime limit \
                 is {limit:.3} s",
                expected.fixed.as_secs_f64()
            ),
            _ => String::new(),
        };
        PeerText::new(&text)
    }

    fn on_tick(&mut self) {
        let now = self.now;
        let due = self.own_deadlines().into_iter().flatten().find(|(at, _)| *at <= now);
        if let Some((_, failure)) = due {
            return self.abort(failure);
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
            // A destination that was reached again and has not answered is as good as one out of
            // reach.
            State::Asking { .. } => !self.link.is_up() || self.link.failures > 0,
            _ => false,
        }
    }

    /// What an operator can do when this side does not know whether the destination runs the guest.
    fn way_out(&self) -> String {
        let name = &self.config.guest.name;
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
