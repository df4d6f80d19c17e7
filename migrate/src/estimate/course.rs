//! The simulated shell: performs the actions of a source and reports what would come of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::writes::{Order, Pages, Writes};
use super::{Forecast, Measured};
use crate::guest::RunState;
use crate::limits::Limits;
use crate::memory::{PAGE_BYTES, PageSet};
use crate::phase::Phase;
use crate::progress::Transfer;
use crate::protocol::{DestinationMessage, SourceMessage, Takeover, Version};
use crate::quic::transport::send_window;
use crate::report::{Outcome, Report};
use crate::source::{Action, Event, FinalSent, Probe, RoundSent, Source, SourceConfig};
use crate::stall::OnStall;

/// Time that the destination's node is assumed to take to start a process for the guest, and that
/// process to build it: the destination is asked for nothing that creates a guest.
const ADMISSION_SECONDS: f64 = 0.1;
const BUILD_SECONDS: f64 = 0.05;
/// Bytes of a frame of 64 zero pages.
const ZERO_FRAME_BYTES: u64 = 48;
/// Most events of a simulated migration; one that is not over by then does not end.
const EVENTS_MAX: u32 = 20_000;
/// Longest time that anything takes, a year: sums of it do not overflow.
const STEP_SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Forecasts a migration of a guest that writes in this `order`, and that does `on_stall` when it
/// stalls.
pub(super) fn forecast(
    measured: &Measured,
    config: &SourceConfig,
    bandwidth: Option<u64>,
    (on_stall, order): (OnStall, Order),
) -> Forecast {
    Course::new(measured, config, bandwidth, (on_stall, order)).run()
}

/// A simulated migration.
struct Course<'a> {
    measured: &'a Measured,
    writes: Writes,
    order: Order,
    source: Source,
    on_stall: OnStall,
    /// Limit in bytes per second.
    bandwidth: Option<u64>,
    now: Duration,
    /// Events to come, in the order of their times; those of one time in the order of their
    /// numbers.
    queue: BTreeMap<(Duration, u32), Event>,
    queued: u32,
    pending: Pending,
    /// How long the transport takes to send what it has queued.
    queued_seconds: f64,
    transfer: Transfer,
    throttle: u8,
    /// When the source hears, at the earliest, what the destination says once it is ready.
    ready: Duration,
    /// Memory follows the guest.
    serves: bool,
    report: Option<Report>,
}

/// The pages of the next round.
#[derive(Debug, Clone, Copy)]
struct Pending {
    /// Pages that are not zero.
    content: u64,
    /// Those of them that the guest may write: in the first round, any.
    writable: Pages,
    /// Zero pages of memory.
    zero: u64,
    /// Parts of disks that occupy no space and are not even read.
    holes: u64,
}

impl<'a> Course<'a> {
    fn new(
        measured: &'a Measured,
        config: &SourceConfig,
        bandwidth: Option<u64>,
        (on_stall, order): (OnStall, Order),
    ) -> Self {
        let limits = Limits { on_stall, ..config.limits };
        let config = SourceConfig { limits, estimate: None, ..config.clone() };
        let zero = (measured.memory_pages as f64 * measured.zero_ratio.clamp(0.0, 1.0)) as u64;
        let on_disks = measured.disk_content_pages.min(measured.disk_pages);
        let content = measured.memory_pages.saturating_sub(zero).saturating_add(on_disks);
        let all = content as f64;
        let pending = Pending {
            content,
            writable: Pages { hot: all, cold: all },
            zero,
            holes: measured.disk_pages - on_disks,
        };
        let most = measured.memory_pages.saturating_add(measured.disk_pages);
        Self {
            measured,
            writes: Writes::new(&measured.written, most),
            order,
            source: Source::new(config, Duration::ZERO),
            on_stall,
            bandwidth,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            pending,
            queued_seconds: 0.0,
            transfer: Transfer::default(),
            throttle: 0,
            ready: Duration::ZERO,
            serves: false,
            report: None,
        }
    }

