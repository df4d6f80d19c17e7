//! How long the guest is paused before it is handed over or resumed here.

use super::*;
use crate::decisions::Decided;
use crate::protocol::FEATURE_RECONNECT;

/// Twice the default downtime limit of 300 ms, plus a second.
const ALLOWED: Duration = Duration::from_millis(1600);

/// Runs up to the request to pause the guest; returns the time of that request. The destination
/// knows no way back to rounds.
fn pausing() -> (Bench, Duration) {
    let mut bench = Bench::copying();
    let actions = bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(actions.last(), Some(&Action::Pause));
    let asked = bench.now;
    (bench, asked)
}

/// As [`pausing`], with a destination that knows the way back.
fn pausing_with_way_back() -> (Bench, Duration) {
    let (mut bench, asked) = pausing();
    bench.source.features = FEATURE_RECONNECT;
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
    for part in ["1.6 s", "downtime limit of 0.3 s", "its disks were still being flushed;"] {
        assert!(message.contains(part), "{message}");
    }
    let standstill = report.standstill.unwrap();
    assert!((standstill.flush_seconds - 1.599).abs() < 1e-6, "{standstill:?}");
    assert!((standstill.pause_seconds - 0.001).abs() < 1e-6, "{standstill:?}");
    assert_eq!(standstill.ready_seconds, 0.0);
    // The disk answers, at last.
    assert_eq!(bench.feed(Event::Flushed { attempt: 0 }), []);
}

#[test]
fn a_link_that_has_become_slow_is_named() {
    let (mut bench, asked) = pausing();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::Flushed { attempt: 0 });
    let report = stands_too_long(&mut bench, asked);
    assert!(message(&report).contains("its last pages were still being sent"), "{report:?}");

    let (mut bench, asked) = pausing();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::Flushed { attempt: 0 });
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
    bench.feed(Event::Flushed { attempt: 0 });
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

/// Lets the longest pause pass; returns the actions then.
fn time_is_over(bench: &mut Bench) -> Vec<Action> {
    bench.now = bench.source.deadline().unwrap();
    let now = bench.now;
    bench.source.handle(Event::Tick, now)
}

const RETURN: [Action; 2] = [Action::Send(SourceMessage::Return), Action::ResumeGuest];

#[test]
fn a_hand_over_that_takes_too_long_goes_back_to_rounds_and_is_tried_again() {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(time_is_over(&mut bench), RETURN);
    let decided = bench.source.progress(bench.now).decisions.pop().unwrap().what;
    let waited_for = "its disks were still being flushed".to_owned();
    assert_eq!(decided, Decided::CalledOff { allowed_seconds: 1.6, waited_for });
    assert_eq!(bench.hear(DestinationMessage::Returned), []);
    assert_eq!(
        bench.feed(Event::Resumed(Ok(()))),
        [Action::Record(SourceState::Undecided)],
        "it is measured again"
    );
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
    let round = bench.feed(Event::Probed(Probe::default()));
    assert_eq!(round, [Action::SendRound { round: 3 }], "it collects what the guest has written");
    let pause = bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![2] });
    bench.feed(Event::RoundSent(RoundSent::default()));
    // The flush of the first hand-over ends at last: it says nothing about what was written since.
    assert_eq!(bench.feed(Event::Flushed { attempt: 0 }), []);
    let flushed = bench.feed(Event::Flushed { attempt: 1 });
    assert_eq!(flushed, [Action::SendRemainder { round: 4 }]);
}

#[test]
fn rounds_go_on_only_when_nothing_of_the_hand_over_is_under_way() {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::Flushed { attempt: 0 });
    assert_eq!(time_is_over(&mut bench), RETURN);
    assert_eq!(bench.hear(DestinationMessage::Returned), []);
    assert_eq!(bench.feed(Event::StateSaved { state: vec![1] }), [], "it is not sent");
    assert_eq!(bench.feed(Event::Resumed(Ok(()))), []);
    let measured = bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(measured, [Action::Record(SourceState::Undecided)]);
}

/// A hand-over that is called off, of which nothing is under way here any more.
fn returning_unanswered() -> Bench {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(time_is_over(&mut bench), RETURN);
    assert_eq!(bench.feed(Event::Resumed(Ok(()))), []);
    bench
}

/// The destination reads the end of all pages and the message that the hand-over is called off on
/// different streams: it would take the old state for the new one.
#[test]
fn another_hand_over_waits_until_the_destination_has_forgotten_the_first() {
    let mut bench = returning_unanswered();
    let measured = bench.hear(DestinationMessage::Returned);
    assert_eq!(measured, [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
}

#[test]
fn a_destination_that_does_not_forget_a_hand_over_is_not_waited_for_for_ever() {
    let mut bench = returning_unanswered();
    let actions = time_is_over(&mut bench);
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(_))), "{actions:?}");
    assert!(!actions.contains(&Action::ResumeGuest), "it runs: {actions:?}");
}

/// The answer is lost with the connection: `Continue` has the destination forget the hand-over.
#[test]
fn a_loss_makes_up_for_the_answer_of_a_destination_that_is_to_forget_a_hand_over() {
    let mut bench = returning_unanswered();
    assert_eq!(bench.feed(lost()), [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
    assert_eq!(bench.feed(Event::Probed(Probe::default())), [], "the destination is out of reach");
}

/// One that was not asked, or answers twice.
#[test]
fn a_destination_that_forgets_a_hand_over_for_no_reason_is_not_trusted() {
    let is_refused = |mut bench: Bench| {
        let actions = bench.hear(DestinationMessage::Returned);
        assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(_))), "{actions:?}");
    };
    is_refused(Bench::copying());
    is_refused(pausing_with_way_back().0);
    let mut answered = returning_unanswered();
    answered.hear(DestinationMessage::Returned);
    is_refused(answered);
    let mut committed = Bench::awaiting_ready();
    committed.hear(DestinationMessage::Ready { load_us: 1 });
    committed.feed(Event::Recorded);
    assert_eq!(committed.hear(DestinationMessage::Returned), [Action::Disconnect]);
}

