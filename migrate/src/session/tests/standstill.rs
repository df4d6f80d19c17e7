//! Hand-overs that take longer than expected: the guest resumes at the source in time.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::memory::Content;
use super::world::{FakeSource, World, in_time};
use crate::Reason;
use crate::guest::SourceGuest;
use crate::limits::Limits;
use crate::report::{Outcome, Report};
use crate::session::{Handle, SourceSession};

/// A guest may be paused for twice this and a second.
const DOWNTIME: Duration = Duration::from_millis(500);
/// Delay that a busy test machine may add.
const BUSY: Duration = Duration::from_secs(6);

fn session(world: &World) -> SourceSession {
    let limits = Limits { downtime: DOWNTIME, ..Limits::default() };
    SourceSession { limits, ..world.session() }
}

/// Waits until the guest, which is paused for a disk that hangs, resumes and the first report is
/// published.
async fn goes_on(guest: &FakeSource, handle: &Handle) -> (Duration, Report) {
    let mut progress = handle.progress();
    let began = loop {
        in_time(progress.changed()).await.unwrap();
        if !guest.is_running() && guest.is_hanging() {
            break Instant::now();
        }
    };
    let report = in_time(handle.reported()).await.unwrap();
    assert!(guest.is_running() && guest.is_hanging(), "it waits for its disk: {report:?}");
    (began.elapsed(), report)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_flush_does_not_keep_a_guest_paused() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Mixed);
    guest.set_stuck(true);

    let handle = world.start(session(&world), &guest);
    let (stood, report) = goes_on(&guest, &handle).await;

    let allowed = Limits { downtime: DOWNTIME, ..Limits::default() }.standstill();
    assert!(stood < allowed + BUSY, "{stood:?}");
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Downtime, "{report:?}");
    let (downtime, standstill) = (report.downtime_seconds.unwrap(), report.standstill.unwrap());
    assert!(downtime >= allowed.as_secs_f64(), "{report:?}");
    assert!(standstill.flush_seconds > downtime / 2.0, "{report:?}");

    guest.set_stuck(false);
    world.assert_stayed(&guest, &handle).await;
    let again = world.start(session(&world), &guest);
    world.assert_migrated(&guest, &again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_that_hung_leaves_the_guest_of_a_cancelled_migration_alone() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Mixed);
    guest.is_stuck_running.store(true, SeqCst);
    guest.set_stuck(true);
    let handle = world.start(session(&world), &guest);
    in_time(async {
        while !guest.is_hanging() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    handle.cancel("a test").await.unwrap();
    let report = in_time(handle.reported()).await.unwrap();
    assert_eq!(report.outcome, Outcome::StayedAtSource, "{report:?}");
    guest.pause().unwrap();
    guest.set_stuck(false);
    in_time(handle.settled()).await.unwrap();

    assert!(!guest.is_running(), "its user has paused it");
    assert!(!guest.steps.lock().unwrap().contains(&"save"), "no dry run has gone on");
}
