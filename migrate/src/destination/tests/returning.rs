//! A source that calls its hand-over off and goes on with rounds.

use super::*;
use crate::phase::Phase;
use crate::protocol::FEATURE_RECONNECT;

fn ended() -> Event {
    Event::StreamEnded { stream: 0, announced: 5, applied: 5 }
}

#[test]
fn the_state_of_a_hand_over_that_was_called_off_is_not_loaded() {
    let mut bench = Bench::receiving(1);
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    let answer = Action::Send(DestinationMessage::Returned);
    assert_eq!(bench.hear(SourceMessage::Return), [answer]);
    assert_eq!(bench.destination.phase(), Phase::Precopy);
    bench.hear(SourceMessage::Switchover);
    assert_eq!(bench.feed(ended()), [], "the new state is missing");
    assert_eq!(bench.hear(state(RunState::Running)), [Action::LoadState(vec![1])]);
}

#[test]
fn there_is_no_way_back_without_a_hand_over_after_the_streams_or_for_an_older_source() {
    let is_refused = |mut bench: Bench| {
        bench.hear(SourceMessage::Return);
        assert_eq!(bench.destination.can_cancel(), Err(CancelRefused::Over), "it gives up");
    };
    is_refused(Bench::receiving(1));
    let mut streams_ended = Bench::receiving(2);
    streams_ended.hear(SourceMessage::Switchover);
    streams_ended.feed(ended());
    is_refused(streams_ended);
    is_refused(Bench::loading());
    let mut older = Bench::new();
    let features = Features::SUPPORTED.without(FEATURE_RECONNECT);
    older.hear(hello(Offer { features, ..Offer::ours() }));
    older.hear(prepare(guest("web-1"), 1));
    older.feed(Event::Checked(Ok(())));
    older.feed(Event::Created(Ok(())));
    older.feed(Event::Recorded);
    older.hear(SourceMessage::Switchover);
    is_refused(older);
}