    fn run(mut self) -> Forecast {
        // One connection to the node, and one to the process that it starts.
        let connecting = 2.0 * self.measured.path.connect_seconds + ADMISSION_SECONDS;
        self.after(connecting, Event::Connected);
        for _ in 0..EVENTS_MAX {
            if self.report.is_some() {
                break;
            }
            let (at, event) = self.next_event();
            self.now = at;
            for action in self.source.handle(event, at) {
                self.perform(action);
            }
        }
        match self.report.take() {
            Some(report) => reported(&report, self.on_stall),
            None => self.endless(),
        }
    }

    /// Takes the next event: what was planned, or the source's deadline if that is earlier.
    fn next_event(&mut self) -> (Duration, Event) {
        let deadline = self.source.deadline();
        let planned = self.queue.first_key_value().map(|((at, _), _)| *at);
        let is_due = planned.is_some_and(|at| deadline.is_none_or(|deadline| at <= deadline));
        match self.queue.pop_first() {
            Some(((at, _), event)) if is_due => return (at, event),
            Some((key, event)) => drop(self.queue.insert(key, event)),
            None => {}
        }
        (deadline.unwrap_or(self.now).max(self.now), Event::Tick)
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.queue.insert((self.now.saturating_add(duration(seconds)), self.queued), event);
        self.queued = self.queued.saturating_add(1);
    }

    fn perform(&mut self, action: Action) {
        let Measured { dry_run, path, .. } = self.measured;
        match action {
            Action::Send(message) => self.answer(&message),
            // The first record is a new file, and later ones are lines of it.
            Action::Record(_) if self.source.phase() == Phase::Connect => {
                self.after(dry_run.record_seconds, Event::Recorded);
            }
            Action::Record(_) => self.after(dry_run.record_change_seconds, Event::Recorded),
            Action::StartPrecopy(_) => {
                self.after(self.measured.log_seconds, Event::PrecopyStarted);
            }
            Action::Probe => self.probe(),
            Action::SendRound { .. } => self.send_round(),
            Action::Throttle(throttle) => self.throttle = throttle.percent,
            Action::Pause => {
                let was = self.run_state();
                self.after(dry_run.pause_and_save_seconds / 2.0, Event::Paused { was });
            }
            Action::FlushDisks { attempt } => {
                self.after(dry_run.flush_seconds, Event::Flushed { attempt });
            }
            Action::SendFinalRound { .. } => self.send_final_round(),
            Action::SaveState => {
                let saved = Event::StateSaved { state: Vec::new() };
                self.after(dry_run.pause_and_save_seconds / 2.0, saved);
            }
            Action::SendRemainder { .. } => {
                self.collect_last(Event::RemainderSent(FinalSent::default()));
            }
            Action::EndStreams => self.after(0.0, Event::StreamsEnded(PageSet::empty(0))),
            Action::CollectMissing => {
                self.collect_last(Event::MissingCollected(PageSet::empty(0)));
            }
            Action::Serve { .. } => self.serves = true,
            Action::ResumeGuest => self.after(0.0, Event::Resumed(Ok(()))),
            Action::Reconnect => self.after(path.connect_seconds, Event::Connected),
            Action::Finished(report) => self.report = Some(*report),
            Action::ServeRest
            | Action::StopSending
            | Action::ReleaseGuest
            | Action::ReopenStreams { .. }
            | Action::StopDirtyLog
            | Action::Disconnect
            | Action::DropGuest
            | Action::Settled => {}
        }
    }

    /// Reads the log a last time, which is `collected`, and plans the answer of the destination
    /// once it has loaded the state. If the commit is early, it says nothing, and does not record
    /// that it is ready.
    fn collect_last(&mut self, collected: Event) {
        let Measured { dry_run, path, collect_seconds, .. } = self.measured;
        self.after(*collect_seconds, collected);
        let loaded = collect_seconds + path.answer_seconds + dry_run.pause_and_save_seconds;
        if self.source.commits_early() {
            self.ready = self.now.saturating_add(duration(loaded));
        } else {
            let ready = DestinationMessage::Ready { load_us: 0 };
            self.after(loaded + dry_run.record_change_seconds, Event::Message(ready));
        }
    }

