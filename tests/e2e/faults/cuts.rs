//! The connection breaks in each phase, between two processes that survive.

use super::phase::{Owner, Phase, Side};
use super::scene::Scene;

in_each_phase!(connection_cut: connect prepare precopy switchover remainder ready commit resume);

/// Before the commit, the guest continues at the source; while rounds are sent, before the last
/// pages are on their way, and after the commit, the source reconnects and the migration completes.
fn connection_cut(phase: &Phase) {
    let mut scene = Scene::with_failpoint(Side::of(phase.cut), &format!("{}:cut", phase.cut));
    scene.migrate();
    let outcome = scene.take_migration().finish();
    match phase.owner {
        Owner::Source if !phase.is_repaired() => {
            outcome.stayed(&["connection", phase.name]);
            scene.runs_only_on(&scene.pair.a);
            scene.another_migration_succeeds();
        }
        Owner::Source | Owner::Destination => {
            outcome.ok();
            scene.runs_only_on(&scene.pair.b);
        }
    }
}
