//! Forecasts of guests and links whose migrations are known.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::guest::GuestDescription;
use crate::limits::Limits;
use crate::memory::{MemoryLayout, Region};
use crate::protocol::{FEATURE_POSTCOPY, Features, MigrationId, Offer};
use crate::text::Blob;

const GIB_PAGES: u64 = 1 << 18;

/// A guest of 1 GiB, half of it zero, that writes the pages of `written`, over a link with `rate`
/// bytes per second.
fn measured(rate: f64, written: impl Fn(f64) -> f64) -> Measured {
    let window = |seconds: f64| {
        let pages = written(seconds) as u64;
        Written { seconds, pages, hot_pages: pages }
    };
    Measured {
        is_running: true,
        memory_pages: GIB_PAGES,
        zero_ratio: 0.5,
        compressible_ratio: 0.0,
        zero_page_seconds: 2e-7,
        disk_pages: 0,
        disk_content_pages: 0,
        written: [0.03, 0.1, 0.3, 1.0, 2.0].map(window).to_vec(),
        log_seconds: 0.001,
        collect_seconds: 0.0002,
        dry_run: DryRun {
            pause_and_save_seconds: 0.004,
            stood_seconds: 0.005,
            flush_seconds: 0.001,
            record_seconds: 0.003,
            record_change_seconds: 0.001,
        },
        path: Path {
            is_measured: true,
            connect_seconds: 0.002,
            round_trip_seconds: 0.0002,
            answer_seconds: 0.0005,
            bytes_per_second: rate,
            page_bytes: 4100.0,
            lost_ratio: 0.0,
        },
    }
}

fn config(on_stall: OnStall) -> SourceConfig {
    let bytes = 1 << 30;
    SourceConfig {
        migration: MigrationId(Uuid::nil()),
        guest: GuestDescription {
            name: "web-1".to_owned(),
            uuid: Uuid::nil(),
            layout: MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap(),
            vcpus: 1,
            config: Blob::default(),
            disks: Vec::new(),
            has_pci: false,
        },
        offer: Offer { features: Features::SUPPORTED.with(FEATURE_POSTCOPY), ..Offer::ours() },
        streams: 1,
        has_links: false,
        limits: Limits { on_stall, ..Limits::default() },
        node_port: None,
        estimate: None,
    }
}

fn by(measured: Measured, on_stall: OnStall) -> Estimate {
    estimate(measured, &config(on_stall), None)
}

fn idle(_: f64) -> f64 {
    0.0
}

/// A guest that writes 8 MiB.
fn light(seconds: f64) -> f64 {
    (seconds * 1000.0).min(2048.0)
}

/// A guest that writes a working set of 64 MiB, page after page.
fn busy(seconds: f64) -> f64 {
    (seconds * 20_000.0).min(16_384.0)
}

#[test]
fn an_idle_guest_is_sent_once() {
    let Estimate { converges, forecast, alternatives, .. } =
        by(measured(400e6, idle), OnStall::Throttle);
    assert!(converges && forecast.arrives && alternatives.is_empty(), "{forecast:?}");
    // The second round is that of the hand-over, with nothing to send.
    assert_eq!(forecast.rounds, 2, "{forecast:?}");
    let total = forecast.total_seconds.unwrap();
    assert!((1.3..1.7).contains(&total), "131,072 pages at 400 MB/s: {forecast:?}");
    let downtime = forecast.downtime_seconds.unwrap();
    assert!((0.005..0.03).contains(&downtime), "{forecast:?}");
    let content = GIB_PAGES / 2 * 4100;
    assert!((content..content + (1 << 20)).contains(&forecast.wire_bytes), "{forecast:?}");
    assert_eq!((forecast.throttle_percent, forecast.forced), (0, false));
    assert_eq!(forecast.figures().unwrap().wire_bytes, forecast.wire_bytes);
}

/// A first round of 5 s.
#[test]
fn what_a_longer_time_limit_would_bring_is_told() {
    let with_limit = |seconds, written: fn(f64) -> f64| {
        let mut config = config(OnStall::Wait);
        config.limits.total = Some(Duration::from_secs(seconds));
        estimate(measured(100e6, written), &config, None)
    };
    let Estimate { forecast, without_timeout, .. } = with_limit(3, idle);
    assert!(!forecast.arrives && forecast.rounds == 0, "{forecast:?}");
    let longer = without_timeout.unwrap();
    assert!(longer.arrives && longer.total_seconds > Some(5.0), "{longer:?}");
    assert_eq!(with_limit(30, idle).without_timeout, None, "it arrives in time");
    let stalls = with_limit(30, |seconds| seconds * 100_000.0);
    assert!(!stalls.forecast.arrives && stalls.without_timeout.is_none(), "{stalls:?}");
}

