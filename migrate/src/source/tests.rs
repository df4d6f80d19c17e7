//! Cases that the simulated pair of `tests/pair` does not cover: exact order, exact text, unusual
//! timing.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::error::{CancelRefused, OperatorChoice, ResolveRefused};
use crate::guest::{GuestDescription, GuestError, Refusal, RefusalKind, RunState};
use crate::limits::Limits;
use crate::memory::{CHUNK_BYTES, MemoryLayout, Region};
use crate::phase::Phase;
use crate::progress::Transfer;
use crate::protocol::{
    Decision, DestinationMessage, Features, MigrationId, Offer, SourceMessage, Takeover, Version,
};
use crate::reason::Reason;
use crate::record::SourceState;
use crate::report::{Outcome, Report};
use crate::stall::OnStall;
use crate::text::Blob;

mod disks;
mod doubts;
mod early;
mod links;
mod machine;
mod node;
mod postcopy;
mod reconnect;
mod stall;
mod standstill;

const MS: Duration = Duration::from_millis(1);

/// A source and its clock.
struct Bench {
    source: Source,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        let bytes = 64 * CHUNK_BYTES as u64;
        let guest = GuestDescription {
            name: "web-1".to_owned(),
            uuid: Uuid::from_u128(1),
            layout: MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap(),
            vcpus: 1,
            config: Blob::default(),
            disks: Vec::new(),
            has_pci: false,
        };
        let config = SourceConfig {
            migration: MigrationId(Uuid::from_u128(9)),
            guest,
            offer: Offer::ours(),
            streams: 2,
            has_links: false,
            limits: Limits::default(),
            node_port: None,
            estimate: None,
        };
        Self { source: Source::new(config, Duration::ZERO), now: Duration::ZERO }
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        self.now += MS;
        self.source.handle(event, self.now)
    }

    fn hear(&mut self, message: DestinationMessage) -> Vec<Action> {
        self.feed(Event::Message(message))
    }

    /// Runs up to the first round, with a record that takes `record` and a switchover that takes
    /// the times in `probe`.
    fn begin_with(&mut self, record: Duration, probe: Probe) {
        self.feed(Event::Connected);
        self.now += record;
        self.feed(Event::Recorded);
        self.hear(welcome());
        self.hear(DestinationMessage::Prepared);
        self.feed(Event::PrecopyStarted);
        assert_eq!(self.feed(Event::Probed(probe)), [Action::SendRound { round: 1 }]);
    }

    fn begin(&mut self, probe: Probe) {
        self.begin_with(Duration::ZERO, probe);
    }

    /// Runs up to the first round.
    fn copying() -> Self {
        let mut bench = Self::new();
        bench.begin(Probe { pause_and_save: 2 * MS, round_trip: MS, ..Probe::default() });
        bench
    }

    /// Runs until the guest is paused.
    fn paused(was: RunState) -> Self {
        let mut bench = Self::copying();
        bench.feed(Event::RoundSent(RoundSent::default()));
        bench.feed(Event::Paused { was });
        bench
    }

    /// Runs until only the destination's `Ready` is missing.
    fn awaiting_ready() -> Self {
        let mut bench = Self::paused(RunState::Running);
        bench.feed(Event::RoundSent(RoundSent::default()));
        bench.feed(Event::Flushed { attempt: 0 });
        bench.feed(Event::StateSaved { state: vec![1] });
        bench.feed(Event::RemainderSent(FinalSent::default()));
        bench
    }

    /// Runs up to the answer to the commit.
    fn committed() -> Self {
        let mut bench = Self::awaiting_ready();
        let decided = bench.hear(DestinationMessage::Ready { load_us: 1 });
        assert_eq!(decided, [Action::Record(SourceState::Committed)]);
        let produced = bench.feed(Event::Recorded);
        assert_eq!(produced, [Action::ReleaseGuest, Action::Send(SourceMessage::Commit)]);
        bench
    }

    /// Runs until the source is in doubt, because the destination does not know the migration.
    fn in_doubt() -> Self {
        let mut bench = Self::committed();
        bench.hear(DestinationMessage::Unknown);
        bench
    }
}

fn welcome() -> DestinationMessage {
    DestinationMessage::Welcome { version: Version(1), features: Features(1) }
}

fn lost() -> Event {
    Event::ConnectionLost { detail: "timed out".into() }
}

fn report(actions: &[Action]) -> &Report {
    let finished = actions.iter().find_map(|action| match action {
        Action::Finished(report) => Some(report),
        _ => None,
    });
    finished.unwrap()
}

