//! A source whose connection is lost while its rounds come.

use super::*;
use crate::protocol::FEATURE_RECONNECT;

fn ended() -> Event {
    Event::StreamEnded { stream: 0, announced: 5, applied: 5 }
}

fn go_on() -> SourceMessage {
    SourceMessage::Continue { migration: migration() }
}

/// A destination whose source is out of reach.
fn kept() -> Bench {
    let mut bench = Bench::receiving(2);
    assert_eq!(bench.lose_connection(), []);
    bench
}

#[test]
fn keeps_what_it_has_and_tells_a_source_that_is_back() {
    let mut bench = kept();
    let progress = bench.destination.progress(bench.now);
    assert_eq!(progress.disconnected.as_deref(), Some("timed out"));
    bench.feed(Event::Connected);
    assert_eq!(bench.hear(go_on()), [Action::CountFrames]);
    let answer = DestinationMessage::Applied { frames: vec![4, 0] };
    assert_eq!(bench.feed(Event::Counted(vec![4, 0])), [Action::Send(answer)]);
    assert_eq!(bench.destination.deadline(), None);
    assert_eq!(bench.destination.progress(bench.now).disconnected, None);
    // The guest can be handed over.
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    bench.feed(ended());
    let ended = Event::StreamEnded { stream: 1, announced: 1, applied: 1 };
    assert_eq!(bench.feed(ended), [Action::LoadState(vec![1])]);
}

#[test]
fn gives_up_a_source_that_does_not_come_back() {
    let mut bench = kept();
    let lost_at = bench.now;
    bench.feed(Event::Connected);
    assert_eq!(bench.lose_connection(), [], "nothing was said: the time runs on");
    let at = bench.destination.deadline().unwrap();
    assert_eq!(at - lost_at, KEPT_WITHOUT_SOURCE);
    let actions = bench.destination.handle(Event::Tick, at);
    assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::ConnectionLost);
    assert_eq!(actions.last(), Some(&Action::Settled));
}

#[test]
fn hears_that_the_source_has_given_up() {
    let mut bench = kept();
    bench.feed(Event::Connected);
    let actions = bench.hear(resolve(Decision::Aborted));
    assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
    let actions = bench.feed(Event::Recorded);
    assert_eq!(actions[0], Action::Send(DestinationMessage::Discarded));
    assert_eq!(bench.hear(go_on()), [Action::Send(DestinationMessage::Discarded)]);
}

#[test]
fn an_order_to_discard_is_obeyed_without_the_source() {
    let mut bench = kept();
    let actions = bench.feed(Event::Cancel { by: "ops".into() });
    assert_eq!(actions, [Action::Discard, Action::Record(DestinationState::Discarded)]);
}

/// Its first answer was lost with the connection on which it was asked for.
#[test]
fn only_the_last_question_is_answered() {
    let mut bench = kept();
    bench.feed(Event::Connected);
    bench.hear(go_on());
    bench.feed(Event::Connected);
    assert_eq!(bench.hear(go_on()), [Action::CountFrames]);
    assert_eq!(bench.feed(Event::Counted(vec![1, 1])), []);
    let answer = DestinationMessage::Applied { frames: vec![1, 2] };
    assert_eq!(bench.feed(Event::Counted(vec![1, 2])), [Action::Send(answer)]);
}

#[test]
fn a_hand_over_that_had_begun_is_called_off() {
    let mut bench = Bench::receiving(1);
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    bench.lose_connection();
    bench.feed(Event::Connected);
    bench.hear(go_on());
    bench.feed(Event::Counted(vec![0]));
    bench.hear(SourceMessage::Switchover);
    assert_eq!(bench.feed(ended()), [], "the new state is missing");
}

/// What has come before the loss is applied after it.
#[test]
fn a_copy_that_becomes_complete_after_the_loss_is_kept_without_limit() {
    let mut bench = Bench::with(Features::SUPPORTED).greet().receive(1);
    bench.hear(SourceMessage::Switchover);
    bench.hear(state(RunState::Running));
    assert_eq!(bench.lose_connection(), []);
    assert_eq!(bench.feed(ended()), [Action::LoadState(vec![1])]);
    assert_eq!(bench.destination.deadline(), None);
    assert_eq!(bench.feed(Event::Loaded(Ok(()))), []);
    bench.feed(Event::Connected);
    let actions = bench.hear(resolve(Decision::Commit));
    assert_eq!(actions, [Action::Record(DestinationState::Taking)]);
}

#[test]
fn nothing_is_kept_of_a_guest_that_is_nearly_complete_or_of_an_older_source() {
    let mut streams_ended = Bench::receiving(2);
    streams_ended.hear(SourceMessage::Switchover);
    streams_ended.feed(ended());
    let mut older = Bench::with(Features::SUPPORTED.without(FEATURE_RECONNECT)).greet().receive(1);
    for bench in [&mut streams_ended, &mut older] {
        assert_eq!(
            bench.lose_connection(),
            [Action::Discard, Action::Record(DestinationState::Discarded)]
        );
    }
}

#[test]
fn a_source_that_was_not_lost_or_speaks_of_another_migration_is_refused() {
    let mut bench = Bench::receiving(1);
    bench.hear(go_on());
    assert_eq!(bench.destination.can_cancel(), Err(CancelRefused::Over), "it gives up");
    let mut bench = kept();
    bench.feed(Event::Connected);
    bench.hear(SourceMessage::Continue { migration: MigrationId(Uuid::from_u128(10)) });
    assert_eq!(bench.destination.can_cancel(), Err(CancelRefused::Over));
    let mut bench = Bench::ready();
    assert_eq!(bench.hear(go_on()), [Action::Disconnect]);
}
