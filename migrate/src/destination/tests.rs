//! Cases that the simulated pair of `tests/pair` does not cover: exact order, exact text, unusual
//! timing.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::error::{CancelRefused, OperatorChoice, ResolveRefused};
use crate::guest::{GuestDescription, GuestError, Refusal, RefusalKind, RunState};
use crate::memory::{CHUNK_BYTES, MemoryLayout, Region};
use crate::protocol::{
    Complaint, Decision, DestinationMessage, FEATURE_EARLY_COMMIT, Features, MigrationId, Offer,
    Prepare, SavedState, SourceMessage, Version,
};
use crate::reason::Reason;
use crate::record::DestinationState;
use crate::report::{Outcome, Report};
use crate::text::Blob;

mod disks;
mod early;
mod node;
mod postcopy;
mod reconnect;
mod returning;

const MS: Duration = Duration::from_millis(1);

struct Bench {
    destination: Destination,
    now: Duration,
}

impl Bench {
    /// A destination of a release without early commits.
    fn new() -> Self {
        Self::with(Features::SUPPORTED.without(FEATURE_EARLY_COMMIT))
    }

    fn with(features: Features) -> Self {
        let config = DestinationConfig {
            migration: migration(),
            offer: Offer { features, ..Offer::ours() },
            linger: Duration::from_secs(30),
        };
        let destination = Destination::new(config, Duration::ZERO);
        let mut bench = Self { destination, now: Duration::ZERO };
        bench.feed(Event::Connected);
        bench
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        self.now += MS;
        self.destination.handle(event, self.now)
    }

    fn hear(&mut self, message: SourceMessage) -> Vec<Action> {
        self.feed(Event::Message(message))
    }

    fn greeted() -> Self {
        Self::new().greet()
    }

    fn greet(mut self) -> Self {
        self.hear(hello(Offer::ours()));
        self
    }

    /// Runs up to the first page.
    fn receiving(streams: u16) -> Self {
        Self::greeted().receive(streams)
    }

    fn receive(self, streams: u16) -> Self {
        let mut bench = self;
        bench.hear(prepare(guest("web-1"), streams));
        bench.feed(Event::Checked(Ok(())));
        bench.feed(Event::Created(Ok(())));
        let actions = bench.feed(Event::Recorded);
        assert_eq!(actions[1], Action::Send(DestinationMessage::Prepared));
        bench
    }

    fn loading() -> Self {
        Self::receiving(1).load()
    }

    fn load(self) -> Self {
        let mut bench = self;
        bench.hear(SourceMessage::Switchover);
        bench.hear(state(RunState::Running));
        let ended = Event::StreamEnded { stream: 0, announced: 5, applied: 5 };
        assert_eq!(bench.feed(ended), [Action::LoadState(vec![1])]);
        bench
    }

    fn ready() -> Self {
        let mut bench = Self::loading();
        assert_eq!(bench.feed(Event::Loaded(Ok(()))), [Action::Record(DestinationState::Ready)]);
        let actions = bench.feed(Event::Recorded);
        assert_eq!(actions, [Action::Send(DestinationMessage::Ready { load_us: 1000 })]);
        bench
    }

    /// Runs until the source has committed and that is recorded here.
    fn adopting() -> Self {
        let mut bench = Self::ready();
        assert_eq!(bench.hear(SourceMessage::Commit), [Action::Record(DestinationState::Taking)]);
        assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
        bench
    }

    /// Runs from the last page of a paused guest to the record that this host owns it.
    fn commit_paused(&mut self) {
        self.hear(SourceMessage::Switchover);
        self.hear(state(RunState::Paused));
        self.feed(Event::StreamEnded { stream: 0, announced: 0, applied: 0 });
        self.feed(Event::Loaded(Ok(())));
        self.feed(Event::Recorded);
        assert_eq!(self.hear(SourceMessage::Commit), [Action::Record(DestinationState::Taking)]);
        assert_eq!(self.feed(Event::Recorded), [Action::AdoptGuest]);
    }

    fn lose_connection(&mut self) -> Vec<Action> {
        self.feed(Event::ConnectionLost { detail: "timed out".into() })
    }
}

fn migration() -> MigrationId {
    MigrationId(Uuid::from_u128(9))
}

fn hello(offer: Offer) -> SourceMessage {
    SourceMessage::Hello { migration: migration(), offer }
}

fn resolve(decision: Decision) -> SourceMessage {
    SourceMessage::Resolve { migration: migration(), decision }
}

