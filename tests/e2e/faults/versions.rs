//! Two releases that have no version of the protocol in common.

use super::phase::Side;
use super::scene::Scene;

#[test]
fn a_source_from_another_age_is_refused_and_both_sides_are_named() {
    let mut scene = Scene::with_failpoint(Side::Source, "source.offer:versions=7");
    scene.migrate();
    let words = ["no protocol version in common", "protocol 7", "protocol 1", "upgrade"];
    scene.take_migration().finish().stayed(&words);
    scene.runs_only_on(&scene.pair.a);
}
