//! A connection that is lost while rounds are sent.

use super::*;
use crate::decisions::{Decided, DecisionKind};
use crate::error::RecoverRefused;
use crate::protocol::{FEATURE_POSTCOPY, FEATURE_RECONNECT};

const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(9));

/// A migration whose first dry run is under way. The destination has these features.
fn measuring(features: Features) -> Bench {
    let mut bench = Bench::new();
    bench.source.config.offer.features = Features::SUPPORTED.with(FEATURE_POSTCOPY);
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    bench.hear(DestinationMessage::Prepared);
    bench.feed(Event::PrecopyStarted);
    bench
}

/// A destination that keeps its copy, in the first round.
fn copying() -> Bench {
    let mut bench = measuring(FEATURE_RECONNECT);
    bench.feed(Event::Probed(Probe { round_trip: MS, ..Probe::default() }));
    bench
}

fn tick(bench: &mut Bench) -> Vec<Action> {
    bench.now = bench.source.deadline().unwrap();
    bench.source.handle(Event::Tick, bench.now)
}

fn applied(frames: &[u64]) -> DestinationMessage {
    DestinationMessage::Applied { frames: frames.to_vec() }
}

#[test]
fn asks_what_the_destination_has_and_goes_on() {
    let mut bench = copying();
    let transfer = Transfer { raw_pages: 1000, ..Transfer::default() };
    bench.feed(Event::Transferred(transfer));
    assert_eq!(bench.feed(lost()), []);
    let progress = bench.source.progress(bench.now);
    assert_eq!(progress.disconnected.as_deref(), Some("timed out"));
    assert_eq!((progress.phase, progress.in_doubt), (Phase::Precopy, None));
    assert_eq!(progress.remaining_bytes, (64 * 64 - 1000) * 4096);

    assert_eq!(tick(&mut bench), [Action::Reconnect]);
    let asked = bench.feed(Event::Connected);
    assert_eq!(asked, [Action::Send(SourceMessage::Continue { migration: MIGRATION })]);
    assert_eq!(
        bench.hear(applied(&[7, 9])),
        [Action::ReopenStreams { applied: vec![7, 9] }, Action::SendRound { round: 2 }]
    );
    let progress = bench.source.progress(bench.now);
    assert_eq!((progress.disconnected, progress.decision_counts.len()), (None, 2));
    assert!(matches!(progress.decisions[1].what, Decided::Reconnected { disconnected_seconds }
        if (0.1..0.2).contains(&disconnected_seconds)));
}

#[test]
fn tries_for_two_minutes_and_then_leaves_the_guest_here() {
    let mut bench = copying();
    bench.feed(lost());
    let lost_at = bench.now;
    let actions = loop {
        match tick(&mut bench) {
            actions if actions == [Action::Reconnect] => drop(bench.feed(lost())),
            actions => break actions,
        }
    };
    assert_eq!(bench.now - lost_at, RECONNECT_WITHIN);
    assert_eq!(actions[..2], [Action::StopSending, Action::StopDirtyLog]);
    let error = report(&actions).error.clone().unwrap();
    assert_eq!(error.reason, Reason::ConnectionLost);
    assert!(error.message.contains("timed out (with --via"), "{}", error.message);
    // The destination may be back soon, and keeps a copy until then.
    assert_eq!(bench.source.can_cancel(), Err(CancelRefused::Over));
    while tick(&mut bench) == [Action::Reconnect] {
        if bench.feed(lost()) == [Action::Record(SourceState::Aborted)] {
            break;
        }
    }
    assert!((bench.now - lost_at).abs_diff(2 * RECONNECT_WITHIN) <= Duration::from_secs(10));
    assert_eq!(bench.feed(Event::Recorded), [Action::Settled]);
}

/// What measures the switchover is not interrupted, and may wait for a disk.
#[test]
fn a_loss_during_a_dry_run_is_repaired_at_the_same_time() {
    for is_repaired_first in [false, true] {
        let mut bench = measuring(FEATURE_RECONNECT);
        assert_eq!(bench.feed(lost()), []);
        assert!(bench.source.progress(bench.now).disconnected.is_some());
        assert_eq!(bench.source.can_recover(), Ok(()));
        let probed = Event::Probed(Probe::default());
        if !is_repaired_first {
            assert_eq!(bench.feed(probed.clone()), []);
        }
        assert_eq!(tick(&mut bench), [Action::Reconnect]);
        let asked = bench.feed(Event::Connected);
        assert_eq!(asked, [Action::Send(SourceMessage::Continue { migration: MIGRATION })]);
        let mut actions = bench.hear(applied(&[0, 0]));
        if is_repaired_first {
            assert_eq!(actions.len(), 1, "{actions:?}");
            actions.extend(bench.feed(probed));
        }
        let reopen = Action::ReopenStreams { applied: vec![0, 0] };
        assert_eq!(actions, [reopen, Action::SendRound { round: 1 }]);
    }
}

/// A dry run that cannot resume the guest ends the migration, in reach or not.
#[test]
fn a_dry_run_that_fails_after_a_loss_resumes_the_guest() {
    let mut bench = measuring(FEATURE_RECONNECT);
    bench.feed(lost());
    let error = GuestError::new("no");
    let actions = bench.feed(Event::PauseFailed { was: RunState::Running, error });
    assert_eq!(actions, [Action::StopSending, Action::ResumeGuest, Action::StopDirtyLog]);
}

