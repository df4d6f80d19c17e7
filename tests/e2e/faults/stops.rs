//! A process that the host stops for a while: by SIGSTOP, which has the effect of a frozen cgroup
//! or a host that is out of memory.

use std::time::{Duration, Instant};

use super::postcopy::fetching;
use super::scene::{GUEST, Scene};
use crate::network::NOTICED_WITHIN;
use support::{CRAWL, Pid, wait};

/// Longer than either side waits for a sign of life.
const STANDSTILL: Duration = Duration::from_secs(12);

/// Stops the process, which then has lost its connection.
fn stop_for_long(process: Pid) {
    process.freeze();
    let began = Instant::now();
    wait::until("it has stood for long", || wait::holds(began.elapsed() > STANDSTILL, ()));
}

/// The destination has given up in the meantime, and its message did not reach the stopped source:
/// the source notices as quickly as after any other loss.
#[test]
fn a_source_stopped_in_precopy_soon_notices_a_lost_destination() {
    let mut scene = Scene::without_failpoint();
    scene.migrate_with(&CRAWL);
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    let (source, arriving) = (scene.source(), scene.destination());

    stop_for_long(source);
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

/// The destination's node is alive but does not answer for it; the source gives up as soon as for a
/// host that is gone.
#[test]
fn a_destination_stopped_in_precopy_is_given_up_and_ends_when_continued() {
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
    // The copy still writes what has arrived in the meantime into its memory, including the loop
    // counter.
    wait::until("the copy ends", || {
        let state = scene.pair.b.guest(GUEST).state();
        assert_ne!(state.as_deref(), Some("running"), "a second copy runs");
        wait::holds(!arriving.is_alive(), state)
    });
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The guest waits meanwhile for the pages that it lacks.
#[test]
fn a_source_stopped_while_it_serves_a_guest_goes_on_when_continued() {
    let (scene, migration) = fetching();
    let source = scene.source();
    stop_for_long(source);
    scene.pair.b.guest(GUEST).await_state("running");
    source.thaw();
    migration.finish().ok();
    scene.runs_only_on(&scene.pair.b);
}
