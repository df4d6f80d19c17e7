//! `lighter demo`, the first command that a new user runs.

use support::{Exit, lighter, run};

#[test]
fn the_demo_ends_with_the_verdict_and_both_downtimes() {
    let folder = tempfile::tempdir().expect("a folder");
    let done = run(lighter(folder.path(), &["demo", "--memory", "64M", "--dirty-rate", "1000"]));
    assert_eq!(done.exit, Exit::Done, "{done:#?}");
    let said = done.stdout.to_lowercase();
    for word in ["intact", "downtime", "rounds"] {
        assert!(said.contains(word), "no `{word}` in {done:#?}");
    }
    assert!(!said.contains("corrupt"), "{done:#?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").flatten().collect();
    assert!(left.is_empty(), "the demo uses folders of its own: {left:?}");
}
