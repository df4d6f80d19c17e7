//! Sources that commit before they know that this side is ready.

use super::*;

fn withdraw() -> SourceMessage {
    SourceMessage::Withdraw(Complaint::new(Reason::Downtime, "late"))
}

/// Runs until all is here but the state is not loaded.
fn loading() -> Bench {
    Bench::with(Features::SUPPORTED).greet().receive(1).load()
}

#[test]
fn a_guest_that_is_committed_is_taken_over_as_soon_as_it_is_loaded() {
    let mut bench = loading();
    assert_eq!(bench.hear(SourceMessage::Commit), []);
    let taking = [Action::Record(DestinationState::Taking)];
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), taking);
    // The last pages may come after the commit.
    let mut bench = Bench::with(Features::SUPPORTED).greet().receive(1);
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    assert_eq!(bench.hear(SourceMessage::Commit), []);
    bench.feed(Event::StreamEnded { stream: 0, announced: 0, applied: 0 });
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), taking);
}

#[test]
fn a_guest_that_is_not_committed_yet_waits_without_a_record() {
    let mut bench = loading();
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), []);
    assert_eq!(bench.destination.can_cancel(), Err(CancelRefused::SourceDecides));
    assert_eq!(bench.hear(SourceMessage::Commit), [Action::Record(DestinationState::Taking)]);
}

#[test]
fn a_commit_before_the_state_breaks_the_protocol() {
    for is_switching_over in [false, true] {
        let mut bench = Bench::with(Features::SUPPORTED).greet().receive(1);
        if is_switching_over {
            bench.hear(SourceMessage::Switchover);
        }
        assert_eq!(bench.hear(SourceMessage::Commit)[0], Action::Discard);
    }
}

/// The source may have committed, and be gone.
#[test]
fn what_is_all_here_outlives_the_connection() {
    let mut bench = loading();
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), []);
    bench.feed(Event::Connected);
    let taking = [Action::Record(DestinationState::Taking)];
    assert_eq!(bench.hear(resolve(Decision::Commit)), taking);

    let mut bench = loading();
    bench.hear(SourceMessage::Commit);
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), taking);

    let mut bench = loading();
    bench.lose_connection();
    bench.feed(Event::Connected);
    assert_eq!(
        bench.hear(resolve(Decision::Aborted)),
        [Action::Record(DestinationState::Discarded)]
    );
}

#[test]
fn a_failure_after_the_commit_tells_the_source_that_nothing_has_run() {
    let mut bench = loading();
    bench.hear(SourceMessage::Commit);
    let failed = Event::Loaded(Err(GuestError::new("no memory")));
    let discarding = [Action::Discard, Action::Record(DestinationState::Discarded)];
    assert_eq!(bench.feed(failed), discarding);
    // A source that has committed meanwhile still hears why.
    assert_eq!(bench.hear(SourceMessage::Commit), []);
    let actions = bench.feed(Event::Recorded);
    assert!(matches!(&actions[0], Action::Send(DestinationMessage::GaveUp(complaint))
        if complaint.reason() == Reason::Guest));
}

#[test]
fn a_guest_that_is_asked_for_while_it_is_loaded_is_given_back_before_that_ends() {
    let mut bench = loading();
    bench.hear(SourceMessage::Commit);
    assert_eq!(bench.hear(withdraw()), [Action::Record(DestinationState::Discarded)]);
    let discarded = [Action::Send(DestinationMessage::Discarded)];
    assert_eq!(bench.feed(Event::Recorded), discarded);
    assert_eq!(bench.hear(resolve(Decision::Commit)), discarded, "asked again, it says so again");
    let actions = bench.feed(Event::Loaded(Ok(())));
    assert_eq!(actions[0], Action::Discard);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::Downtime);
}

#[test]
fn a_guest_that_is_asked_for_in_vain_is_taken_over() {
    let mut bench = loading();
    bench.hear(SourceMessage::Commit);
    bench.feed(Event::Loaded(Ok(())));
    assert_eq!(bench.hear(withdraw()), []);
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
    assert_eq!(bench.hear(withdraw()), []);
    assert_eq!(bench.feed(Event::Adopted(Ok(()))), [Action::ResumeGuest]);
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Running(_))));
    assert_eq!(bench.hear(withdraw()), []);
}

#[test]
fn a_source_without_early_commits_cannot_ask_for_its_guest() {
    let mut bench = Bench::ready();
    assert_eq!(bench.hear(withdraw()), [Action::Disconnect]);
}