fn guest(name: &str) -> GuestDescription {
    GuestDescription {
        name: name.to_owned(),
        uuid: Uuid::from_u128(1),
        layout: MemoryLayout::new(vec![Region { base: 0, bytes: CHUNK_BYTES as u64 }]).unwrap(),
        vcpus: 1,
        config: Blob::default(),
        disks: Vec::new(),
        has_pci: false,
    }
}

fn prepare(guest: GuestDescription, streams: u16) -> SourceMessage {
    SourceMessage::Prepare(Prepare { guest, streams })
}

fn state(run_state: RunState) -> SourceMessage {
    SourceMessage::State(SavedState { run_state, state: Blob(vec![1]) })
}

fn report(actions: &[Action]) -> &Report {
    let finished = actions.iter().find_map(|action| match action {
        Action::Finished(report) => Some(report),
        _ => None,
    });
    finished.unwrap()
}

/// Returns the reason of the complaint among these actions.
fn complaint(actions: &[Action]) -> Reason {
    let sent_reason = actions.iter().find_map(|action| match action {
        Action::Send(DestinationMessage::Abort(complaint)) => Some(complaint.reason()),
        _ => None,
    });
    sent_reason.unwrap()
}

#[test]
fn creates_nothing_before_all_checks_pass() {
    let mut bench = Bench::greeted();
    let asked = guest("web-1");
    assert_eq!(bench.hear(prepare(asked.clone(), 2)), [Action::Check(Box::new(asked.clone()))]);
    assert_eq!(bench.feed(Event::Checked(Ok(()))), [Action::Create(Box::new(asked))]);
    assert_eq!(bench.feed(Event::Created(Ok(()))), [Action::Record(DestinationState::Loading)]);
    assert_eq!(
        bench.feed(Event::Recorded),
        [
            Action::AcceptPages { streams: 2, features: bench.destination.features },
            Action::Send(DestinationMessage::Prepared)
        ]
    );
}

#[test]
fn a_failed_check_is_the_answer() {
    let mut bench = Bench::greeted();
    bench.hear(prepare(guest("web-1"), 2));
    let refusal = Refusal::new(RefusalKind::Memory, "1 GiB free, 2 GiB needed");
    let actions = bench.feed(Event::Checked(Err(refusal.clone())));
    assert_eq!(actions[1], Action::Send(DestinationMessage::Refused(refusal)));
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
    assert!(!actions.iter().any(|action| matches!(action, Action::Record(_))));
    // The source has some time to hear it, but not forever.
    let at = bench.destination.deadline().unwrap();
    let actions = bench.destination.handle(Event::Tick, at);
    assert_eq!(actions, [Action::Disconnect, Action::Settled]);
}

#[test]
fn refuses_names_and_streams_out_of_bounds() {
    for (name, streams) in [("../etc", 1), ("", 1), ("-x", 1), ("a b", 1), ("ok", 0), ("ok", 65)] {
        let mut bench = Bench::greeted();
        let actions = bench.hear(prepare(guest(name), streams));
        assert!(
            actions.iter().any(|a| matches!(a, Action::Send(DestinationMessage::Refused(_)))),
            "{name} {streams}: {actions:?}"
        );
    }
}

#[test]
fn versions_without_a_common_one_are_refused_with_both_sides_named() {
    let mut bench = Bench::new();
    let offer = Offer {
        versions: vec![Version(70), Version(71)],
        software: "lighter 9".into(),
        ..Offer::ours()
    };
    let actions = bench.hear(hello(offer));
    let Action::Send(DestinationMessage::Refused(refusal)) = &actions[1] else {
        panic!("{actions:?}");
    };
    let text = refusal.text.as_str();
    assert!(text.contains("this side is lighter 9 (protocol 70, 71)"), "{text}");
    assert!(text.contains("the other is lighter 0.1.0 (protocol 1)"), "{text}");
}

#[test]
fn is_not_ready_before_every_stream_has_ended() {
    let mut bench = Bench::receiving(2);
    bench.hear(SourceMessage::Switchover);
    assert_eq!(bench.feed(Event::StreamEnded { stream: 1, announced: 0, applied: 0 }), []);
    assert_eq!(bench.hear(state(RunState::Running)), []);
    assert_eq!(
        bench.feed(Event::StreamEnded { stream: 0, announced: 3, applied: 3 }),
        [Action::LoadState(vec![1])]
    );
}

