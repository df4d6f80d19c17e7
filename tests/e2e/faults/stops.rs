//! A process that the host does not let run for a while: SIGSTOP, as a frozen cgroup or a host out
//! of memory does it.

use std::time::{Duration, Instant};

use super::scene::{GUEST, Scene};
use crate::network::NOTICED_WITHIN;
use support::{CRAWL, wait};

/// Longer than either side waits for a sign of life.
const STANDSTILL: Duration = Duration::from_secs(12);

/// The destination has given up meanwhile, and said so to a process that did not hear: it finds out
/// as soon as after any loss.
#[test]
fn a_source_that_stood_still_in_precopy_notices_soon_that_the_destination_is_gone() {
    let mut scene = Scene::without_failpoint();
    scene.migrate_with(&CRAWL);
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    let (source, arriving) = (scene.source(), scene.destination());

    source.freeze();
    let began = Instant::now();
    wait::until("the source has stood for long", || wait::holds(began.elapsed() > STANDSTILL, ()));
    wait::until("the destination waits no more for a source that gives no sign of life", || {
        wait::holds(!arriving.is_alive(), arriving)
    });
    source.thaw();
    let again = Instant::now();
    migration.finish().stayed(&["connection"]);
    let noticed = again.elapsed();
    assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");

    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// Its node lives and answers nothing for it; the source does not wait for longer than for a host
/// that is gone.
#[test]
fn a_destination_that_stands_still_in_precopy_is_given_up_and_ends_when_it_goes_on() {
    let mut scene = Scene::without_failpoint();
    scene.migrate_with(&CRAWL);
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    let arriving = scene.destination();

    arriving.freeze();
    let began = Instant::now();
    migration.finish().stayed(&["connection"]);
    let noticed = began.elapsed();
    assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");

    arriving.thaw();
    // What has come for it meanwhile is still written into its memory, the counter included.
    wait::until("the copy ends", || {
        let state = scene.pair.b.guest(GUEST).state();
        assert_ne!(state.as_deref(), Some("running"), "a second copy runs");
        wait::holds(!arriving.is_alive(), state)
    });
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}
