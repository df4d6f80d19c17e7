//! Post-copy, from the decision on.

use super::*;
use crate::decisions::{Cause, Decided};
use crate::error::{ChangeRefused, PostcopyRefused};
use crate::limits::LimitsChange;
use crate::memory::PageSet;
use crate::protocol::{FEATURE_EARLY_COMMIT, FEATURE_POSTCOPY, PageMasks};

/// Runs until the guest is paused.
fn standing() -> Bench {
    let mut bench = Bench::new();
    let features = Features::SUPPORTED.with(FEATURE_POSTCOPY).without(FEATURE_EARLY_COMMIT);
    bench.source.config.offer.features = features;
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    bench.hear(DestinationMessage::Prepared);
    bench.feed(Event::PrecopyStarted);
    bench.feed(Event::Probed(Probe { pause_and_save: 2 * MS, ..Probe::default() }));
    assert_eq!(bench.feed(Event::Postcopy), [Action::EndStreams]);
    bench.feed(Event::StreamsEnded(PageSet::full(64)));
    bench.hear(DestinationMessage::Cleared);
    bench.feed(Event::Paused { was: RunState::Running });
    bench
}

/// Runs until the record says that the destination owns the guest, and lacks memory.
fn asking() -> Bench {
    let mut bench = standing();
    bench.feed(Event::Flushed { attempt: 0 });
    bench.feed(Event::StateSaved { state: vec![1] });
    bench.feed(Event::MissingCollected(PageSet::empty(64)));
    let decided = bench.hear(DestinationMessage::Ready { load_us: 1 });
    assert_eq!(decided, [Action::Record(SourceState::Serving)]);
    bench.feed(Event::Recorded);
    bench
}

/// Runs until the guest runs at the destination.
fn serving() -> Bench {
    let mut bench = asking();
    let running = DestinationMessage::Running(Takeover::default());
    assert_eq!(bench.hear(running), [Action::ServeRest]);
    assert_eq!(bench.source.phase(), Phase::Postcopy);
    assert_eq!(bench.source.deadline(), None, "memory takes the time that it takes");
    bench
}

#[test]
fn an_order_to_hand_the_guest_over_before_its_memory_is_the_cause_of_that_decision() {
    let bench = standing();
    let decisions = bench.source.progress(bench.now).decisions;
    let decided: Vec<_> = decisions.into_iter().map(|decided| decided.what).collect();
    assert_eq!(decided, [Decided::Postcopy { cause: Cause::Order }]);
}

#[test]
fn memory_is_kept_for_a_destination_whose_node_has_lost_its_record() {
    let mut bench = serving();
    bench.feed(lost());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let at = bench.source.deadline().unwrap();
        pauses.push(at - bench.now);
        bench.now = at;
        assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
        bench.feed(Event::Connected);
        assert_eq!(bench.hear(DestinationMessage::Unknown), [Action::Disconnect]);
        let way_out = bench.source.progress(bench.now).in_doubt.unwrap();
        assert!(way_out.contains("migrate web-1 --resolve discard --unsafe`"), "{way_out}");
    }
    assert!(pauses.is_sorted());
    assert_eq!(pauses[11], Duration::from_secs(10));
    assert_eq!(bench.source.can_resolve(OperatorChoice::Discard), Ok(()));
}

#[test]
fn a_destination_that_runs_the_guest_and_does_not_say_what_it_lacks_is_asked_again() {
    let mut bench = serving();
    bench.feed(lost());
    let reconnect = |bench: &mut Bench| {
        bench.now = bench.source.deadline().unwrap();
        assert_eq!(bench.source.handle(Event::Tick, bench.now), [Action::Reconnect]);
        let actions = bench.feed(Event::Connected);
        let [Action::Send(SourceMessage::Resolve { decision, .. })] = actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(decision, Decision::Serve);
        assert_eq!(bench.hear(DestinationMessage::Running(Takeover::default())), []);
    };
    reconnect(&mut bench);
    let silent = bench.source.deadline().unwrap();
    assert_eq!((silent - bench.now).as_secs(), 59, "a minute after it was asked");

    assert_eq!(bench.source.handle(Event::Tick, silent), [Action::Disconnect]);

    assert!(bench.source.progress(silent).in_doubt.is_some());
    reconnect(&mut bench);
    let missing = PageSet::full(64);
    let actions = bench.hear(DestinationMessage::Missing(PageMasks::of(&missing)));
    assert_eq!(actions, [Action::Serve { missing }, Action::ServeRest]);
    assert_eq!(bench.source.deadline(), None);
}