#[test]
fn writes_its_record_before_its_first_message() {
    let mut bench = Bench::new();
    assert_eq!(bench.feed(Event::Connected), [Action::Record(SourceState::Undecided)]);
    let hello =
        SourceMessage::Hello { migration: MigrationId(Uuid::from_u128(9)), offer: Offer::ours() };
    assert_eq!(bench.feed(Event::Recorded), [Action::Send(hello)]);
}

#[test]
fn a_destination_that_cannot_be_reached_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let actions = bench.feed(lost());
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
    let error = report(&actions).error.clone().unwrap();
    assert_eq!(error.message, "cannot connect: timed out");
    assert_eq!(actions.last(), Some(&Action::Settled));
}

#[test]
fn a_refusal_is_reported_in_the_destinations_words() {
    let mut bench = Bench::new();
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    bench.hear(welcome());
    let refusal = Refusal::new(RefusalKind::Memory, "host-b has 1 GiB free, the guest needs 2 GiB");

    assert_eq!(
        bench.hear(DestinationMessage::Refused(refusal)),
        [Action::Record(SourceState::Aborted)]
    );
    let actions = bench.feed(Event::Recorded);

    let error = report(&actions).error.clone().unwrap();
    assert_eq!((error.phase, error.reason), (Phase::Prepare, Reason::Refused));
    assert!(error.message.ends_with("host-b has 1 GiB free, the guest needs 2 GiB"));
}

#[test]
fn a_version_that_was_not_offered_is_a_protocol_error() {
    let mut bench = Bench::new();
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let strange = DestinationMessage::Welcome { version: Version(9), features: Features(0) };
    let actions = bench.hear(strange);
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(complaint))
        if complaint.reason() == Reason::Protocol));
}

#[test]
fn pauses_then_flushes_and_saves_beside_the_last_round_then_collects_once_more() {
    let mut bench = Bench::copying();
    assert_eq!(
        bench.feed(Event::RoundSent(RoundSent::default())),
        [Action::Send(SourceMessage::Switchover), Action::Pause]
    );
    assert_eq!(
        bench.feed(Event::Paused { was: RunState::Running }),
        [Action::FlushDisks { attempt: 0 }, Action::SendFinalRound { round: 2 }, Action::SaveState]
    );
    let state = bench.feed(Event::StateSaved { state: vec![7] });
    assert!(matches!(&state[..], [Action::Send(SourceMessage::State(state))]
        if state.state.0 == [7] && state.run_state == RunState::Running));
    assert_eq!(bench.feed(Event::RoundSent(RoundSent::default())), []);
    assert_eq!(bench.feed(Event::Flushed { attempt: 0 }), [Action::SendRemainder { round: 2 }]);
}

#[test]
fn a_ready_that_overtakes_the_last_pages_waits_for_them() {
    let mut bench = Bench::paused(RunState::Running);
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.feed(Event::Flushed { attempt: 0 });
    bench.feed(Event::StateSaved { state: vec![] });
    assert_eq!(bench.hear(DestinationMessage::Ready { load_us: 1 }), []);
    assert_eq!(
        bench.feed(Event::RemainderSent(FinalSent::default())),
        [Action::Record(SourceState::Committed)]
    );
}

#[test]
fn the_guest_is_resumed_before_anything_that_can_wait() {
    let mut bench = Bench::awaiting_ready();
    let actions = bench.feed(Event::Cancel { by: "ops".into() });
    assert!(matches!(actions[0], Action::Send(SourceMessage::Abort(_))));
    assert_eq!(actions[1..], [Action::StopSending, Action::ResumeGuest, Action::StopDirtyLog]);
    assert_eq!(bench.feed(Event::Resumed(Ok(()))), []);
    assert_eq!(bench.hear(DestinationMessage::Discarded), [Action::Record(SourceState::Aborted)]);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
    assert!(report(&actions).downtime_seconds.unwrap() > 0.0);
    assert_eq!(actions[1..], [Action::Disconnect, Action::Settled]);
    assert_eq!(bench.source.can_cancel(), Err(CancelRefused::Over));
}

#[test]
fn a_cancel_while_the_guest_is_being_paused_waits_for_the_pause() {
    for (was, expected) in
        [(RunState::Running, vec![Action::ResumeGuest]), (RunState::Paused, vec![])]
    {
        let mut bench = Bench::copying();
        bench.feed(Event::RoundSent(RoundSent::default()));
        let actions = bench.feed(Event::Cancel { by: "ops".into() });
        assert!(!actions.contains(&Action::ResumeGuest));
        assert_eq!(bench.feed(Event::Paused { was }), expected);
    }
}