#[test]
fn the_downtime_has_an_answer_and_up_to_two_changes_of_records() {
    let downtime = |answer: f64, change: f64| {
        let mut measured = measured(400e6, idle);
        measured.path.answer_seconds += answer;
        measured.dry_run.record_change_seconds += change;
        // At the limit, nothing is queued before the last pages.
        let estimate = estimate(measured, &config(OnStall::Wait), Some(400_000_000));
        estimate.forecast.downtime_seconds.unwrap()
    };
    let more = |answer, change| downtime(answer, change) - downtime(0.0, 0.0);
    assert!((more(0.01, 0.0) - 0.01).abs() < 1e-6, "state and decision are answered together");
    let records = more(0.0, 0.01);
    assert!((0.01..0.02).contains(&records), "Committed, beside the state, and Taking: {records}");
}

#[test]
fn the_downtime_has_what_the_last_round_leaves_in_the_queue() {
    let downtime = |bandwidth| {
        let estimate = estimate(measured(100e6, idle), &config(OnStall::Wait), bandwidth);
        estimate.forecast.downtime_seconds.unwrap()
    };
    let queued = downtime(None) - downtime(Some(100_000_000));
    assert!((0.025..0.031).contains(&queued), "30 ms of the link, after a long round: {queued}");
}

/// The guest writes on while the queue is sent, so there is more to send.
#[test]
fn a_round_begins_behind_what_the_one_before_it_has_left_in_the_queue() {
    let wire_bytes = |bandwidth| {
        let estimate = estimate(measured(125e6, busy), &config(OnStall::Throttle), bandwidth);
        estimate.forecast.wire_bytes
    };
    // At the limit, nothing is queued.
    let (queued, unqueued) = (wire_bytes(None), wire_bytes(Some(125_000_000)));
    assert!(queued > unqueued + (1 << 20), "{queued} beside {unqueued}");
}

#[test]
fn more_bandwidth_makes_no_migration_longer() {
    for written in [idle, light] {
        let totals = [25e6, 50e6, 100e6, 200e6, 400e6, 800e6].map(|rate| {
            let forecast = by(measured(rate, written), OnStall::Wait).forecast;
            assert!(forecast.arrives, "{forecast:?}");
            forecast.total_seconds.unwrap()
        });
        // One more round may pay on the faster link.
        assert!(totals.windows(2).all(|pair| pair[1] < pair[0] * 1.02), "{totals:?}");
    }
}

#[test]
fn the_bandwidth_limit_holds() {
    let estimate = estimate(measured(400e6, idle), &config(OnStall::Wait), Some(8_000_000));
    let total = estimate.forecast.total_seconds.unwrap();
    assert!((67.0..70.0).contains(&total), "537 MB at 8 MB/s: {total}");
}

#[test]
fn what_would_move_a_guest_that_writes_too_fast_is_said() {
    let slow = || measured(25e6, busy);
    let estimate = by(slow(), OnStall::Wait);
    assert!(!estimate.converges && !estimate.forecast.arrives, "{estimate:?}");
    assert!(estimate.forecast.why_not.is_some() && estimate.forecast.figures().is_none());
    let [throttled, forced, postcopy] = &estimate.alternatives[..] else { panic!("{estimate:?}") };
    assert_eq!((throttled.on_stall, forced.on_stall), (OnStall::Throttle, OnStall::Force));
    assert_eq!(postcopy.on_stall, OnStall::Postcopy);
    assert!(postcopy.arrives && postcopy.downtime_seconds < Some(0.3), "{postcopy:?}");
    assert!(throttled.arrives && throttled.throttle_percent >= 20, "{throttled:?}");
    assert!(throttled.downtime_seconds <= Some(0.35), "{throttled:?}");
    assert!(forced.arrives && forced.forced, "{forced:?}");
    assert!(forced.downtime_seconds > Some(0.3), "{forced:?}");

    let share = estimate.converging_share.unwrap();
    assert!((0.01..0.99).contains(&share), "{share}");
    let calmer = |share: f64| by(measured(25e6, |seconds| share * busy(seconds)), OnStall::Wait);
    assert!(calmer(share).converges && !calmer(share + 0.02).converges, "{share}");

    let cancelled = by(slow(), OnStall::Cancel);
    let why_not = cancelled.forecast.why_not.unwrap();
    assert!(why_not.contains("stalled") && why_not.contains("too fast"), "{why_not}");
    let by_throttle = by(slow(), OnStall::Throttle);
    assert_eq!(by_throttle.forecast, *throttled);
    assert_eq!(by_throttle.alternatives, [forced.clone(), postcopy.clone()]);
}

