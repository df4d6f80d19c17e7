//! A flipped byte in each kind of frame, as from faulty memory at either end: it is detected and
//! named, and does no harm.

use super::phase::Side;
use super::scene::Scene;
use support::Exit;

/// Defines a test per kind of frame: its name, the side that sends the frame, the failpoint.
macro_rules! flipped {
    ($check:ident: $($name:ident $side:ident $point:literal)*) => {
        mod $check {
            use crate::faults::phase::Side;
            $(
                #[test]
                fn $name() {
                    super::$check(Side::$side, $point);
                }
            )*
        }
    };
}

flipped!(before_the_decision:
    hello Source "source.send.hello"
    welcome Destination "destination.send.welcome"
    description Source "source.send.prepare"
    prepared Destination "destination.send.prepared"
    pages Source "source.data.pages"
    end_of_pages Source "source.data.end"
    switchover Source "source.send.switchover"
    state Source "source.send.state"
    ready_of_an_older_release Destination "destination.send.ready"
);

flipped!(after_the_decision:
    running Destination "destination.send.running"
    finish Source "source.send.finish"
);

#[test]
fn raw_pages() {
    damaged_pages(&["--compress", "off"]);
}

#[test]
fn compressed_pages() {
    damaged_pages(&["--compress", "lz4"]);
}

fn damaged_pages(compression: &[&str]) {
    let mut scene = Scene::with_failpoint(Side::Source, "source.data.pages:flip");
    scene.migrate_with(compression);
    scene.take_migration().finish().stayed(&["damaged or unusable data", "checksum"]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The guest continues at the source, the message says that the frame was damaged, and the next
/// migration succeeds.
fn before_the_decision(side: Side, point: &str) {
    let mut scene = Scene::with_failpoint(side, &format!("{point}:flip"));
    scene.migrate();
    scene.take_migration().finish().stayed(&["damaged"]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The decision stands: it is sent again on a new connection.
fn after_the_decision(side: Side, point: &str) {
    let mut scene = Scene::with_failpoint(side, &format!("{point}:flip"));
    scene.migrate();
    scene.take_migration().finish().ok();
    scene.runs_only_on(&scene.pair.b);
}

/// A destination that has everything keeps it, and hears the decision again; one that still lacks
/// something gives the guest back.
#[test]
fn the_commit() {
    let mut scene = Scene::with_failpoint(Side::Source, "source.send.commit:flip");
    scene.migrate();
    let done = scene.take_migration().finish().done;
    match done.exit {
        Exit::Done => scene.runs_only_on(&scene.pair.b),
        _ => {
            done.complains(Exit::Failed, &["damaged"]);
            scene.runs_only_on(&scene.pair.a);
        }
    }
}
