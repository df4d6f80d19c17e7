//! A guest that has arrived, before its source has said the last word.

use super::phase::Side;
use super::scene::{GUEST, Scene};
use support::{Running, lighter, wait};

/// The destination waits for that word for 30 s.
#[test]
fn an_arrival_is_still_shown_while_its_guest_is_estimated_and_saved() {
    let mut scene = Scene::with_failpoint(Side::Source, "source.send.finish:hold");
    scene.migrate();
    scene.take_migration().finish().ok();
    let (here, back) = (&scene.pair.b, scene.pair.a.node().address());
    let guest = here.guest(GUEST);
    let is_shown = || {
        let status = guest.get("/v1/guest/migration")?;
        let report = &status["report"];
        let is_arrival = report["role"] == "destination" && report["outcome"] == "migrated";
        wait::holds(is_arrival, status.to_string())
    };
    wait::until("it has arrived", is_shown);

    let estimate = lighter(here.state_dir(), &["migrate", GUEST, back, "--estimate"]);
    let watch = || is_shown().expect("while it is estimated");
    Running::start(estimate).finish_watched(watch).ok();
    is_shown().expect("after an estimate");
    let file = scene.pair.folder().join("web-1.lighter").display().to_string();
    here.run(&["save", GUEST, &file, "--keep-running"]).ok();
    is_shown().expect("after a save");
    scene.runs_only_on(here);
}
