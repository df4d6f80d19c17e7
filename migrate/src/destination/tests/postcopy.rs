//! Post-copy, and sources that do it wrong.

use super::*;
use crate::memory::PageSet;
use crate::progress::Transfer;
use crate::protocol::{FEATURE_POSTCOPY, PageMasks};
use crate::waits::PageWaits;

/// One page of the first chunk.
fn page(number: usize) -> PageSet {
    let mut set = PageSet::empty(1);
    set.insert(0, number);
    set
}

fn missing(number: usize) -> SourceMessage {
    SourceMessage::Missing(PageMasks::of(&page(number)))
}

/// Runs up to the first page, between sides that can do everything.
fn receiving() -> Bench {
    let features = Features::SUPPORTED.with(FEATURE_POSTCOPY).without(FEATURE_EARLY_COMMIT);
    let offer = Offer { features, ..Offer::ours() };
    let config = DestinationConfig {
        migration: migration(),
        offer: offer.clone(),
        linger: Duration::from_secs(30),
    };
    let mut bench = Bench { destination: Destination::new(config, Duration::ZERO), now: MS };
    bench.feed(Event::Connected);
    bench.hear(hello(offer));
    bench.hear(prepare(guest("web-1"), 1));
    bench.feed(Event::Checked(Ok(())));
    bench.feed(Event::Created(Ok(())));
    bench.feed(Event::Recorded);
    bench
}

/// Runs until the first pages are dropped.
fn cleared() -> Bench {
    let mut bench = receiving();
    assert_eq!(bench.hear(missing(3)), [], "pages are in flight");
    let ended = Event::StreamEnded { stream: 0, announced: 5, applied: 5 };
    assert_eq!(bench.feed(ended), [Action::Clear(page(3))]);
    let actions = bench.feed(Event::Cleared(Ok(())));
    assert_eq!(actions, [Action::Send(DestinationMessage::Cleared)]);
    bench
}

/// Runs until all but the missing pages is there.
fn ready() -> Bench {
    let mut bench = cleared();
    bench.hear(SourceMessage::Switchover);
    assert_eq!(bench.hear(state(RunState::Running)), [], "written pages are not known yet");
    let actions = bench.hear(missing(4));
    assert_eq!(actions, [Action::Fetch(page(4)), Action::LoadState(vec![1])]);
    bench.feed(Event::Loaded(Ok(())));
    bench.feed(Event::Recorded);
    bench
}

/// Runs until the source has committed, with pages missing.
fn committed() -> Bench {
    let mut bench = ready();
    assert_eq!(bench.hear(SourceMessage::Commit), [Action::Record(DestinationState::Taking)]);
    bench
}

/// Runs until the guest runs, with pages missing.
fn fetching() -> Bench {
    let mut bench = committed();
    bench.feed(Event::Recorded);
    bench.feed(Event::Adopted(Ok(())));
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Running(_))), "{actions:?}");
    assert_eq!(actions[1..], [Action::Record(DestinationState::Fetching)]);
    bench.feed(Event::Recorded);
    bench
}

#[test]
fn the_source_hears_that_all_is_there_once_that_is_recorded() {
    let mut bench = fetching();
    let waits = PageWaits { longest_seconds: 0.25, ..PageWaits::default() };
    bench.feed(Event::Waited(waits.clone()));
    let actions = bench.feed(Event::Fetched);
    assert_eq!(actions[0], Action::Record(DestinationState::Running));
    let report = report(&actions);
    assert_eq!((report.outcome, &report.page_waits), (Outcome::Migrated, &Some(waits)));
    let actions = bench.feed(Event::Recorded);
    let complete = DestinationMessage::Complete { longest_wait_us: 250_000 };
    assert_eq!(actions, [Action::Send(complete)]);
}

/// The guest may have been handed over: this copy is then the only one, and whole.
#[test]
fn a_ready_destination_that_has_all_memory_runs_the_guest_of_a_source_that_has_died() {
    let mut bench = ready();
    bench.feed(Event::Fetched);
    let actions = bench.hear(resolve(Decision::Lost));
    assert_eq!(actions, [Action::Record(DestinationState::Taking)]);
    assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
}

#[test]
fn a_source_that_comes_back_hears_what_is_missing() {
    let mut bench = fetching();
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(bench.destination.deadline(), None, "it waits without limit");
    bench.feed(Event::Connected);
    let actions = bench.hear(resolve(Decision::Serve));
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Running(_))), "{actions:?}");
    assert_eq!(actions[1..], [Action::ReportMissing]);
}

#[test]
fn a_guest_whose_memory_is_lost_is_paused_and_kept() {
    let mut bench = fetching();
    let actions = bench.hear(resolve(Decision::Lost));
    assert_eq!(actions[..2], [Action::StopFetching, Action::Record(DestinationState::Lost)]);
    assert_eq!(report(&actions).outcome, Outcome::Lost);
    let actions = bench.feed(Event::Recorded);
    assert!(matches!(actions[0], Action::Send(DestinationMessage::Lost(_))), "{actions:?}");
    assert_eq!(actions.last(), Some(&Action::Settled));
}

/// The answer to the last action of a destination that takes the guest over.
type Step = fn(&mut Bench) -> Vec<Action>;

