//! Migrations that succeed.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::memory::Content;
use super::relay::Relay;
use super::world::{FakeSource, World, decision, in_time};
use crate::guest::SourceGuest;
use crate::limits::Limits;
use crate::pages::Compression;
use crate::progress::Role;
use crate::record::Side;
use crate::report::Outcome;
use crate::session::SourceSession;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_guest_arrives_with_its_memory() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Mixed);
    let handle = world.start(world.session(), &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_eq!(report.error, None);
    assert!(report.transfer.zero_pages >= 64 * 64 / 3);
    assert_eq!(decision(&world, &handle), None, "the record is not closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_records_where_the_node_of_the_source_listens() {
    for node_port in [NonZeroU16::new(4950), None] {
        let world = World::new();
        let guest = FakeSource::new(1, Content::Mixed);
        let handle = world.start(SourceSession { node_port, ..world.session() }, &guest);
        world.assert_migrated(&guest, &handle).await;
        let record =
            world.node.records.read(handle.migration(), Role::Destination, |_| true).unwrap();
        let Side::Destination { source_node_port, .. } = record.unwrap().side else {
            panic!("the source's record")
        };
        assert_eq!(source_node_port, node_port);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_flushed_while_the_guest_runs_and_once_more_with_its_last_state() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Mixed);
    let handle = world.start(world.session(), &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    assert!(report.dry_runs == 1 && report.dry_run_seconds > 0.0, "{report:?}");
    let steps = guest.steps.lock().unwrap();
    assert_eq!(steps[..4], ["flush", "flush", "pause", "save"], "{steps:?}");
    // Flushes happen during each round, whatever else the guest does.
    assert!(steps[4..].contains(&"flush"), "{steps:?}");
    let others: Vec<_> = steps[4..].iter().filter(|step| **step != "flush").collect();
    assert_eq!(others, [&"pause", &"save"], "{steps:?}");
    let paused = steps.iter().rposition(|step| *step == "pause").unwrap();
    assert!(steps[paused..].contains(&"flush"), "{steps:?}");
    let standstill = report.standstill.unwrap();
    assert!(standstill.flush_seconds > 0.0 && standstill.send_seconds > 0.0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_stays_paused() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Random);
    guest.pause().unwrap();
    let handle = world.start(world.session(), &guest);
    let report = in_time(handle.settled()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert_eq!(report.dry_run_seconds, 0.0, "{report:?}");
    in_time(world.arrival().await.settled()).await.unwrap();
    assert!(!world.target().runs.load(SeqCst) && world.target().adopted.load(SeqCst));
    assert_eq!(guest.memory.first_difference(&world.target().memory), None);
}

/// Writes pages all over a guest until told to stop.
fn dirty(guest: &Arc<FakeSource>, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (guest, stop) = (guest.clone(), stop.clone());
    std::thread::spawn(move || {
        let kinds = [Content::Random, Content::Zero, Content::Text];
        let (pages, mut seed) = (guest.memory.chunks() * 64, 0);
        while !stop.load(SeqCst) {
            seed += 1;
            let page = (seed as usize).wrapping_mul(7919) % pages;
            if !guest.write(page, kinds[seed as usize % 3], seed) {
                std::thread::yield_now();
            }
            if seed % 64 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        seed
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_arrives_as_it_was_when_paused() {
    for connections in [1, 3] {
        let world = World::new();
        let guest = FakeSource::new(64, Content::Mixed);
        let stop = Arc::new(AtomicBool::new(false));
        let writer = dirty(&guest, &stop);
        let session = SourceSession {
            connections: Some(connections),
            bandwidth: Some(64 << 20),
            ..world.session()
        };
        let handle = world.start(session, &guest);
        let report = world.assert_migrated(&guest, &handle).await;
        stop.store(true, SeqCst);
        assert!(writer.join().unwrap() > 0);
        assert!(report.rounds_total > 1, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_turned_zero_after_it_was_sent_arrives_as_zero() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Random);
    let session = SourceSession { bandwidth: Some(8 << 20), ..world.session() };
    let handle = world.start(session, &guest);
    let mut progress = handle.progress();
    in_time(progress.wait_for(|progress| progress.transfer.frames > 1)).await.unwrap();
    assert!(guest.write(0, Content::Zero, 0) && guest.write(5, Content::Zero, 0));
    world.assert_migrated(&guest, &handle).await;
    world
        .target()
        .memory
        .with(0, |bytes| assert!(bytes[5 * 4096..][..4096].iter().all(|b| *b == 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_content_arrives_in_every_mode() {
    for compression in [Compression::Auto, Compression::Off, Compression::Lz4] {
        for content in [Content::Zero, Content::Text, Content::Random, Content::Mixed] {
            let world = World::new();
            let guest = FakeSource::new(32, content);
            let session = SourceSession { compression, ..world.session() };
            let handle = world.start(session, &guest);
            let report = world.assert_migrated(&guest, &handle).await;
            let memory = report.memory_bytes;
            let sent = report.transfer.wire_bytes;
            match (content, compression) {
                (Content::Zero, _) => assert!(sent < memory / 500, "{sent}"),
                (Content::Text, Compression::Lz4) => assert!(sent < memory / 3, "{sent}"),
                _ => assert!(sent < memory * 11 / 10, "{content:?} {compression:?} {sent}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bandwidth_limit_holds() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Random);
    let session = SourceSession {
        bandwidth: Some(10_000_000),
        compression: Compression::Off,
        ..world.session()
    };
    let began = Instant::now();
    let handle = world.start(session, &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    let rounds = &report.rounds[..1];
    let rate = rounds[0].wire_bytes as f64 / rounds[0].seconds;
    // How close a busy machine comes to the limit is not tested here; the limiter's own tests use
    // their own clock.
    assert!(rate < 11e6, "{rate} {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bandwidth_limit_holds_while_the_guest_is_paused() {
    let world = World::new();
    let guest = FakeSource::new(8, Content::Random);
    let stop = Arc::default();
    let writer = dirty(&guest, &stop);
    let session = SourceSession {
        bandwidth: Some(2_000_000),
        compression: Compression::Off,
        limits: Limits { downtime: Duration::from_secs(10), ..Limits::default() },
        ..world.session()
    };
    let handle = world.start(session, &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    stop.store(true, SeqCst);
    writer.join().unwrap();
    // All pages are written during each round, and two thirds of them take 0.7 s.
    assert!(report.downtime_seconds.unwrap() > 0.4, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_slow_link_little_waits_ahead_of_the_last_pages() {
    let mut seen = Vec::new();
    // With the first send window still full, the guest would be paused for a second each time; a
    // busy machine may delay one of the attempts.
    for _ in 0..3 {
        let relay = Relay { bytes_per_second: 4 << 20, ..Relay::default() };
        let world = World::with(|node| node.relay = Some(relay));
        let guest = FakeSource::new(48, Content::Random);
        let handle = world.start(world.session(), &guest);
        let report = world.assert_migrated(&guest, &handle).await;
        let downtime = report.downtime_seconds.unwrap();
        seen.push(downtime);
        if downtime < 0.7 {
            return;
        }
    }
    panic!("it stood still for {seen:?} seconds");
}