    /// Plans the end of post-copy: all pages that the last round has left are sent after the guest.
    fn send_missing(&mut self) {
        let (_, seconds) = self.send_pending();
        let Measured { dry_run, path, .. } = self.measured;
        let sent = 2.0 * path.answer_seconds + dry_run.record_change_seconds + seconds;
        self.after(sent, Event::Transferred(self.transfer));
        let complete = DestinationMessage::Complete { longest_wait_us: 0 };
        self.after(sent, Event::Message(complete));
    }

    /// Plans the destination's answer to a message, if there is one.
    fn answer(&mut self, message: &SourceMessage) {
        let Measured { dry_run, path, .. } = self.measured;
        let (delay, answer) = match message {
            SourceMessage::Hello { offer, .. } => {
                let version = offer.versions.iter().max().copied().unwrap_or(Version(1));
                (0.0, DestinationMessage::Welcome { version, features: offer.features })
            }
            SourceMessage::Prepare(_) => (BUILD_SECONDS, DestinationMessage::Prepared),
            SourceMessage::Missing(_) if self.source.phase() < Phase::Switchover => {
                (0.0, DestinationMessage::Cleared)
            }
            SourceMessage::Commit => {
                if self.serves {
                    self.send_missing();
                }
                let answered = self.now.saturating_add(duration(path.answer_seconds));
                let loading = self.ready.saturating_sub(answered).as_secs_f64();
                let resume = dry_run.pause_and_save_seconds / 2.0;
                let taken = loading + dry_run.record_change_seconds + resume;
                (taken, DestinationMessage::Running(Takeover::default()))
            }
            SourceMessage::Abort(_) | SourceMessage::Resolve { .. } => {
                (0.0, DestinationMessage::Discarded)
            }
            SourceMessage::Return => (0.0, DestinationMessage::Returned),
            SourceMessage::Switchover
            | SourceMessage::Continue { .. }
            | SourceMessage::Missing(_)
            | SourceMessage::Withdraw(_)
            | SourceMessage::State(_)
            | SourceMessage::Finish
            | SourceMessage::Disks(_)
            | SourceMessage::Node { .. } => return,
        };
        self.after(path.answer_seconds + delay, Event::Message(answer));
    }

    fn run_state(&self) -> RunState {
        if self.measured.is_running { RunState::Running } else { RunState::Paused }
    }

    /// Plans the end of a dry run; by then, nothing is queued.
    fn probe(&mut self) {
        self.queued_seconds = 0.0;
        let Measured { dry_run, path, .. } = self.measured;
        let probe = Probe {
            pause_and_save: duration(dry_run.pause_and_save_seconds),
            stood: duration(dry_run.stood_seconds),
            flush: duration(dry_run.flush_seconds),
            round_trip: duration(path.round_trip_seconds),
        };
        let took =
            2.0 * dry_run.flush_seconds + dry_run.pause_and_save_seconds.max(dry_run.stood_seconds);
        self.after(took, Event::Probed(probe));
    }

    fn send_round(&mut self) {
        let writable = self.pending.writable;
        let (sent, sending) = self.send_pending();
        // A round begins behind what the one before it has left in the queue.
        let left = self.queued_by(sent);
        let before = std::mem::replace(&mut self.queued_seconds, left);
        let seconds = (before + sending - left).max(0.0) + self.measured.collect_seconds;
        let running = seconds * f64::from(100 - self.throttle.min(100)) / 100.0;
        let writable = self.writes.left_by_round(running, writable, self.order);
        let dirty_pages = writable.sum() as u64;
        self.pending = Pending { content: dirty_pages, writable, zero: 0, holes: 0 };
        self.after(seconds, Event::Transferred(self.transfer));
        self.after(seconds, Event::RoundSent(RoundSent { dirty_pages, ..sent }));
    }