#[test]
fn a_hand_over_whose_connection_is_lost_goes_back_to_rounds() {
    for saved_first in [true, false] {
        let (mut bench, _) = pausing_with_way_back();
        bench.feed(Event::Paused { was: RunState::Running });
        let saved = Event::StateSaved { state: vec![1] };
        if saved_first {
            bench.feed(saved.clone());
        }
        assert_eq!(bench.feed(lost()), [Action::ResumeGuest]);
        if !saved_first {
            assert_eq!(bench.feed(saved), [], "it is not sent");
        }
        let resumed = bench.feed(Event::Resumed(Ok(())));
        assert_eq!(resumed, [Action::Record(SourceState::Undecided)]);
        assert_eq!(time_is_over(&mut bench), [Action::Reconnect]);
        let decided = bench.source.progress(bench.now).decisions.pop().unwrap().what;
        assert!(matches!(decided, Decided::Disconnected { .. }), "{decided:?}");
    }
}

/// A hand-over that is called off, and whose connection is lost then.
fn returning_out_of_reach() -> Bench {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    assert_eq!(time_is_over(&mut bench), RETURN);
    assert_eq!(bench.feed(lost()), []);
    bench
}

#[test]
fn a_loss_while_a_hand_over_is_called_off_is_repaired_at_the_same_time() {
    let mut bench = returning_out_of_reach();
    assert_eq!(bench.feed(Event::StateSaved { state: vec![1] }), []);
    assert_eq!(time_is_over(&mut bench), [Action::Reconnect]);
    bench.feed(Event::Connected);
    let reopen = Action::ReopenStreams { applied: vec![0, 0] };
    assert_eq!(bench.hear(DestinationMessage::Applied { frames: vec![0, 0] }), [reopen]);
    // The round is interrupted, and not awaited.
    let resumed = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(resumed, [Action::Record(SourceState::Undecided)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::Probe]);
    assert_eq!(bench.feed(Event::Probed(Probe::default())), [Action::SendRound { round: 3 }]);
}

#[test]
fn a_hand_over_that_is_called_off_out_of_reach_may_fail() {
    let refused = || Event::Resumed(Err(GuestError::new("its disk is locked")));
    let failures = [
        (Event::GuestFailed(GuestError::new("it cannot be saved")), true),
        (Event::Cancel { by: "me".into() }, true),
        (refused(), false),
    ];
    for (failure, runs) in failures {
        let mut bench = returning_out_of_reach();
        let mut actions = bench.feed(failure.clone());
        assert!(actions.starts_with(&[Action::StopSending]), "{failure:?}: {actions:?}");
        if runs {
            actions.extend(bench.feed(Event::Resumed(Ok(()))));
        }
        let report = report(&actions);
        assert_eq!(report.outcome, Outcome::StayedAtSource, "{failure:?}");
        assert_eq!(report.way_out.is_none(), runs, "{report:?}");
    }
}

#[test]
fn a_third_hand_over_that_takes_too_long_is_the_last() {
    let (mut bench, _) = pausing_with_way_back();
    for attempt in 0..3 {
        bench.feed(Event::Paused { was: RunState::Running });
        bench.feed(Event::StateSaved { state: vec![1] });
        bench.feed(Event::RoundSent(RoundSent::default()));
        let actions = time_is_over(&mut bench);
        if attempt == 2 {
            assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(_))), "{actions:?}");
            break;
        }
        assert_eq!(actions, RETURN);
        bench.feed(Event::Resumed(Ok(())));
        bench.hear(DestinationMessage::Returned);
        bench.feed(Event::Recorded);
        bench.feed(Event::Probed(Probe::default()));
        bench.feed(Event::RoundSent(RoundSent::default()));
    }
    bench.feed(Event::Resumed(Ok(())));
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    let report = report(&actions);
    assert_eq!((report.outcome, report.returns), (Outcome::StayedAtSource, 2));
    assert!(report.return_seconds > 3.0, "{report:?}");
}

#[test]
fn a_guest_that_cannot_run_on_after_a_hand_over_is_kept() {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    time_is_over(&mut bench);
    let actions = bench.feed(Event::Resumed(Err(GuestError::new("its disk is locked"))));
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(_))), "{actions:?}");
    assert!(!actions.contains(&Action::ResumeGuest), "{actions:?}");
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    let report = report(&actions);
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert!(report.way_out.as_ref().unwrap().contains("lighter resume web-1"), "{report:?}");
}

#[test]
fn a_cancelled_return_resumes_the_guest_once() {
    let (mut bench, _) = pausing_with_way_back();
    bench.feed(Event::Paused { was: RunState::Running });
    time_is_over(&mut bench);
    let actions = bench.feed(Event::Cancel { by: "me".into() });
    assert!(!actions.contains(&Action::ResumeGuest), "{actions:?}");
    bench.feed(Event::Resumed(Ok(())));
    bench.hear(DestinationMessage::Discarded);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
}