#[test]
fn too_late_to_cancel_once_the_commit_is_being_recorded() {
    let mut bench = Bench::awaiting_ready();
    assert_eq!(bench.source.can_cancel(), Ok(()));
    bench.hear(DestinationMessage::Ready { load_us: 1 });
    assert_eq!(bench.source.can_cancel(), Err(CancelRefused::Committed));
    assert_eq!(bench.feed(Event::Cancel { by: "ops".into() }), []);
}

#[test]
fn stays_paused_and_asks_again_when_the_answer_to_a_commit_is_lost() {
    let mut bench = Bench::committed();
    assert_eq!(bench.feed(lost()), []);
    assert!(bench.source.progress(bench.now).in_doubt.unwrap().contains("--resolve run web-1"));

    let mut pauses = Vec::new();
    for _ in 0..12 {
        let at = bench.source.deadline().unwrap();
        pauses.push(at - bench.now);
        bench.now = at;
        assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
        assert_eq!(bench.feed(lost()), []);
    }
    assert_eq!(pauses[0], 100 * MS);
    assert!(pauses.is_sorted());
    assert_eq!(pauses[11], Duration::from_secs(10));

    let migration = MigrationId(Uuid::from_u128(9));
    let at = bench.source.deadline().unwrap();
    bench.source.handle(Event::Tick, at);
    assert_eq!(
        bench.feed(Event::Connected),
        [Action::Send(SourceMessage::Resolve { migration, decision: Decision::Commit })]
    );
    assert_eq!(
        bench.hear(DestinationMessage::Running(Takeover::default())),
        [Action::Record(SourceState::Done)]
    );
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions[..2], [Action::Send(SourceMessage::Finish), Action::DropGuest]);
    assert_eq!(report(&actions).outcome, Outcome::Migrated);
    assert_eq!(bench.source.phase(), Phase::Resume);
}

#[test]
fn a_commit_that_cannot_be_recorded_is_undone_before_the_guest_resumes() {
    let mut bench = Bench::awaiting_ready();
    bench.hear(DestinationMessage::Ready { load_us: 1 });
    let failed = || Event::RecordFailed { detail: "no space left".into() };
    assert_eq!(bench.feed(failed()), [Action::Record(SourceState::Undecided)]);
    // The disk may still say commit: the destination must discard its copy first.
    let actions = bench.feed(failed());
    assert!(matches!(
        actions[..],
        [Action::Send(SourceMessage::Resolve { decision: Decision::Aborted, .. })]
    ));
    assert_eq!(bench.hear(DestinationMessage::Discarded), [Action::Record(SourceState::Aborted)]);
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::Record);
}

#[test]
fn a_guest_that_does_not_resume_stays_paused_and_is_reported_with_both_causes() {
    let mut bench = Bench::awaiting_ready();
    bench.feed(Event::Cancel { by: "ops".into() });
    bench.hear(DestinationMessage::Discarded);
    bench.feed(Event::Resumed(Err(GuestError::new("another host has its disk"))));
    let actions = bench.feed(Event::Recorded);
    let report = report(&actions);
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert!(report.error.as_ref().unwrap().message.contains("ops"));
    let way_out = report.way_out.as_ref().unwrap();
    for part in ["stays paused here", "another host has its disk", "lighter resume web-1"] {
        assert!(way_out.contains(part), "{way_out}");
    }
    assert_eq!(report.downtime_seconds, None);
}

#[test]
fn a_guest_that_shuts_down_ends_its_migration() {
    let mut bench = Bench::copying();
    bench.feed(Event::GuestStopped { detail: "it shut down".into() });
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::GuestStopped);
}

#[test]
fn a_destination_that_does_not_answer_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let at = bench.source.deadline().unwrap();
    assert_eq!(at, bench.now + Duration::from_secs(60));
    assert!(matches!(
        bench.source.handle(Event::Tick, at)[..],
        [Action::Send(SourceMessage::Abort(_))]
    ));
    // Nor does it wait forever for the answer to its abort.
    let at = bench.source.deadline().unwrap();
    let actions = bench.source.handle(Event::Tick, at);
    assert_eq!(actions, [Action::Disconnect, Action::Record(SourceState::Aborted)]);
    let actions = bench.feed(Event::Recorded);
    let error = report(&actions).error.clone().unwrap();
    assert_eq!(error.reason, Reason::NoAnswer);
    assert!(error.message.contains("no Welcome"), "{}", error.message);
}