#[test]
fn a_stream_that_lacks_a_frame_or_ends_twice_or_is_unknown_is_damage() {
    let ended = |stream, announced, applied| Event::StreamEnded { stream, announced, applied };
    for events in [
        vec![ended(0, 3, 2)],
        vec![ended(0, 3, 3), ended(0, 3, 3)],
        vec![ended(2, 0, 0)],
        vec![Event::DataFailed { detail: "checksum".into() }],
    ] {
        let mut bench = Bench::receiving(2);
        let mut actions = Vec::new();
        for event in events {
            actions = bench.feed(event);
        }
        assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
        assert_eq!(complaint(&bench.feed(Event::Recorded)), Reason::Data);
    }
}

#[test]
fn unexpected_messages_end_the_migration() {
    let out_of_place = [
        SourceMessage::Commit,
        SourceMessage::Finish,
        state(RunState::Running),
        hello(Offer::ours()),
        prepare(guest("web-1"), 1),
    ];
    for message in out_of_place {
        let mut bench = Bench::receiving(1);
        assert_eq!(bench.hear(message)[0], Action::Discard);
        assert_eq!(complaint(&bench.feed(Event::Recorded)), Reason::Protocol);
    }
}

#[test]
fn a_guest_that_is_being_loaded_is_destroyed_only_afterwards() {
    let mut bench = Bench::loading();
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(
        bench.feed(Event::Loaded(Ok(()))),
        [Action::Discard, Action::Record(DestinationState::Discarded)]
    );
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::ConnectionLost);
    assert_eq!(actions.last(), Some(&Action::Settled));
}

#[test]
fn reports_success_only_after_running_is_recorded() {
    let mut bench = Bench::ready();
    assert_eq!(bench.hear(SourceMessage::Commit), [Action::Record(DestinationState::Taking)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
    assert_eq!(bench.feed(Event::Adopted(Ok(()))), [Action::ResumeGuest]);
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Running(_))));
    assert_eq!(actions[1], Action::Record(DestinationState::Running));
    assert_eq!(report(&actions).outcome, Outcome::Migrated);
    // Asked again, it repeats the answer.
    for message in [SourceMessage::Commit, resolve(Decision::Commit)] {
        assert!(matches!(bench.hear(message)[..], [Action::Send(DestinationMessage::Running(_))]));
    }
    assert_eq!(bench.feed(Event::Recorded), []);
    assert_eq!(bench.hear(SourceMessage::Finish), [Action::Disconnect, Action::Settled]);
}

#[test]
fn finishes_once_the_source_knows_and_a_record_has_it_running() {
    let mut bench = Bench::adopting();
    bench.feed(Event::Adopted(Ok(())));
    bench.feed(Event::Resumed(Ok(())));
    assert_eq!(bench.hear(SourceMessage::Finish), []);
    assert_eq!(bench.feed(Event::Recorded), []);
    let at = bench.destination.deadline().unwrap();
    assert_eq!(bench.destination.handle(Event::Tick, at), [Action::Disconnect, Action::Settled]);
}

#[test]
fn retries_until_running_is_recorded() {
    let mut bench = Bench::adopting();
    bench.feed(Event::Adopted(Ok(())));
    bench.feed(Event::Resumed(Ok(())));
    bench.lose_connection();
    for _ in 0..1000 {
        assert_eq!(bench.feed(Event::RecordFailed { detail: "full".into() }), []);
        bench.now = bench.destination.deadline().unwrap();
        assert_eq!(bench.feed(Event::Tick), [Action::Record(DestinationState::Running)]);
        assert_eq!(bench.destination.deadline(), None);
    }
    assert_eq!(bench.feed(Event::Recorded), []);
    bench.now = bench.destination.deadline().unwrap();
    assert_eq!(bench.feed(Event::Tick), [Action::Settled]);
}

#[test]
fn a_guest_that_was_paused_stays_so() {
    let mut bench = Bench::receiving(1);
    bench.commit_paused();
    let actions = bench.feed(Event::Adopted(Ok(())));
    assert!(!actions.contains(&Action::ResumeGuest));
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Running(_))));
}