    /// Returns how long the transport still sends what a round has left in its queue.
    fn queued_by(&self, sent: RoundSent) -> f64 {
        let path = &self.measured.path;
        if path.is_limited_by(self.bandwidth) {
            return 0.0;
        }
        let rate = path.bytes_per_second.max(1.0);
        let round_trip = duration(path.round_trip_seconds);
        let window = send_window(rate, round_trip, sent.pages.saturating_mul(PAGE_BYTES as u64));
        (window.min(sent.wire_bytes) as f64 / rate - path.round_trip_seconds).max(0.0)
    }

    /// Sends what the last round has left, and what was written until the guest was paused, after
    /// what is queued.
    fn send_final_round(&mut self) {
        let pausing = self.measured.dry_run.pause_and_save_seconds / 2.0;
        let more = self.writes.within(pausing).sum() as u64;
        self.pending.content = self.pending.content.saturating_add(more);
        let (sent, sending) = self.send_pending();
        let queued = std::mem::take(&mut self.queued_seconds);
        let seconds = queued + sending + self.measured.collect_seconds;
        self.after(seconds, Event::Transferred(self.transfer));
        self.after(seconds, Event::RoundSent(sent));
    }

    /// Sends all pending pages; returns what was sent, and how many seconds that takes.
    fn send_pending(&mut self) -> (RoundSent, f64) {
        let Pending { content, zero, holes, .. } = self.pending;
        let Measured { path, zero_page_seconds, .. } = self.measured;
        let bytes = content as f64 * path.page_bytes.max(1.0);
        let limit = self.bandwidth.map_or(f64::INFINITY, |limit| limit as f64);
        let rate = path.bytes_per_second.min(limit).max(1.0);
        let seconds = bytes / rate + zero as f64 * zero_page_seconds;
        let wire_bytes = (bytes as u64).saturating_add(zero.div_ceil(64) * ZERO_FRAME_BYTES);
        self.transfer += Transfer {
            wire_bytes,
            raw_pages: content,
            zero_pages: zero.saturating_add(holes),
            ..Transfer::default()
        };
        let zero_pages = zero.saturating_add(holes);
        let pages = content.saturating_add(zero_pages);
        (RoundSent { pages, zero_pages, wire_bytes, ..RoundSent::default() }, seconds)
    }

    /// Forecasts a migration that is not over after all these events: nothing will change.
    fn endless(&self) -> Forecast {
        let progress = self.source.progress(self.now);
        let expected = progress.expected_downtime_seconds.unwrap_or_default();
        let dirtied = progress.dirty_pages_per_second * PAGE_BYTES as f64 / 1e6;
        Forecast {
            on_stall: self.on_stall,
            arrives: false,
            total_seconds: None,
            downtime_seconds: None,
            downtime_seconds_max: None,
            wire_bytes: self.transfer.wire_bytes,
            rounds: progress.round,
            throttle_percent: progress.throttle_percent,
            forced: false,
            why_not: Some(format!(
                "rounds do not end: the guest dirties {dirtied:.1} MB/s, and its pause would take {expected:.3} s, above the \
                 limit of {:.3} s",
                progress.downtime_limit_seconds
            )),
        }
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, STEP_SECONDS_MAX)).unwrap_or_default()
}

fn reported(report: &Report, on_stall: OnStall) -> Forecast {
    let arrives = report.outcome == Outcome::Migrated;
    let stall = report.stall.as_ref();
    Forecast {
        on_stall,
        arrives,
        total_seconds: Some(report.total_seconds),
        downtime_seconds: report.downtime_seconds.filter(|_| arrives),
        downtime_seconds_max: report.downtime_seconds.filter(|_| arrives),
        wire_bytes: report.transfer.wire_bytes,
        rounds: report.rounds_total,
        throttle_percent: stall.map_or(0, |stall| stall.throttle_percent_max),
        forced: stall.is_some_and(|stall| stall.forced),
        why_not: report.error.as_ref().map(|error| error.message.clone()),
    }
}