#[test]
fn the_first_round_shows_its_rate_before_it_ends() {
    let mut bench = Bench::copying();
    bench.now += Duration::from_secs(2);
    let transfer = Transfer { raw_pages: 1000, zero_pages: 500, ..Transfer::default() };
    bench.source.handle(Event::Transferred(transfer), bench.now);
    let rate = bench.source.progress(bench.now).bandwidth_bytes_per_second;
    assert!((rate - 2_048_000.0).abs() < 10_000.0, "{rate}");
}

#[test]
fn reports_when_rounds_do_not_help() {
    let mut bench = Bench::copying();
    bench.source.config.limits.on_stall = OnStall::Wait;
    assert!(bench.source.progress(bench.now).converging);
    for _ in 0..3 {
        bench.now += Duration::from_secs(1);
        let round = RoundSent { pages: 4096, dirty_pages: 4096, ..RoundSent::default() };
        let actions = bench.feed(Event::RoundSent(round));
        assert!(matches!(actions[..], [Action::SendRound { .. }]));
    }
    let progress = bench.source.progress(bench.now);
    assert!(!progress.converging);
    assert!(progress.expected_downtime_seconds.unwrap() > 0.9);
    assert_eq!(progress.remaining_bytes, 4096 * 4096);
    assert_eq!(progress.round, 4);
}

#[test]
fn a_limit_below_the_fixed_part_is_measured_again_without_busy_looping() {
    let mut bench = Bench::new();
    bench.source.config.limits.downtime = 10 * MS;
    bench.begin(Probe { pause_and_save: 40 * MS, round_trip: MS, ..Probe::default() });

    assert_eq!(bench.feed(Event::RoundSent(RoundSent::default())), []);

    let progress = bench.source.progress(bench.now);
    assert!(!progress.converging && progress.expected_downtime_seconds.unwrap() > 0.08);
    let at = bench.source.deadline().unwrap();
    assert_eq!(at, bench.now + 2500 * MS);
    bench.now = at;
    let again = bench.source.handle(Event::Tick, at);
    assert_eq!(again, [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
    let faster =
        bench.feed(Event::Probed(Probe { pause_and_save: MS, round_trip: MS, ..Probe::default() }));
    assert_eq!(faster, [Action::SendRound { round: 2 }]);
    assert_eq!(
        bench.feed(Event::RoundSent(RoundSent::default())),
        [Action::Send(SourceMessage::Switchover), Action::Pause]
    );
}

#[test]
fn dry_runs_stop_the_guest_for_no_more_than_a_fiftieth_of_the_time() {
    let mut bench = Bench::new();
    bench.source.config.limits.downtime = 10 * MS;
    let stood = 100 * MS;
    bench.begin(Probe { pause_and_save: stood, stood, ..Probe::default() });
    bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(bench.source.deadline().unwrap(), bench.now + 50 * stood);
}

#[test]
fn a_disk_that_was_busy_at_the_start_does_not_hold_up_the_migration_for_ever() {
    let mut bench = Bench::new();
    let probe = Probe { pause_and_save: MS, round_trip: MS, ..Probe::default() };
    bench.begin_with(Duration::from_secs(2), probe);
    assert_eq!(bench.feed(Event::RoundSent(RoundSent::default())), []);

    bench.now = bench.source.deadline().unwrap();
    bench.feed(Event::Tick);
    bench.feed(Event::Recorded);
    bench.feed(Event::Probed(probe));
    assert_eq!(
        bench.feed(Event::RoundSent(RoundSent::default())),
        [Action::Send(SourceMessage::Switchover), Action::Pause]
    );
}

#[test]
fn a_full_disk_is_detected_while_the_switchover_is_measured() {
    let mut bench = Bench::new();
    bench.source.config.limits.downtime = MS;
    bench.begin(Probe { pause_and_save: 40 * MS, round_trip: MS, ..Probe::default() });
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.now = bench.source.deadline().unwrap();
    bench.feed(Event::Tick);

    let actions = bench.feed(Event::RecordFailed { detail: "no space left on device".into() });
    assert!(matches!(actions[0], Action::Send(SourceMessage::Abort(_))), "{actions:?}");
    assert!(actions.contains(&Action::StopDirtyLog));
}

#[test]
fn a_guest_of_zero_pages_alone_switches_over() {
    let mut bench = Bench::copying();
    let zeros =
        RoundSent { pages: 4096, zero_pages: 4096, dirty_pages: 10, ..RoundSent::default() };
    let actions = bench.feed(Event::RoundSent(zeros));
    assert_eq!(actions.last(), Some(&Action::Pause));
}

#[test]
fn a_destination_resolved_to_run_meanwhile_raises_the_alarm() {
    let mut bench = Bench::awaiting_ready();
    bench.feed(Event::Cancel { by: "a test".into() });
    bench.feed(Event::Resumed(Ok(())));
    let stayed = bench.feed(lost());
    assert_eq!(report(&stayed).outcome, Outcome::StayedAtSource);

    bench.now = bench.source.deadline().unwrap();
    assert_eq!(bench.feed(Event::Tick), [Action::Reconnect]);
    bench.feed(Event::Connected);
    let settled = bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 }));
    let error = report(&settled).error.clone().unwrap();
    assert_eq!(error.reason, Reason::InDoubt);
    assert!(error.message.contains("stop one of them"), "{}", error.message);
    assert!(!settled.iter().any(|it| matches!(it, Action::Record(_))), "{settled:?}");
    let last = bench.source.records.last_asked();
    assert_eq!(last, Some(SourceState::Undecided), "not that it is here alone");
    assert_eq!(settled.last(), Some(&Action::Settled));
}

