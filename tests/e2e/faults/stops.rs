//! A process that the host stops for a while: by SIGSTOP, which has the effect of a frozen cgroup
//! or a host that is out of memory.

use std::time::{Duration, Instant};

use super::postcopy::fetching;
use super::scene::{GUEST, Scene};
use crate::network::{NOTICED_WITHIN, await_reach, hurry};
use support::{CRAWL, Migration, Pid, wait};

/// Longer than either side waits for a sign of life.
const STANDSTILL: Duration = Duration::from_secs(12);

/// Stops the process, which then has lost its connection.
fn stop_for_long(process: Pid) {
    process.freeze();
    let began = Instant::now();
    wait::until("it has stood for long", || wait::holds(began.elapsed() > STANDSTILL, ()));
}

/// A migration that sends memory slowly.
fn crawling() -> (Scene, Migration) {
    let mut scene = Scene::without_failpoint();
    scene.migrate_with(&CRAWL);
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    (scene, migration)
}

#[test]
fn a_source_stopped_in_precopy_goes_on_when_continued() {
    let (scene, migration) = crawling();
    let (source, arriving) = (scene.source(), scene.destination());

    stop_for_long(source);
    source.thaw();
    let again = Instant::now();
    let guest = scene.pair.a.guest(GUEST);
    wait::until("the destination is reached again", || {
        let status = guest.get("/v1/guest/migration")?;
        let counts = status["progress"]["decision_counts"].clone();
        wait::holds(counts["reconnected"] == 1, counts)
    });
    let noticed = again.elapsed();
    assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");
    hurry(&scene.pair, &guest);

    migration.finish().ok();
    scene.runs_only_on(&scene.pair.b);
    assert_eq!(scene.pair.b.guest(GUEST).pid(), arriving, "it was kept");
}

/// The destination's node is alive but does not answer for it.
#[test]
fn a_destination_stopped_in_precopy_goes_on_when_continued() {
    let (scene, migration) = crawling();
    let arriving = scene.destination();

    arriving.freeze();
    let began = Instant::now();
    let guest = scene.pair.a.guest(GUEST);
    await_reach(&guest, false);
    let noticed = began.elapsed();
    assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");
    arriving.thaw();
    await_reach(&guest, true);
    hurry(&scene.pair, &guest);

    migration.finish().ok();
    scene.runs_only_on(&scene.pair.b);
}

#[test]
fn a_destination_stopped_in_precopy_ends_when_continued_after_a_cancel() {
    let (scene, migration) = crawling();
    let arriving = scene.destination();

    arriving.freeze();
    await_reach(&scene.pair.a.guest(GUEST), false);
    scene.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();

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