#[test]
fn a_destination_without_its_copy_ends_it() {
    for answer in [DestinationMessage::Discarded, DestinationMessage::Unknown] {
        let mut bench = copying();
        bench.feed(lost());
        tick(&mut bench);
        bench.feed(Event::Connected);
        let actions = bench.hear(answer);
        assert_eq!(actions.last(), Some(&Action::Record(SourceState::Aborted)));
        let actions = bench.feed(Event::Recorded);
        assert_eq!(report(&actions).error.as_ref().unwrap().reason, Reason::ConnectionLost);
    }
}

/// Connections that are lost before anything comes over them are no progress.
#[test]
fn gives_up_if_no_frame_is_applied_for_two_minutes() {
    let mut bench = copying();
    let began = bench.now;
    let mut reconnections = 0;
    loop {
        bench.feed(lost());
        assert_eq!(tick(&mut bench), [Action::Reconnect]);
        bench.feed(Event::Connected);
        let actions = bench.hear(applied(&[3, 4]));
        if !matches!(actions[0], Action::ReopenStreams { .. }) {
            break;
        }
        reconnections += 1;
    }
    let took = bench.now - began;
    assert!((RECONNECT_WITHIN..2 * RECONNECT_WITHIN).contains(&took), "{took:?}");
    assert!(reconnections < 30, "{reconnections}: pauses grow");
}

/// A frame may take minutes if the bandwidth is limited, and rounds without a page need none.
#[test]
fn a_connection_that_lasts_or_a_round_without_pages_is_progress() {
    let idle = RoundSent { dirty_pages: 4096, ..RoundSent::default() };
    for (lasts, times, round) in [(180, 10, None), (1, 300, Some(idle))] {
        let mut bench = copying();
        for _ in 0..times {
            bench.now += Duration::from_secs(lasts);
            if let Some(sent) = round {
                bench.feed(Event::RoundSent(sent));
            }
            bench.feed(lost());
            assert_eq!(tick(&mut bench), [Action::Reconnect]);
            bench.feed(Event::Connected);
            let actions = bench.hear(applied(&[3, 4]));
            assert!(matches!(actions[0], Action::ReopenStreams { .. }), "{actions:?}");
        }
    }
}

#[test]
fn each_frame_that_is_applied_is_progress() {
    let mut bench = copying();
    for n in 0..1000 {
        bench.now += Duration::from_secs(1);
        bench.feed(lost());
        assert_eq!(tick(&mut bench), [Action::Reconnect]);
        bench.feed(Event::Connected);
        let actions = bench.hear(applied(&[n, 7]));
        assert!(matches!(actions[0], Action::ReopenStreams { .. }), "{n} {actions:?}");
    }
}

#[test]
fn an_answer_for_other_streams_is_a_protocol_error() {
    let mut bench = copying();
    bench.feed(lost());
    tick(&mut bench);
    bench.feed(Event::Connected);
    let actions = bench.hear(applied(&[1]));
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(complaint))
        if complaint.reason() == Reason::Protocol));
}

#[test]
fn an_answer_that_was_not_asked_for_is_a_protocol_error() {
    let mut bench = copying();
    let actions = bench.hear(applied(&[1, 1]));
    assert!(matches!(&actions[0], Action::Send(SourceMessage::Abort(complaint))
        if complaint.reason() == Reason::Protocol));
}

/// The round that was interrupted may still report its end.
#[test]
fn a_round_that_ends_while_the_destination_is_out_of_reach_decides_nothing() {
    let mut bench = copying();
    bench.feed(lost());
    assert_eq!(bench.feed(Event::RoundSent(RoundSent::default())), []);
    assert!(bench.source.progress(bench.now).disconnected.is_some());
}

#[test]
fn a_throttle_ends_with_the_connection() {
    let mut bench = copying();
    let behind =
        RoundSent { pages: 4096, dirty_pages: 4096, wire_bytes: 1 << 24, ..RoundSent::default() };
    while !bench.source.progress(bench.now).decision_counts.contains_key(&DecisionKind::Throttled) {
        bench.now += Duration::from_secs(1);
        bench.feed(Event::RoundSent(behind));
    }
    let actions = bench.feed(lost());
    assert_eq!(actions, [Action::Throttle(crate::guest::Throttle::default())]);
}

#[test]
fn another_address_may_be_given_while_the_destination_is_out_of_reach() {
    let mut bench = copying();
    assert_eq!(bench.source.can_recover(), Err(RecoverRefused::NotCommitted));
    bench.feed(lost());
    assert_eq!(bench.source.can_recover(), Ok(()));
}

#[test]
fn an_older_destination_has_given_up() {
    let mut bench = Bench::copying();
    let actions = bench.feed(lost());
    assert_eq!(actions.last(), Some(&Action::Record(SourceState::Aborted)));
}

/// Post-copy that is ordered meanwhile begins once the destination is there again.
#[test]
fn post_copy_waits_for_the_destination() {
    let mut bench = measuring(FEATURE_RECONNECT.with(FEATURE_POSTCOPY));
    bench.feed(Event::Probed(Probe::default()));
    bench.feed(lost());
    assert_eq!(bench.feed(Event::Postcopy), []);
    tick(&mut bench);
    bench.feed(Event::Connected);
    assert_eq!(
        bench.hear(applied(&[0, 0])),
        [Action::ReopenStreams { applied: vec![0, 0] }, Action::EndStreams]
    );
}
