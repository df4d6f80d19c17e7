//! `lighter cancel` in each phase, and then a migration that succeeds.

use super::phase::{Owner, Phase};
use super::scene::{GUEST, Scene};
use support::Exit;

in_each_phase!(cancelled: connect prepare precopy switchover remainder ready commit resume);

/// Before the commit, the migration is cancelled and the guest continues on the source; afterwards
/// the cancellation is refused, and the migration completes.
fn cancelled(phase: &Phase) {
    let mut scene = Scene::held_in(phase);
    let cancel = scene.pair.a.run(&["cancel", GUEST]);
    let outcome = scene.take_migration().finish();
    match phase.owner {
        Owner::Source => {
            cancel.ok();
            outcome.cancelled();
            scene.runs_only_on(&scene.pair.a);
            scene.another_migration_succeeds();
        }
        Owner::Destination => {
            cancel.complains(Exit::Failed, &["cannot cancel", GUEST, "too late"]);
            outcome.ok();
            scene.runs_only_on(&scene.pair.b);
        }
    }
}
