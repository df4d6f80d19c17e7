//! A switchover that takes longer than expected: the guest continues instead of waiting for it.

use super::phase;
use super::scene::Scene;

#[test]
fn a_guest_whose_disk_hangs_at_the_hand_over_keeps_running() {
    let mut scene = Scene::stalling_in(&phase::flush());
    scene.migrate_with(&["--downtime", "1s"]);
    scene.await_stalled();

    let words = ["its disks were still being flushed", "--downtime", "after a pause of"];
    scene.take_migration().finish().stayed(&words);
    scene.runs_only_on(&scene.pair.a);

    scene.release();
    scene.another_migration_succeeds();
}
