//! Post-copy, from the decision on.

use super::*;
use crate::error::PostcopyRefused;
use crate::memory::PageSet;
use crate::protocol::{FEATURE_POSTCOPY, PageMasks};

/// Runs until the record says that the destination owns the guest, and lacks memory.
fn asking() -> Bench {
    let mut bench = Bench::new();
    let features = Features::SUPPORTED.with(FEATURE_POSTCOPY);
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
    assert_eq!(bench.hear(DestinationMessage::Running(Takeover::default())), []);
    assert_eq!(bench.source.phase(), Phase::Postcopy);
    assert_eq!(bench.source.deadline(), None, "memory takes the time that it takes");
    bench
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
        assert!(bench.source.progress(bench.now).in_doubt.is_some());
    }
    assert!(pauses.is_sorted());
    assert_eq!(pauses[11], Duration::from_secs(10));
    assert_eq!(bench.source.can_resolve(OperatorChoice::Discard), Ok(()));
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
