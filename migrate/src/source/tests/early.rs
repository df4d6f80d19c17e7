//! Commits before the destination says that it is ready.

use super::*;
use crate::protocol::Complaint;

/// Runs until the guest, which was in this state, is paused.
fn paused(was: RunState) -> Bench {
    let mut bench = Bench::new();
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let features = Features::SUPPORTED;
    bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    bench.hear(DestinationMessage::Prepared);
    bench.feed(Event::PrecopyStarted);
    bench.feed(Event::Probed(Probe::default()));
    bench.feed(Event::RoundSent(RoundSent::default()));
    let actions = bench.feed(Event::Paused { was });
    assert_eq!(actions[0], Action::Record(SourceState::Committed));
    bench
}

/// Runs until everything is ordered to be sent.
fn ending() -> Bench {
    let mut bench = paused(RunState::Running);
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.feed(Event::Flushed { attempt: 0 });
    let actions = bench.feed(Event::StateSaved { state: vec![1] });
    assert_eq!(actions[1], Action::SendRemainder { round: 2 });
    bench
}

/// Runs until the commit is sent.
fn asking() -> Bench {
    let mut bench = ending();
    bench.feed(Event::Recorded);
    let actions = bench.feed(Event::RemainderSent(FinalSent::default()));
    assert_eq!(actions, [Action::ReleaseGuest, Action::Send(SourceMessage::Commit)]);
    bench
}

fn remainder_sent() -> Event {
    Event::RemainderSent(FinalSent::default())
}

#[test]
fn the_commit_follows_the_last_page_and_its_record_whichever_comes_last() {
    asking();
    let mut bench = ending();
    assert_eq!(bench.feed(remainder_sent()), []);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions, [Action::ReleaseGuest, Action::Send(SourceMessage::Commit)]);
    let running = DestinationMessage::Running(Takeover::default());
    assert_eq!(bench.hear(running), [Action::Record(SourceState::Done)]);
    let actions = bench.feed(Event::Recorded);
    let standstill = report(&actions).standstill.unwrap();
    assert_eq!((standstill.ready_seconds, standstill.record_seconds), (0.0, 0.001));
}

#[test]
fn before_the_last_page_is_sent_the_guest_resumes_without_a_record() {
    let mut bench = paused(RunState::Running);
    bench.feed(Event::Recorded);
    let actions = bench.feed(Event::Cancel { by: "ops".into() });
    assert!(actions.contains(&Action::ResumeGuest), "{actions:?}");
}

#[test]
fn a_commit_that_may_be_recorded_is_undone_before_the_guest_resumes() {
    for events in [vec![lost()], vec![Event::Cancel { by: "ops".into() }]] {
        let mut bench = ending();
        events.into_iter().for_each(|event| assert_eq!(bench.feed(event), []));
        // The first answer is that of the commit.
        assert_eq!(bench.feed(Event::Recorded), [Action::Record(SourceState::Undecided)]);
        assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
    }
}

#[test]
fn a_commit_is_undone_once_the_disk_has_room_or_the_destination_answers() {
    let failed = || Event::RecordFailed { detail: "no space left".into() };
    let mut bench = ending();
    assert_eq!(bench.feed(lost()), []);
    // The first answer is that of the commit.
    assert_eq!(bench.feed(Event::Recorded), [Action::Record(SourceState::Undecided)]);
    for _ in 0..3 {
        assert_eq!(bench.feed(failed()), []);
        bench.now = bench.source.deadline().expect("it connects again");
        assert_eq!(bench.feed(Event::Tick), [Action::Reconnect]);
        assert_eq!(bench.feed(lost()), [Action::Record(SourceState::Undecided)]);
        assert!(bench.source.progress(bench.now).in_doubt.is_some(), "it does not know");
    }
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
}