#[test]
fn a_guest_whose_disk_is_in_use_is_kept_until_the_source_decides() {
    let paused = || {
        let mut bench = Bench::receiving(1);
        bench.commit_paused();
        bench
    };
    for mut bench in [Bench::adopting(), paused()] {
        let in_use = Complaint::new(Reason::Guest, "guest error: the disk is in use");
        assert_eq!(
            bench.feed(Event::Adopted(Err(GuestError::new("the disk is in use")))),
            [
                Action::Record(DestinationState::Ready),
                Action::Send(DestinationMessage::NotTaken(in_use.clone()))
            ]
        );
        assert_eq!(bench.feed(Event::Recorded), []);
        assert_eq!(
            bench.destination.can_resolve(OperatorChoice::Run),
            Err(ResolveRefused::Connected),
            "the source may be taking it back"
        );
        assert_eq!(
            bench.hear(SourceMessage::Abort(in_use)),
            [Action::Discard, Action::Record(DestinationState::Discarded)]
        );
        let actions = bench.feed(Event::Recorded);
        assert_eq!(actions[0], Action::Send(DestinationMessage::Discarded));
        let report = report(&actions);
        assert_eq!(report.outcome, Outcome::StayedAtSource);
        assert_eq!(report.error.as_ref().unwrap().reason, Reason::Guest);
    }
}

#[test]
fn a_guest_whose_source_died_before_it_took_the_guest_back_is_taken_over_when_its_disk_is_free() {
    let mut bench = Bench::adopting();
    bench.feed(Event::Adopted(Err(GuestError::new("the disk is in use"))));
    bench.feed(Event::Recorded);
    bench.lose_connection();
    bench.feed(Event::Connected);
    assert_eq!(bench.hear(resolve(Decision::Commit)), [Action::Record(DestinationState::Taking)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
    assert_eq!(bench.feed(Event::Adopted(Ok(()))), [Action::ResumeGuest]);
}

#[test]
fn a_reconnected_source_that_has_not_asked_yet_is_not_answered() {
    let mut bench = Bench::adopting();
    bench.feed(Event::Connected);
    let not_taken = Event::Adopted(Err(GuestError::new("the disk is in use")));
    assert_eq!(bench.feed(not_taken), [Action::Record(DestinationState::Ready)]);
    bench.feed(Event::Recorded);
    assert_eq!(bench.hear(resolve(Decision::Commit)), [Action::Record(DestinationState::Taking)]);
    bench.feed(Event::Recorded);
    let not_taken = Event::Adopted(Err(GuestError::new("the disk is in use")));
    assert!(matches!(bench.feed(not_taken)[1], Action::Send(DestinationMessage::NotTaken(_))));
}

#[test]
fn an_operator_keeps_a_guest_whose_disk_is_in_use() {
    let mut bench = Bench::ready();
    bench.lose_connection();
    bench.feed(Event::Resolve(OperatorChoice::Run));
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
    let actions = bench.feed(Event::Adopted(Err(GuestError::new("the disk is in use"))));
    assert_eq!(actions, [Action::Record(DestinationState::Ready)]);
    assert_eq!(bench.feed(Event::Recorded), []);
    let in_doubt = bench.destination.progress(bench.now).in_doubt.unwrap();
    assert!(in_doubt.contains("could not be run: guest error: the disk is in use"), "{in_doubt}");
    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Run)),
        [Action::Record(DestinationState::Taking)]
    );
}

#[test]
fn waits_for_a_decision_however_long_the_source_is_gone() {
    let mut bench = Bench::ready();
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(bench.destination.deadline(), None);
    assert!(bench.destination.progress(bench.now).in_doubt.unwrap().contains("--resolve"));
    assert_eq!(bench.feed(Event::Connected), []);
    assert_eq!(
        bench.hear(resolve(Decision::Aborted)),
        [Action::Discard, Action::Record(DestinationState::Discarded)]
    );
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions[0], Action::Send(DestinationMessage::Discarded));
}

#[test]
fn nonsense_from_the_source_closes_only_the_connection_of_a_ready_copy() {
    let mut bench = Bench::ready();
    assert_eq!(bench.hear(SourceMessage::Switchover), [Action::Disconnect]);
    bench.feed(Event::Connected);
    assert_eq!(bench.hear(resolve(Decision::Commit)), [Action::Record(DestinationState::Taking)]);
}

#[test]
fn a_takeover_that_cannot_be_recorded_is_tried_again_when_asked_again() {
    let mut bench = Bench::ready();
    bench.hear(SourceMessage::Commit);
    let actions = bench.feed(Event::RecordFailed { detail: "full".into() });
    assert_eq!(
        actions[0],
        Action::Record(DestinationState::Ready),
        "the failed one may be on disk"
    );
    assert!(matches!(actions[1], Action::Send(DestinationMessage::NotTaken(_))));
    bench.feed(Event::Recorded);
    assert_eq!(bench.hear(resolve(Decision::Commit)), [Action::Record(DestinationState::Taking)]);
}