#[test]
fn a_limit_that_is_raised_moves_a_guest_without_another_remedy() {
    let mut config = config(OnStall::Throttle);
    config.limits.downtime_max = Some(Duration::from_secs(5));
    let raised = estimate(measured(25e6, busy), &config, None);
    assert!(raised.converges && raised.alternatives.is_empty(), "{raised:?}");
    assert_eq!(raised.forecast.throttle_percent, 0, "{raised:?}");
    let downtime = raised.forecast.downtime_seconds.unwrap();
    assert!(downtime > 1.0 && downtime <= raised.downtime_limit_seconds, "{raised:?}");
    assert!((raised.downtime_limit_seconds - 5.0).abs() < 1e-9);
}

#[test]
fn a_downtime_that_depends_on_the_order_of_writes_is_a_range() {
    let link = 200_000.0 * 4100.0;
    let range = |written: fn(f64) -> f64| {
        let forecast = by(measured(link, written), OnStall::Throttle).forecast;
        let longest = forecast.downtime_seconds_max.unwrap();
        assert!(forecast.arrives && longest < 0.35, "within the limit: {forecast:?}");
        [forecast.downtime_seconds.unwrap(), longest]
    };
    // Rounds that do not shrink by a quarter end at once, with as much as the first one has left.
    let [expected, longest] = range(|seconds| (seconds * 170_000.0).min(65_536.0));
    assert!((0.05..0.15).contains(&expected) && longest > 2.0 * expected, "{expected}, {longest}");
    // They shrink, but only just: on a slightly slower link they do not.
    let [expected, longest] = range(|seconds| (seconds * 140_000.0).min(65_536.0));
    assert!(expected < 0.02 && longest > 0.1, "{expected}, {longest}");
    for calm in [idle, light] {
        let [expected, longest] = range(calm);
        assert!(longest < 0.02, "with or without one more round: {expected}, {longest}");
    }
}

#[test]
fn a_fast_link_moves_the_same_guest_without_help() {
    let estimate = by(measured(1e9, busy), OnStall::Throttle);
    assert!(estimate.converges && estimate.forecast.throttle_percent == 0, "{estimate:?}");
    assert_eq!(estimate.converging_share, None);
}

#[test]
fn a_limit_below_the_fixed_part_is_impossible() {
    let mut slow_pause = measured(400e6, idle);
    slow_pause.dry_run.pause_and_save_seconds = 0.4;
    slow_pause.dry_run.stood_seconds = 0.4;
    let estimate = by(slow_pause, OnStall::Throttle);
    assert!(!estimate.converges && !estimate.forecast.arrives, "{estimate:?}");
    let why_not = estimate.forecast.why_not.as_ref().unwrap();
    assert!(why_not.contains("even without dirty memory"), "{why_not}");
    let [forced, postcopy] = &estimate.alternatives[..] else { panic!("{estimate:?}") };
    assert!(!postcopy.arrives, "it pauses the guest, too: {postcopy:?}");
    assert!(forced.arrives && forced.downtime_seconds > Some(0.4), "{forced:?}");
}

#[test]
fn disks_are_sent_with_the_guest_but_not_their_holes() {
    let mut with_disk = measured(100e6, idle);
    with_disk.disk_pages = GIB_PAGES;
    with_disk.disk_content_pages = GIB_PAGES / 4;
    let forecast = by(with_disk, OnStall::Wait).forecast;
    let content = GIB_PAGES / 2 + GIB_PAGES / 4;
    let error = forecast.wire_bytes as f64 / (content * 4100) as f64 - 1.0;
    assert!((0.0..0.01).contains(&error), "{forecast:?}");
}

#[test]
fn a_paused_guest_arrives_paused() {
    let paused = Measured { is_running: false, ..measured(400e6, idle) };
    assert!(by(paused, OnStall::Cancel).forecast.arrives);
}