#[test]
fn a_guest_whose_memory_is_withdrawn_while_it_is_taken_over_is_discarded_unrun() {
    let recorded: Step = |bench| bench.feed(Event::Recorded);
    let not_recorded: Step = |bench| bench.feed(Event::RecordFailed { detail: "full".into() });
    let adopted: Step = |bench| bench.feed(Event::Adopted(Ok(())));
    let not_adopted: Step = |bench| bench.feed(Event::Adopted(Err(GuestError::new("in use"))));
    let cases = [(false, recorded), (false, not_recorded), (true, adopted), (true, not_adopted)];
    for (is_adopting, step) in cases {
        for (decision, outcome) in
            [(Decision::Aborted, Outcome::StayedAtSource), (Decision::Lost, Outcome::Lost)]
        {
            let mut bench = committed();
            if is_adopting {
                assert_eq!(bench.feed(Event::Recorded), [Action::AdoptGuest]);
            }
            assert_eq!(bench.hear(resolve(decision)), []);
            let actions = step(&mut bench);
            assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
            let actions = bench.feed(Event::Recorded);
            assert_eq!(actions[0], Action::Send(DestinationMessage::Discarded));
            assert_eq!(report(&actions).outcome, outcome);
        }
    }
}

#[test]
fn a_guest_that_its_source_has_taken_back_while_it_was_resumed_is_stopped() {
    let mut bench = committed();
    bench.feed(Event::Recorded);
    bench.feed(Event::Adopted(Ok(())));
    assert_eq!(bench.hear(resolve(Decision::Aborted)), []);
    let actions = bench.feed(Event::Resumed(Ok(())));
    assert_eq!(actions[0], Action::StopFetching);
    assert!(!actions.iter().any(|action| matches!(action, Action::Send(_))), "{actions:?}");
}

/// Otherwise it would count as a crash here, after which it may boot here again.
#[test]
fn a_guest_that_its_source_has_taken_back_while_it_runs_does_not_end_as_lost() {
    let abort = SourceMessage::Abort(Complaint::new(Reason::Operator, "run there"));
    for aborted in [resolve(Decision::Aborted), abort] {
        let mut bench = fetching();
        let actions = bench.hear(aborted.clone());
        let discarded = Action::Record(DestinationState::Discarded);
        assert_eq!(actions[..2], [Action::StopFetching, discarded]);
        assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
        assert_eq!(bench.hear(aborted), [], "it is not recorded yet");
        let settled =
            [Action::Send(DestinationMessage::Discarded), Action::Disconnect, Action::Settled];
        assert_eq!(bench.feed(Event::Recorded), settled);
    }
}

/// Returns the answers to an operator who wants the guest run, or discarded.
fn resolved(bench: &Bench) -> [Result<(), ResolveRefused>; 2] {
    [OperatorChoice::Run, OperatorChoice::Discard]
        .map(|choice| bench.destination.can_resolve(choice))
}

#[test]
fn an_operator_cannot_decide_about_a_guest_that_has_been_handed_over() {
    for mut bench in [committed(), fetching()] {
        assert_eq!(resolved(&bench), [Err(ResolveRefused::RunsHere); 2], "the source is there");
        bench.lose_connection();
        assert_eq!(resolved(&bench), [Err(ResolveRefused::RunsHere); 2]);
        assert_eq!(bench.feed(Event::Resolve(OperatorChoice::Discard)), []);
    }
    assert_eq!(fetching().destination.can_cancel(), Err(CancelRefused::Committed));
}

#[test]
fn a_discard_ends_the_wait_for_a_source_and_is_refused_while_that_is_there() {
    let mut bench = ready();
    let elsewhere = Err(ResolveRefused::MemoryElsewhere);
    assert_eq!(resolved(&bench), [elsewhere, Err(ResolveRefused::Connected)]);
    assert_eq!(bench.feed(Event::Resolve(OperatorChoice::Discard)), []);
    bench.lose_connection();
    assert_eq!(resolved(&bench), [elsewhere, Ok(())]);
    let actions = bench.feed(Event::Resolve(OperatorChoice::Discard));
    assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).outcome, Outcome::StayedAtSource);
    assert_eq!(actions.last(), Some(&Action::Settled));
}

fn gives_up(actions: &[Action]) -> bool {
    actions.contains(&Action::Discard)
}

#[test]
fn what_waits_for_a_page_while_the_state_is_loaded_continues_when_the_source_is_gone() {
    let mut bench = cleared();
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    bench.hear(missing(4));
    assert_eq!(bench.lose_connection(), [Action::AbandonMissing]);
    assert!(gives_up(&bench.feed(Event::Loaded(Ok(())))));
}

#[test]
fn progress_says_how_much_is_missing() {
    let mut bench = fetching();
    let left = |bench: &Bench| bench.destination.progress(bench.now).remaining_bytes;
    assert_eq!(left(&bench), 2 * 4096);
    bench.feed(Event::Transferred(Transfer { raw_pages: 1, ..Transfer::default() }));
    assert_eq!(left(&bench), 4096);
    bench.feed(Event::Fetched);
    assert_eq!(left(&bench), 0);
}

#[test]
fn pages_that_the_guest_does_not_have_or_that_come_too_often_end_the_migration() {
    let mut outside = PageSet::empty(2_000);
    outside.insert(1_999, 0);
    let outside = SourceMessage::Missing(PageMasks::of(&outside));
    assert!(gives_up(&receiving().hear(outside)));

    let mut twice = receiving();
    twice.hear(missing(3));
    assert!(gives_up(&twice.hear(missing(4))));

    assert!(gives_up(&cleared().hear(missing(4))), "the guest is not paused");

    let mut late = receiving();
    late.hear(SourceMessage::Switchover);
    assert!(gives_up(&late.hear(missing(4))), "nothing was announced while it ran");

    let mut not_agreed = Bench::receiving(1);
    assert!(gives_up(&not_agreed.hear(missing(3))));
}