#[test]
fn an_order_that_cannot_be_recorded_is_reported_to_the_operator() {
    let mut bench = Bench::ready();
    bench.lose_connection();
    bench.feed(Event::Resolve(OperatorChoice::Run));
    bench.feed(Event::RecordFailed { detail: "no space left".into() });
    bench.feed(Event::Recorded);
    let in_doubt = bench.destination.progress(bench.now).in_doubt.unwrap();
    assert!(in_doubt.contains("could not be run: "), "{in_doubt}");
    assert!(in_doubt.contains("no space left"), "{in_doubt}");
    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Run)),
        [Action::Record(DestinationState::Taking)]
    );
}

#[test]
fn a_guest_that_does_not_start_is_reported_and_destroyed() {
    let mut bench = Bench::adopting();
    bench.feed(Event::Adopted(Ok(())));
    let actions = bench.feed(Event::Resumed(Err(GuestError::new("no thread"))));
    assert_eq!(actions[0], Action::Discard);
    assert_eq!(actions[1], Action::Record(DestinationState::Failed));
    assert_eq!(complaint(&actions), Reason::Guest);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
    assert_eq!(complaint(&bench.hear(resolve(Decision::Commit))), Reason::Guest);
}

#[test]
fn cancel_works_until_ready_and_then_the_source_decides() {
    let mut bench = Bench::receiving(1);
    assert_eq!(bench.destination.can_cancel(), Ok(()));
    assert_eq!(bench.feed(Event::Cancel { by: "ops".into() })[0], Action::Discard);
    assert_eq!(complaint(&bench.feed(Event::Recorded)), Reason::Cancelled);

    let mut bench = Bench::ready();
    assert_eq!(bench.destination.can_cancel(), Err(CancelRefused::SourceDecides));
    assert_eq!(bench.feed(Event::Cancel { by: "ops".into() }), []);
}

#[test]
fn an_operator_decides_only_when_the_source_is_gone() {
    let mut bench = Bench::ready();
    let connected = Err(ResolveRefused::Connected);
    assert_eq!(bench.destination.can_resolve(OperatorChoice::Run), connected);
    bench.lose_connection();
    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Run)),
        [Action::Record(DestinationState::Taking)]
    );
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
    assert_eq!(bench.feed(Event::Adopted(Ok(()))), [Action::ResumeGuest]);
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::Operator);

    let mut bench = Bench::ready();
    bench.lose_connection();
    assert_eq!(bench.feed(Event::Resolve(OperatorChoice::Discard))[0], Action::Discard);
}

#[test]
fn another_migration_is_unknown() {
    let mut bench = Bench::ready();
    let other = MigrationId(Uuid::from_u128(1));
    let asked = SourceMessage::Resolve { migration: other, decision: Decision::Commit };
    assert_eq!(bench.hear(asked), [Action::Send(DestinationMessage::Unknown)]);
}

#[test]
fn a_source_that_never_connects_is_given_up() {
    let config = DestinationConfig {
        migration: migration(),
        offer: Offer::ours(),
        linger: Duration::from_secs(30),
    };
    let mut destination = Destination::new(config, Duration::ZERO);
    let at = destination.deadline().unwrap();
    assert_eq!(at, Duration::from_secs(5));
    let actions = destination.handle(Event::Tick, at);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::NoAnswer);
    assert_eq!(actions.last(), Some(&Action::Settled));
}

#[test]
fn an_abort_of_the_source_is_reported_with_its_reason() {
    let mut bench = Bench::receiving(1);
    bench.hear(SourceMessage::Abort(Complaint::new(Reason::Cancelled, "cancelled by ops")));
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions[0], Action::Send(DestinationMessage::Discarded));
    let error = report(&actions).error.clone().unwrap();
    assert_eq!(error.reason, Reason::Cancelled);
    assert!(error.message.starts_with("cancelled by ops on the other host during"));
    // The source closes the connection once it has heard.
    assert_eq!(bench.lose_connection(), [Action::Settled]);
}

#[test]
fn a_source_that_keeps_sending_still_receives_the_failure() {
    let mut bench = Bench::receiving(1);
    let actions = bench.feed(Event::DataFailed { detail: "wrong checksum".into() });
    assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
    assert_eq!(bench.hear(SourceMessage::Switchover), []);
    assert_eq!(bench.hear(state(RunState::Running)), []);
    assert_eq!(complaint(&bench.feed(Event::Recorded)), Reason::Data);
    assert_eq!(bench.hear(state(RunState::Running)), []);
}
