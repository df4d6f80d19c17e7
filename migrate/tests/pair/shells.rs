//! The shells around the two state machines: they carry out actions on simulated guests and disks.

use std::time::Duration;

use migrate::destination::{self, Action as ToDo};
use migrate::guest::{GuestError, RunState};
use migrate::memory::PAGES_PER_CHUNK;
use migrate::protocol::{DestinationMessage, PageMasks};
use migrate::record::DestinationState;
use migrate::source::{self, Action, Probe};
use migrate::{PageSet, Throttle};

use crate::faults::{RecordLoss, Side, When};
use crate::guest::{CHUNKS, SimGuest};
use crate::world::{ChunkPages, Happening, World};

pub(crate) const MS: Duration = Duration::from_millis(1);
/// How long to retry a disk that another process has locked.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn feed_source(&mut self, event: source::Event) {
        let now = self.now;
        if self.source.as_ref().is_some_and(|source| !source.settled) {
            self.note(|| format!("source <- {event:?}"));
        }
        let Some(source) = self.source.as_mut().filter(|source| !source.settled) else { return };
        let actions = source.machine.handle(event, now);
        for action in actions {
            if matches!(action, Action::Throttle(_) | Action::Pause) {
                self.turn = self.turn.or(Some(self.reached()));
            }
            let index = self.count(Side::Source);
            self.faults_at(When::Before(Side::Source, index));
            if self.source.is_none() {
                return;
            }
            self.note(|| format!("source -> {action:?}"));
            self.act_as_source(action);
            self.faults_at(When::After(Side::Source, index));
        }
    }

    pub(crate) fn feed_destination(&mut self, event: destination::Event) {
        let now = self.now;
        if self.destination.as_ref().is_some_and(|side| !side.settled) {
            self.note(|| format!("destination <- {event:?}"));
        }
        let Some(side) = self.destination.as_mut().filter(|side| !side.settled) else { return };
        let actions = side.machine.handle(event, now);
        for action in actions {
            let index = self.count(Side::Destination);
            self.faults_at(When::Before(Side::Destination, index));
            if self.destination.is_none() {
                return;
            }
            self.note(|| format!("destination -> {action:?}"));
            self.act_as_destination(action);
            self.faults_at(When::After(Side::Destination, index));
        }
    }

    fn count(&mut self, side: Side) -> u32 {
        let counter = self.actions.entry(side).or_default();
        *counter += 1;
        *counter - 1
    }

    fn act_as_source(&mut self, action: Action) {
        match action {
            Action::Send(message) => self.send_from_source(&message),
            Action::Record(state) => {
                let failed = self.fail_record.remove(&Side::Source);
                if failed != Some(RecordLoss::Gone) {
                    self.source_disk = Some(state);
                }
                if failed.is_some() {
                    self.facts.source_record_failed = true;
                    // The destination may have to give the guest back first.
                    self.stands_since = None;
                }
                let detail = "disk full".into();
                let answer = match failed {
                    None => source::Event::Recorded,
                    Some(_) => source::Event::RecordFailed { detail },
                };
                self.after(2 * MS, Happening::ToSource(answer));
            }
            Action::Reconnect => self.after(2 * self.scenario.latency, Happening::Dialled),
            Action::Disconnect => self.close_from(Side::Source),
            Action::Finished(report) => self.facts.source_reports.push(*report),
            Action::Settled => {
                if let Some(source) = &mut self.source {
                    source.settled = true;
                }
            }
            Action::Throttle(throttle) => self.throttle(throttle),
            action => self.act_on_source_guest(&action),
        }
    }

    fn throttle(&mut self, throttle: Throttle) {
        if let Some(guest) = self.source.as_mut().and_then(|source| source.guest.as_mut()) {
            guest.advance(self.now);
            guest.throttle = throttle;
        }
    }

    fn act_on_source_guest(&mut self, action: &Action) {
        let asks = matches!(
            action,
            Action::FlushDisks { .. }
                | Action::SaveState
                | Action::SendRound { .. }
                | Action::EndStreams
                | Action::CollectMissing
        );
        if asks && self.fail_guest.remove(&Side::Source).is_some() {
            let failed = source::Event::GuestFailed(GuestError::new("made to fail"));
            return self.after(MS, Happening::ToSource(failed));
        }
        if self.source.as_ref().is_some_and(|source| source.guest.is_none()) {
            return self.violation("an action on a guest that was dropped");
        }
        self.is_all_sent |= matches!(action, Action::SendRemainder { .. } | Action::CollectMissing);
        match action {
            Action::SendRound { .. } => self.send_next_round(),
            Action::ReopenStreams { applied } => self.reopen_streams(applied),
            Action::SendFinalRound { .. } => self.send_final_round(),
            Action::ReleaseGuest => self.stands_since = None,
            Action::SendRemainder { .. } => self.send_remainder(),
            Action::EndStreams => self.drain(),
            Action::Serve { missing } => self.serve(missing.clone()),
            Action::ServeRest => self.serve_rest(),
            _ => self.answer_as_source_guest(action),
        }
    }

    fn answer_as_source_guest(&mut self, action: &Action) {
        let (saves_late, flush) = (self.scenario.saves_late, self.flush());
        let Some(source) = &mut self.source else { return };
        let Some(guest) = &mut source.guest else { return };
        let answer = match action {
            Action::StartPrecopy(_) => {
                guest.start_log();
                source::Event::PrecopyStarted
            }
            Action::Probe => {
                let round_trip = 2 * self.scenario.latency;
                let (pause_and_save, stood) = (2 * MS, 2 * MS);
                let probe = Probe { flush: Duration::ZERO, pause_and_save, stood, round_trip };
                let probed = Happening::ToSource(source::Event::Probed(probe));
                return self.after(self.scenario.probe, probed);
            }
            Action::FlushDisks { attempt } => {
                self.flushed_at = Some(self.now + flush);
                let flushed = source::Event::Flushed { attempt: *attempt };
                return self.after(flush, Happening::ToSource(flushed));
            }
            Action::CollectMissing => {
                let mut written = PageSet::empty(CHUNKS);
                guest.collect(&mut written);
                source::Event::MissingCollected(written)
            }
            Action::Pause => {
                self.hand_overs += 1;
                self.stands_since = guest.running.then_some(self.now);
                return self.after(MS, Happening::PauseDone);
            }
            Action::SaveState => {
                // The state is saved during or after the last round, and dirties memory.
                let delay = if saves_late { 20 * MS } else { MS };
                let stops = source.stops;
                return self.after(delay, Happening::Save { stops });
            }
            Action::StopSending => {
                source.slower = 1;
                source.generation += 1;
                source.stops += 1;
                return;
            }
            Action::ResumeGuest if self.fail_guest.remove(&Side::Source).is_some() => {
                self.stands_since = None;
                self.facts.resume_failed = true;
                source::Event::Resumed(Err(GuestError::new("made to fail")))
            }
            Action::ResumeGuest => {
                guest.running = true;
                self.stands_since = None;
                self.check_given_back();
                source::Event::Resumed(Ok(()))
            }
            Action::StopDirtyLog => return guest.stop_log(),
            Action::DropGuest => {
                source.guest = None;
                return;
            }
            _ => return,
        };
        self.after(MS, Happening::ToSource(answer));
    }

    pub(crate) fn pause_done(&mut self) {
        let Some(guest) = self.source.as_mut().and_then(|source| source.guest.as_mut()) else {
            return;
        };
        let was = if guest.running { RunState::Running } else { RunState::Paused };
        guest.running = false;
        let event = match self.fail_guest.remove(&Side::Source) {
            None => source::Event::Paused { was },
            Some(_) => source::Event::PauseFailed { was, error: GuestError::new("made to fail") },
        };
        self.feed_source(event);
    }

    pub(crate) fn save(&mut self, stops: u32) {
        let Some(source) = self.source.as_mut().filter(|s| s.stops == stops) else {
            return;
        };
        let Some(guest) = &mut source.guest else { return };
        let state = guest.save_state();
        self.truth = Some(guest.content.clone());
        self.feed_source(source::Event::StateSaved { state });
    }

    /// Returns the duration of the flush in the present hand-over.
    fn flush(&self) -> Duration {
        if self.hand_overs <= self.scenario.slow_hand_overs { self.scenario.flush } else { MS }
    }

    /// Sends half of what is missing, as if it were requested. Its stream may overtake the control
    /// stream: pages may arrive before the destination knows that they are missing.
    fn serve(&mut self, mut missing: PageSet) {
        let Some(source) = &mut self.source else { return };
        source.served_at = self.now;
        source.rest = missing.take();
        for (chunk, word) in source.rest.words_mut().iter_mut().enumerate() {
            if chunk.is_multiple_of(2) {
                missing.words_mut()[chunk] = std::mem::take(word);
            }
        }
        self.send_missing(&missing);
    }

    fn serve_rest(&mut self) {
        let rest = self.source.as_mut().map(|source| source.rest.take());
        self.send_missing(&rest.unwrap_or_else(|| PageSet::empty(CHUNKS)));
    }

    /// Sends these pages on the present connection, after those that it has to send.
    fn send_missing(&mut self, pages: &PageSet) {
        let Some(source) = &self.source else { return };
        let (Some(conn), Some(guest)) = (source.conn, &source.guest) else { return };
        let memory = guest.content.memory.clone();
        let page = Duration::from_secs(1) / self.scenario.pages_per_second;
        let mut sent_at = source.served_at.max(self.now);
        for (chunk, mask) in pages.iter() {
            let content = memory[chunk * PAGES_PER_CHUNK..][..PAGES_PER_CHUNK].to_vec();
            let arrives = sent_at + self.scenario.latency / 2;
            self.at(arrives, Happening::Fetched { conn, pages: (chunk, mask, content) });
            sent_at += page * mask.count_ones();
        }
        if let Some(source) = &mut self.source {
            source.served_at = sent_at;
        }
    }

    /// Pages of memory arrive that follows the guest.
    pub(crate) fn fetched(&mut self, conn: u64, pages: ChunkPages) {
        let broken = self.conns.get(&conn).is_none_or(|conn| conn.broken);
        let is_sent = self.source.as_ref().is_some_and(|source| source.conn == Some(conn));
        let Some(side) = &mut self.destination else { return };
        if broken || !is_sent || side.conn != Some(conn) {
            return;
        }
        side.early.push(pages);
        if side.fetches || self.scenario.places_early {
            self.place();
        }
    }

    /// Places the pages that have arrived.
    fn place(&mut self) {
        let Some(side) = &mut self.destination else { return };
        let Some(guest) = &mut side.guest else { return };
        for (chunk, mask, content) in side.early.drain(..) {
            guest.arrive(chunk, mask, &content);
        }
        self.report_fetched();
    }

    /// The last missing pages are dropped: only now may pages be placed.
    pub(crate) fn dropped(&mut self, missing: &PageSet) {
        let Some(side) = &mut self.destination else { return };
        let Some(guest) = &mut side.guest else { return };
        guest.lose(missing);
        side.fetches = true;
        self.place();
    }

    fn report_fetched(&mut self) {
        let Some(side) = &mut self.destination else { return };
        let has_all = side.guest.as_ref().is_some_and(|guest| guest.missing.is_empty());
        if side.fetches && has_all {
            side.fetches = false;
            self.after(MS, Happening::ToDestination(destination::Event::Fetched));
        }
    }

    fn act_as_destination(&mut self, action: ToDo) {
        match action {
            ToDo::Send(message) => return self.send_from_destination(&message),
            ToDo::Disconnect => return self.close_from(Side::Destination),
            ToDo::ResumeGuest => return self.start_at_destination(),
            ToDo::Finished(report) => return self.facts.destination_reports.push(*report),
            // It takes a while, but less than to load the state, which follows.
            ToDo::Fetch(missing) => return self.after(MS, Happening::Dropped { missing }),
            ToDo::ReportMissing => return self.report_missing(),
            ToDo::CountFrames => return self.count_frames(),
            _ => {}
        }
        let fails = matches!(
            action,
            ToDo::LoadState(_) | ToDo::Create(_) | ToDo::AdoptGuest | ToDo::Clear(_)
        ) && self.fail_guest.remove(&Side::Destination).is_some();
        match action {
            action if fails => self.fail_at_destination(&action),
            ToDo::Record(state) => self.record_at_destination(state),
            ToDo::AdoptGuest => self.adopt_guest(),
            action => self.answer_at_destination(action),
        }
    }

    fn fail_at_destination(&mut self, action: &ToDo) {
        let failure = || Err(GuestError::new("made to fail"));
        let answer = match action {
            ToDo::Create(_) => {
                let refusal = migrate::Refusal::new(migrate::guest::RefusalKind::Memory, "full");
                destination::Event::Created(Err(refusal))
            }
            ToDo::Clear(_) => destination::Event::Cleared(failure()),
            ToDo::AdoptGuest => {
                let answer = destination::Event::Adopted(failure());
                return self.after(LOCK_PATIENCE, Happening::ToDestination(answer));
            }
            _ => destination::Event::Loaded(failure()),
        };
        self.after(2 * MS, Happening::ToDestination(answer));
    }

    fn record_at_destination(&mut self, state: DestinationState) {
        let failed = self.fail_record.remove(&Side::Destination);
        if failed != Some(RecordLoss::Gone) {
            self.destination_disk = Some(state);
        }
        let answer = match failed {
            None => destination::Event::Recorded,
            Some(_) => destination::Event::RecordFailed { detail: "disk full".into() },
        };
        self.after(2 * MS, Happening::ToDestination(answer));
    }

    fn adopt_guest(&mut self) {
        if self.scenario.paused_by_user {
            // A guest that stays paused is taken over by this action, not by a resume.
            self.check_takeover();
        }
        self.after(2 * MS, Happening::ToDestination(destination::Event::Adopted(Ok(()))));
    }

    fn answer_at_destination(&mut self, action: ToDo) {
        let Some(side) = &mut self.destination else { return };
        let answer = match action {
            ToDo::Check(_) => destination::Event::Checked(Ok(())),
            ToDo::Create(_) => {
                let scenario = &self.scenario;
                let guest = SimGuest::zeroed(scenario.writes_per_second, scenario.working_set);
                side.guest = Some(guest);
                destination::Event::Created(Ok(()))
            }
            ToDo::AcceptPages { .. } => {
                side.accepts = true;
                return;
            }
            ToDo::Clear(missing) => {
                if let Some(guest) = &mut side.guest {
                    guest.lose(&missing);
                }
                destination::Event::Cleared(Ok(()))
            }
            ToDo::StopFetching => {
                side.fetches = false;
                if let Some(guest) = &mut side.guest {
                    guest.running = false;
                }
                return;
            }
            ToDo::LoadState(state) => {
                let loads = side.guest.as_mut().is_some_and(|guest| guest.load_state(&state));
                assert!(loads, "a state that is none, or no guest to load it");
                let loaded = destination::Event::Loaded(Ok(()));
                return self.after(self.scenario.load, Happening::ToDestination(loaded));
            }
            ToDo::Discard => {
                side.guest = None;
                side.accepts = false;
                side.early.clear();
                return;
            }
            ToDo::Settled => {
                side.settled = true;
                return;
            }
            _ => return,
        };
        self.after(2 * MS, Happening::ToDestination(answer));
    }

    fn report_missing(&mut self) {
        let guest = self.destination.as_ref().and_then(|side| side.guest.as_ref());
        let Some(missing) = guest.map(|guest| PageMasks::of(&guest.missing)) else { return };
        self.send_from_destination(&DestinationMessage::Missing(missing));
    }

    fn start_at_destination(&mut self) {
        let fails = self.fail_guest.remove(&Side::Destination).is_some();
        let Some(side) = &mut self.destination else { return };
        let Some(guest) = &mut side.guest else {
            return self.violation("the destination starts a guest that it does not hold");
        };
        let answer = if fails {
            self.facts.takeover_failed = true;
            Err(GuestError::new("made to fail"))
        } else {
            guest.running = true;
            Ok(())
        };
        if !fails {
            self.check_takeover();
        }
        self.after(MS, Happening::ToDestination(destination::Event::Resumed(answer)));
    }
}
