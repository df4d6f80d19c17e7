//! Cases in which only an operator can tell where the guest is.

use super::*;
use crate::protocol::Complaint;

#[test]
fn an_unknown_migration_after_the_commit_is_left_to_the_operator() {
    let mut bench = Bench::committed();
    let actions = bench.hear(DestinationMessage::Unknown);
    assert_eq!(report(&actions).outcome, Outcome::InDoubt);
    assert!(report(&actions).way_out.as_ref().unwrap().contains("--resolve run web-1"));
    assert!(!actions.contains(&Action::ResumeGuest));
    assert_eq!(bench.source.deadline(), None);

    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Run)),
        [Action::Record(SourceState::Undecided)]
    );
    assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);

    // If it does know the migration by now, it is waiting to hear who owns the guest.
    let at = bench.source.deadline().unwrap();
    assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
    bench.feed(Event::Connected);
    bench.hear(DestinationMessage::Unknown);
    assert_eq!(bench.feed(Event::Recorded).last(), Some(&Action::Settled));
}

#[test]
fn an_operator_can_give_up_a_guest_in_doubt() {
    let mut bench = Bench::in_doubt();
    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Discard)),
        [Action::Record(SourceState::Done)]
    );
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions[0], Action::DropGuest);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
}

#[test]
fn an_order_to_run_here_is_sent_once_the_destination_is_reachable() {
    let mut bench = Bench::committed();
    assert_eq!(bench.source.can_resolve(OperatorChoice::Run), Err(ResolveRefused::Connected));
    bench.feed(lost());
    assert_eq!(
        bench.feed(Event::Resolve(OperatorChoice::Run)),
        [Action::Record(SourceState::Undecided)]
    );
    bench.feed(Event::Recorded);
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);

    let at = bench.source.deadline().unwrap();
    assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
    let actions = bench.feed(Event::Connected);
    assert!(matches!(
        actions[..],
        [Action::Send(SourceMessage::Resolve { decision: Decision::Aborted, .. })]
    ));
    // The destination has been running it: the operator was wrong, and must be told.
    let actions = bench.hear(DestinationMessage::Running(Takeover::default()));
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::InDoubt);
}

#[test]
fn an_order_to_run_that_cannot_be_recorded_fails_without_effect() {
    let full = || Event::RecordFailed { detail: "no space left".into() };
    let mut asking = Bench::committed();
    asking.feed(lost());
    for mut bench in [Bench::in_doubt(), asking] {
        for _ in 0..2 {
            let actions = bench.feed(Event::Resolve(OperatorChoice::Run));
            assert_eq!(actions, [Action::Record(SourceState::Undecided)]);
            assert_eq!(bench.feed(full()), []);
            let in_doubt = bench.source.progress(bench.now).in_doubt.unwrap();
            assert!(in_doubt.contains("could not be taken back: no space left"), "{in_doubt}");
        }
        bench.feed(Event::Resolve(OperatorChoice::Run));
        assert!(bench.feed(Event::Recorded).contains(&Action::ResumeGuest));
    }
}

#[test]
fn a_destination_that_is_reached_and_does_not_answer_is_a_doubt() {
    let mut bench = Bench::committed();
    assert_eq!(bench.source.progress(bench.now).in_doubt, None);
    bench.feed(lost());
    bench.now = bench.source.deadline().unwrap();
    bench.feed(Event::Tick);
    bench.feed(Event::Connected);
    assert!(bench.source.progress(bench.now).in_doubt.is_some());
    assert_eq!(bench.source.can_resolve(OperatorChoice::Run), Ok(()));
    bench.hear(DestinationMessage::Ready { load_us: 1 });
    assert_eq!(bench.source.progress(bench.now).in_doubt, None);
}

#[test]
fn a_guest_that_could_not_be_taken_resumes_and_the_copy_is_notified() {
    let mut bench = Bench::committed();
    let in_use = Complaint::new(Reason::Guest, "the disk is in use");
    let not_taken = DestinationMessage::NotTaken(in_use);
    assert_eq!(bench.hear(not_taken.clone()), [Action::Record(SourceState::Undecided)]);
    let actions = bench.feed(Event::Recorded);
    assert!(actions.contains(&Action::ResumeGuest));
    assert!(matches!(actions.last(), Some(Action::Send(SourceMessage::Abort(_)))));
    bench.feed(Event::Resumed(Ok(())));
    // Each time it is sent, it is answered: the copy waits for the decision.
    assert!(matches!(
        bench.hear(not_taken)[..],
        [Action::Send(SourceMessage::Resolve { decision: Decision::Aborted, .. })]
    ));
    assert_eq!(bench.hear(DestinationMessage::Discarded), [Action::Record(SourceState::Aborted)]);
    let actions = bench.feed(Event::Recorded);
    let report = report(&actions);
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Guest);
}

#[test]
fn a_running_report_is_processed_while_the_operators_order_is_recorded() {
    let mut bench = Bench::committed();
    bench.feed(lost());
    let at = bench.source.deadline().unwrap();
    bench.source.handle(Event::Tick, at);
    bench.feed(Event::Connected);
    bench.feed(Event::Resolve(OperatorChoice::Run));
    assert_eq!(bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 })), []);
    // The record of the order, then the record of the end.
    assert_eq!(bench.feed(Event::Recorded), [Action::Record(SourceState::Done)]);
    let actions = bench.feed(Event::Recorded);
    assert!(actions.contains(&Action::DropGuest) && !actions.contains(&Action::ResumeGuest));
    assert_eq!(report(&actions).outcome, Outcome::Migrated);
}

#[test]
fn a_guest_that_failed_to_resume_and_runs_elsewhere_is_not_resumed() {
    let mut bench = Bench::committed();
    bench.feed(lost());
    bench.feed(Event::Resolve(OperatorChoice::Run));
    bench.feed(Event::Recorded);
    let error = GuestError::new("its disk was written since");
    let actions = bench.feed(Event::Resumed(Err(error)));
    assert!(report(&actions).way_out.as_ref().unwrap().contains("lighter resume web-1"));
    let at = bench.source.deadline().unwrap();
    bench.source.handle(Event::Tick, at);
    bench.feed(Event::Connected);
    let actions = bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 }));
    assert_eq!(report(&actions).way_out, None);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::InDoubt);
}