#[test]
fn the_bandwidth_can_change_from_the_pause_to_the_end_and_nothing_else() {
    let bandwidth = LimitsChange { bandwidth: Some(0), ..LimitsChange::default() };
    let downtime = LimitsChange { downtime: Some(MS), ..bandwidth };
    for bench in [standing(), asking(), serving()] {
        assert_eq!(bench.source.can_change(&bandwidth), Ok(()));
        assert_eq!(bench.source.can_change(&downtime), Err(ChangeRefused::OnlyBandwidth));
    }
    let mut undone = standing();
    undone.feed(Event::Cancel { by: "ops".into() });
    assert_eq!(undone.source.can_change(&bandwidth), Err(ChangeRefused::Late));
}

#[test]
fn memory_that_is_given_up_leaves_it_to_the_node_to_say_so() {
    for mut bench in [asking(), serving()] {
        let discard = || Event::Resolve(OperatorChoice::Discard);
        assert_eq!(bench.feed(discard()), [], "the destination is there");
        bench.feed(lost());
        let actions = bench.feed(discard());
        assert_eq!(report(&actions).outcome, Outcome::Lost);
        let records = |action: &Action| matches!(action, Action::Record(_));
        assert!(!actions.iter().any(records), "the node would say nothing: {actions:?}");
        assert!(actions.contains(&Action::DropGuest), "{actions:?}");
        assert_eq!(actions.last(), Some(&Action::Settled));
    }
}

#[test]
fn a_guest_whose_missing_pages_fit_into_no_message_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.source.can_postcopy(), Ok(()));
    let bytes = (PageMasks::CHUNKS_MAX as u64 + 1) * CHUNK_BYTES as u64;
    let layout = MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap();
    bench.source.config.guest.layout = layout;
    assert_eq!(bench.source.can_postcopy(), Err(PostcopyRefused::TooLarge));
}

/// The message with which a destination that was reached again says what it lacks.
fn lacking() -> DestinationMessage {
    DestinationMessage::Missing(PageMasks::of(&PageSet::full(64)))
}

/// Loses the connection, and reaches the destination again.
fn reach_again(bench: &mut Bench) {
    bench.feed(lost());
    let at = bench.source.deadline().unwrap();
    assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
    bench.feed(Event::Connected);
}

#[test]
fn a_page_that_is_written_after_the_streams_ended_is_left_to_send_once() {
    let mut bench = standing();
    bench.feed(Event::Flushed { attempt: 0 });
    bench.feed(Event::StateSaved { state: vec![1] });
    let mut written = PageSet::empty(64);
    written.insert(3, 5);
    let actions = bench.feed(Event::MissingCollected(written));
    assert!(actions.contains(&Action::Serve { missing: PageSet::full(64) }), "{actions:?}");
    let pages = 64 * 64;
    assert_eq!(bench.source.progress(bench.now).remaining_bytes, pages << 12);
}

#[test]
fn a_destination_says_what_it_lacks_once_each_time_it_is_reached() {
    let mut bench = serving();
    assert_eq!(bench.hear(lacking()), [], "it has said so before the commit");
    for _ in 0..2 {
        reach_again(&mut bench);
        let serve = Action::Serve { missing: PageSet::full(64) };
        assert_eq!(bench.hear(lacking()), [serve, Action::ServeRest]);
        assert_eq!(bench.hear(lacking()), []);
    }
}

#[test]
fn memory_follows_a_guest_that_runs_although_the_operator_has_just_ordered_otherwise() {
    let mut bench = asking();
    reach_again(&mut bench);
    bench.feed(Event::Resolve(OperatorChoice::Run));
    let serve = Action::Serve { missing: PageSet::full(64) };
    assert_eq!(bench.hear(lacking()), [serve]);
    let running = DestinationMessage::Running(Takeover::default());
    assert_eq!(bench.hear(running), [Action::ServeRest]);
}
