//! Guests that report free pages, and use them afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::free_pages::FakeHints;
use super::memory::Content;
use super::world::{FakeSource, World, in_time, reach};
use crate::phase::Phase;
use crate::session::SourceSession;

/// Pages of the guest that are free and stay free: those of one chunk, and some of another.
const FREE: std::ops::Range<usize> = 64..200;

/// Returns whether the page holds zeros at the destination.
fn is_zero_there(world: &World, page: usize) -> bool {
    let at = page % 64 * 4096;
    world.target().memory.with(page / 64, |bytes| bytes[at..at + 4096].iter().all(|b| *b == 0))
}

/// Zeroes free pages at the source as well, so that both memories can be compared: their content is
/// irrelevant.
fn forget_free(guest: &Arc<FakeSource>, pages: impl Iterator<Item = usize>) {
    for page in pages {
        let at = page % 64 * 4096;
        guest.memory.with(page / 64, |bytes| bytes[at..at + 4096].fill(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn free_pages_are_not_sent_and_read_as_zeros() {
    let world = World::new();
    let hints = FakeHints { pages: FREE.collect(), ..FakeHints::default() };
    let guest = FakeSource::hinting(8, Content::Random, hints);
    let handle = world.start(world.session(), &guest);
    let report = in_time(handle.settled()).await.unwrap();
    assert!(FREE.into_iter().all(|page| is_zero_there(&world, page)));
    assert!(!guest.hints.is_holding.load(SeqCst));
    forget_free(&guest, FREE);
    world.assert_migrated(&guest, &handle).await;

    assert_eq!(report.transfer.hinted_pages, FREE.len() as u64);
    let first = report.rounds[0];
    assert_eq!((first.pages, first.zero_pages), (8 * 64 - FREE.len() as u64, 0), "{report:?}");
    assert!(report.transfer.wire_bytes < (8 * 64 - FREE.len() as u64 + 20) * 4096, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_taken_back_and_written_arrive_as_they_were_written() {
    // Before the host has read the hint, after the guest has its pages back, and during the round
    // that omits them.
    let (at_once, afterwards, later) = (70, 80, [100, 190]);
    let hints = FakeHints {
        pages: FREE.collect(),
        cleared: vec![64, at_once],
        taken_back: vec![at_once],
        used_afterwards: vec![afterwards],
        ..FakeHints::default()
    };
    let world = World::new();
    let guest = FakeSource::hinting(24, Content::Random, hints);
    let session = SourceSession { bandwidth: Some(8 << 20), ..world.session() };
    let handle = world.start(session, &guest);
    let mut progress = handle.progress();
    in_time(progress.wait_for(|progress| progress.transfer.frames > 4)).await.unwrap();
    assert!(later.iter().all(|page| guest.write(*page, Content::Random, 7_000)));
    let report = in_time(handle.settled()).await.unwrap();

    let used = [at_once, afterwards, later[0], later[1]];
    assert!(used.iter().all(|page| !is_zero_there(&world, *page)));
    forget_free(&guest, FREE.filter(|page| !used.contains(page)));
    world.assert_migrated(&guest, &handle).await;
    // Page 64, which the guest cleared after it was asked, and the two that it used were sent with
    // the rest.
    assert_eq!(report.transfer.hinted_pages, FREE.len() as u64 - 3, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_guest_gets_its_pages_back_and_keeps_running() {
    let world = World::new();
    let hints = FakeHints { pages: FREE.collect(), is_endless: true, ..FakeHints::default() };
    let guest = FakeSource::hinting(8, Content::Random, hints);
    let handle = world.start(world.session(), &guest);
    let report = in_time(handle.settled()).await.unwrap();
    assert!(!guest.hints.is_holding.load(SeqCst));
    forget_free(&guest, FREE);
    world.assert_migrated(&guest, &handle).await;
    assert_eq!(report.transfer.hinted_pages, FREE.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_gives_the_guest_its_pages_back() {
    let world = World::new();
    let hints = FakeHints { pages: FREE.collect(), is_endless: true, ..FakeHints::default() };
    let guest = FakeSource::hinting(8, Content::Random, hints);
    let handle = world.start(world.session(), &guest);
    reach(&handle, Phase::Precopy).await;
    handle.cancel("a test").await.unwrap();
    world.assert_stayed(&guest, &handle).await;
    assert!(!guest.hints.is_holding.load(SeqCst));
    assert_eq!(handle.progress().borrow().transfer.hinted_pages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_spent_waiting_for_hints_is_not_counted_in_a_round() {
    let world = World::new();
    let hints = FakeHints { pages: vec![64], is_endless: true, ..FakeHints::default() };
    let guest = FakeSource::hinting(2, Content::Random, hints);
    let handle = world.start(world.session(), &guest);
    let report = in_time(handle.settled()).await.unwrap();
    assert!(report.total_seconds > 1.0, "it was waited for: {report:?}");
    let rounds = report.rounds.iter().map(|round| Duration::from_secs_f64(round.seconds));
    assert!(rounds.sum::<Duration>() < Duration::from_secs_f64(report.total_seconds - 1.0));
}