#[test]
fn a_guest_that_ended_here_belongs_to_a_destination_resolved_to_run() {
    let mut bench = Bench::awaiting_ready();
    bench.feed(Event::Cancel { by: "a test".into() });
    bench.feed(Event::GuestStopped { detail: "it was ended".into() });
    bench.feed(lost());
    bench.now = bench.source.deadline().unwrap();
    bench.feed(Event::Tick);
    bench.feed(Event::Connected);
    let heard = bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 }));
    assert!(heard.contains(&Action::Record(SourceState::Done)), "{heard:?}");
    let settled = bench.feed(Event::Recorded);
    assert_eq!(report(&settled).outcome, Outcome::Lost);
}

#[test]
fn a_second_copy_reported_while_the_end_is_written_is_recorded_too() {
    let mut bench = Bench::copying();
    bench.feed(Event::Cancel { by: "a test".into() });
    bench.feed(Event::Resumed(Ok(())));
    let produced = bench.hear(DestinationMessage::Discarded);
    assert!(produced.contains(&Action::Record(SourceState::Aborted)), "{produced:?}");
    bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 }));
    let undone = bench.feed(Event::Recorded);
    assert_eq!(undone, [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded).last(), Some(&Action::Settled));
}

#[test]
fn a_guest_that_ends_during_cancellation_is_not_reported_as_running() {
    let mut bench = Bench::copying();
    bench.feed(Event::Cancel { by: "a test".into() });
    bench.feed(Event::GuestStopped { detail: "it shut down".into() });
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::GuestStopped);
}

#[test]
fn a_guest_left_paused_by_a_failed_measurement_is_resumed() {
    for is_cancelled in [false, true] {
        let mut bench = Bench::copying();
        bench.source.config.limits.downtime = MS;
        bench.feed(Event::RoundSent(RoundSent::default()));
        bench.now = bench.source.deadline().unwrap();
        bench.feed(Event::Tick);
        assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
        if is_cancelled {
            bench.feed(Event::Cancel { by: "a test".into() });
        }
        let error = GuestError::new("a vcpu does not answer");
        let actions = bench.feed(Event::PauseFailed { was: RunState::Running, error });
        assert!(actions.contains(&Action::ResumeGuest), "{actions:?}");
    }
}

#[test]
fn after_an_answer_the_reconnect_delay_starts_over() {
    let mut bench = Bench::committed();
    let mut pauses = Vec::new();
    for answer in [None, None, Some(DestinationMessage::Ready { load_us: 1 })] {
        bench.feed(lost());
        pauses.push(bench.source.deadline().unwrap() - bench.now);
        bench.now = bench.source.deadline().unwrap();
        bench.feed(Event::Tick);
        bench.feed(Event::Connected);
        answer.into_iter().for_each(|message| drop(bench.hear(message)));
    }
    bench.feed(lost());
    pauses.push(bench.source.deadline().unwrap() - bench.now);
    assert_eq!(pauses, [100 * MS, 200 * MS, 400 * MS, 100 * MS]);
}
