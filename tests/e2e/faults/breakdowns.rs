//! A bug in lighter itself: the session of a migration panics, and its process survives.

use super::phase::Side;
use super::scene::{GUEST, Scene};
use support::Exit;

/// Defines a test per point before the decision: its name, the side that panics, the failpoint.
macro_rules! panics {
    ($($name:ident $side:ident $point:literal)*) => {
        $(
            #[test]
            fn $name() {
                stays(Side::$side, $point);
            }
        )*
    };
}

panics!(
    source_at_hello Source "source.send.hello"
    source_in_precopy Source "source.act.sendround"
    source_while_the_guest_stands Source "source.act.savestate"
    source_while_the_destination_waits Source "source.recv.ready"
    destination_in_prepare Destination "destination.send.prepared"
    destination_when_all_is_there Destination "destination.send.ready"
    source_before_an_early_commit Source "source.act.sendremainder"
    destination_after_an_early_commit Destination "destination.act.loadstate"
);

/// Asserts that the guest continues at the source, and that the destination discards its copy.
fn stays(side: Side, point: &str) {
    let mut scene = Scene::with_failpoint(side, &format!("{point}:panic"));
    scene.migrate();
    scene.await_failpoint(side, point);
    scene.take_migration().finish().stayed(&["keeps running here"]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The guest then runs at the destination, as the records say.
#[test]
fn source_after_its_decision() {
    let mut scene = Scene::with_failpoint(Side::Source, "source.recv.running:panic");
    scene.migrate();
    let words = [GUEST, "died during the migration"];
    scene.take_migration().finish().done.complains(Exit::Failed, &words);
    scene.runs_only_on(&scene.pair.b);
}

/// The source learns from the destination's node that the guest runs.
#[test]
fn destination_when_the_guest_runs() {
    let point = "destination.send.running";
    let mut scene = Scene::with_failpoint(Side::Destination, &format!("{point}:panic"));
    scene.migrate();
    scene.await_failpoint(Side::Destination, point);
    scene.take_migration().finish().ok();
    scene.runs_only_on(&scene.pair.b);
}
