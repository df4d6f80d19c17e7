//! A guest that runs at its destination before its memory is there.

use super::*;
use crate::error::PostcopyRefused;
use crate::memory::PageSet;
use crate::protocol::{FEATURE_POSTCOPY, PageMasks};

/// A guest of which this side can hand over the memory later.
fn able(mut bench: Bench) -> Bench {
    let features = &mut bench.source.config.offer.features;
    *features = features.with(FEATURE_POSTCOPY);
    bench
}

/// Runs until the guest runs at the destination.
fn serving() -> Bench {
    let mut bench = able(Bench::new());
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let features = Features(1).with(FEATURE_POSTCOPY);
    bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    bench.hear(DestinationMessage::Prepared);
    bench.feed(Event::PrecopyStarted);
    bench.feed(Event::Probed(Probe::default()));
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
    bench.hear(DestinationMessage::Running(Takeover { resume_us: 1 }));
    assert_eq!(bench.source.phase(), Phase::Postcopy);
    bench
}

#[test]
fn memory_is_kept_for_a_destination_whose_node_knows_nothing_of_it() {
    let mut bench = serving();
    assert_eq!(bench.hear(DestinationMessage::Unknown), [Action::Disconnect]);
    let at = bench.source.deadline().unwrap();
    assert_eq!(bench.source.handle(Event::Tick, at), [Action::Reconnect]);
    bench.feed(Event::Connected);
    let missing = PageMasks::of(&PageSet::full(64));
    let actions = bench.hear(DestinationMessage::Missing(missing));
    assert!(actions.contains(&Action::Serve { missing: Some(PageSet::full(64)) }));
}

#[test]
fn a_guest_whose_missing_pages_fit_into_no_message_is_refused() {
    let mut bench = able(Bench::new());
    assert_eq!(bench.source.can_postcopy(), Ok(()));
    let bytes = (PageMasks::CHUNKS_MAX as u64 + 1) * CHUNK_BYTES as u64;
    let layout = MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap();
    bench.source.config.guest.layout = layout;
    assert_eq!(bench.source.can_postcopy(), Err(PostcopyRefused::TooLarge));
}
