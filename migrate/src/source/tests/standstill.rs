//! How long the guest is paused before it is handed over or resumed here.

use super::*;

/// Twice the default downtime limit of 300 ms, plus a second.
const ALLOWED: Duration = Duration::from_millis(1600);

/// Runs up to the request to pause the guest; returns the time of that request.
fn pausing() -> (Bench, Duration) {
    let mut bench = Bench::copying();
    let actions = bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(actions.last(), Some(&Action::Pause));
    let asked = bench.now;
    (bench, asked)
}

/// Lets the longest pause pass, and the guest resume; returns the report.
fn stands_too_long(bench: &mut Bench, asked: Duration) -> Report {
    bench.now = bench.source.deadline().unwrap();
    assert_eq!(bench.now, asked + ALLOWED);
    let now = bench.now;
    let actions = bench.source.handle(Event::Tick, now);
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(complaint))
        if complaint.reason() == Reason::Downtime));
    assert_eq!(actions[1..], [Action::StopSending, Action::ResumeGuest, Action::StopDirtyLog]);
    bench.feed(Event::Resumed(Ok(())));
    bench.hear(DestinationMessage::Discarded);
    report(&bench.feed(Event::Recorded)).clone()
}

fn message(report: &Report) -> &str {
    let error = report.error.as_ref().unwrap();
    assert_eq!((report.outcome, error.reason), (Outcome::StayedAtSource, Reason::Downtime));
    assert!((report.downtime_seconds.unwrap() - 1.601).abs() < 1e-6, "{report:?}");
    &error.message
}

#[test]
fn a_hanging_disk_delays_neither_the_guest_nor_the_report() {
    let (mut bench, asked) = pausing();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::RoundSent(RoundSent::default()));

    let report = stands_too_long(&mut bench, asked);

    let message = message(&report);
    for part in ["1.6 s", "--downtime 0.3s", "its disks were still being flushed;"] {
        assert!(message.contains(part), "{message}");
    }
    let standstill = report.standstill.unwrap();
    assert!((standstill.flush_seconds - 1.599).abs() < 1e-6, "{standstill:?}");
    assert!((standstill.pause_seconds - 0.001).abs() < 1e-6, "{standstill:?}");
    assert_eq!(standstill.ready_seconds, 0.0);
    // The disk answers, at last.
    assert_eq!(bench.feed(Event::Flushed), []);
}

#[test]
fn a_link_that_has_become_slow_is_named() {
    let (mut bench, asked) = pausing();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::Flushed);
    let report = stands_too_long(&mut bench, asked);
    assert!(message(&report).contains("its last pages were still being sent"), "{report:?}");

    let (mut bench, asked) = pausing();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::Flushed);
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.feed(Event::RemainderSent(FinalSent::default()));
    let report = stands_too_long(&mut bench, asked);
    assert!(message(&report).contains("had not said that it is ready"), "{report:?}");
}

/// The process may have been stopped when the time ran out.
#[test]
fn a_late_ready_hands_nothing_over() {
    let mut bench = Bench::awaiting_ready();
    bench.now += ALLOWED;
    let actions = bench.hear(DestinationMessage::Ready { load_us: 1 });
    assert!(actions.contains(&Action::ResumeGuest), "{actions:?}");
    assert!(!actions.contains(&Action::Record(SourceState::Committed)), "{actions:?}");
}

#[test]
fn a_pause_that_takes_too_long_is_undone_once_it_is_reached() {
    let (mut bench, asked) = pausing();
    bench.now = asked + ALLOWED;
    let actions = bench.feed(Event::Tick);
    assert!(!actions.contains(&Action::ResumeGuest), "{actions:?}");
    assert_eq!(bench.feed(Event::Paused { was: RunState::Running }), [Action::ResumeGuest]);
}

#[test]
fn a_guest_that_its_user_has_paused_is_waited_for() {
    let (mut bench, _) = pausing();
    bench.feed(Event::Paused { was: RunState::Paused });
    assert_eq!(bench.source.deadline().unwrap(), bench.now + Duration::from_secs(30));
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::RoundSent(RoundSent::default()));
    bench.feed(Event::Flushed);
    bench.feed(Event::RemainderSent(FinalSent::default()));
    bench.now += 2 * ALLOWED;
    let decided = bench.hear(DestinationMessage::Ready { load_us: 1 });
    assert_eq!(decided, [Action::Record(SourceState::Committed)]);
}

#[test]
fn after_the_decision_the_guest_is_not_taken_back_however_long_the_pause() {
    let mut bench = Bench::awaiting_ready();
    bench.hear(DestinationMessage::Ready { load_us: 1 });
    bench.now += 2 * ALLOWED;
    assert_eq!(bench.feed(Event::Tick), []);
    let produced = bench.feed(Event::Recorded);
    assert_eq!(produced, [Action::ReleaseGuest, Action::Send(SourceMessage::Commit)]);
}