#[test]
fn a_destination_that_fails_gives_the_guest_back_at_any_time() {
    let gave_up = || DestinationMessage::GaveUp(Complaint::new(Reason::Guest, "no memory"));
    let mut bench = asking();
    assert_eq!(bench.hear(gave_up()), [Action::Record(SourceState::Aborted)]);
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
    let actions = bench.feed(Event::Resumed(Ok(())));
    let error = report(&actions).error.clone().unwrap();
    assert_eq!(error.reason, Reason::Guest);
    assert!(error.message.contains("no memory"), "{}", error.message);

    let mut bench = ending();
    bench.feed(Event::Recorded);
    assert_eq!(bench.hear(gave_up()), [Action::Record(SourceState::Undecided)]);
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
}

#[test]
fn a_guest_that_is_not_taken_over_in_time_is_asked_for_once() {
    let mut bench = asking();
    let until = bench.source.deadline().unwrap();
    let actions = bench.source.handle(Event::Tick, until);
    assert!(matches!(&actions[..], [Action::Send(SourceMessage::Withdraw(complaint))]
        if complaint.reason() == Reason::Downtime));
    assert!(bench.source.deadline().unwrap() > until, "it goes on waiting for an answer");
    bench.now = until;
    assert_eq!(bench.hear(DestinationMessage::Discarded), [Action::Record(SourceState::Aborted)]);
    bench.feed(Event::Recorded);
    let actions = bench.feed(Event::Resumed(Ok(())));
    let error = report(&actions).error.clone().unwrap();
    assert_eq!((error.phase, error.reason), (Phase::Commit, Reason::Downtime));
    assert!(error.message.contains("that it has taken it over"), "{}", error.message);
}

#[test]
fn a_guest_is_wanted_back_over_the_next_connection_too() {
    let mut bench = asking();
    bench.feed(lost());
    let until = bench.source.standstill.until().unwrap();
    assert_eq!(bench.source.handle(Event::Tick, until), [], "it cannot be told now");
    assert_eq!(bench.source.handle(Event::Tick, until), [Action::Reconnect]);
    bench.now = until;
    let actions = bench.feed(Event::Connected);
    assert!(
        matches!(
            &actions[..],
            [
                Action::Send(SourceMessage::Resolve { decision: Decision::Commit, .. }),
                Action::Send(SourceMessage::Withdraw(_))
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_guest_that_its_user_had_paused_is_wanted_back_later() {
    let mut bench = paused(RunState::Paused);
    bench.feed(Event::Recorded);
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.feed(Event::Flushed { attempt: 0 });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(remainder_sent());
    let at = bench.now + Duration::from_secs(31);
    let actions = bench.source.handle(Event::Tick, at);
    assert!(
        matches!(&actions[..], [Action::Send(SourceMessage::Withdraw(complaint))]
        if complaint.reason() == Reason::NoAnswer),
        "{actions:?}"
    );
}

#[test]
fn a_hand_over_that_is_called_off_is_no_commit_in_the_record() {
    let mut bench = paused(RunState::Running);
    bench.source.features = Features::SUPPORTED;
    bench.feed(Event::Recorded);
    let until = bench.source.deadline().unwrap();
    let actions = bench.source.handle(Event::Tick, until);
    let undecided = Action::Record(SourceState::Undecided);
    let back = [undecided, Action::Send(SourceMessage::Return), Action::ResumeGuest];
    assert_eq!(actions, back);
    bench.now = until;
    bench.feed(Event::Resumed(Ok(())));
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.hear(DestinationMessage::Returned);
    assert_eq!(bench.feed(Event::RoundSent(RoundSent::default())), []);
    // The first answer is not that of the record which is measured.
    assert_eq!(bench.feed(Event::Recorded), [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
}

#[test]
fn a_guest_that_ends_while_its_commit_is_undone_is_gone() {
    let mut bench = ending();
    bench.feed(Event::Recorded);
    bench.feed(Event::Cancel { by: "ops".into() });
    bench.feed(Event::GuestStopped { detail: "it powered off".into() });
    let actions = bench.feed(Event::Recorded);
    assert!(!actions.contains(&Action::ResumeGuest), "{actions:?}");
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
}

#[test]
fn a_ready_that_was_not_agreed_on_breaks_the_protocol() {
    let mut bench = ending();
    bench.feed(remainder_sent());
    assert_eq!(bench.hear(DestinationMessage::Ready { load_us: 1 }), []);
    bench.feed(Event::Recorded);
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
}
