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

#[test]
fn a_demo_that_cannot_run_its_guest_says_so_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    for (memory, words) in [
        ("0", ["demo", "memory"]),
        ("1M", ["demo", "memory"]),
        ("100T", ["cannot run demo", "not possible"]),
        ("-5", ["--memory", "`-5`"]),
        ("512MB", ["is decimal", "write 512M"]),
    ] {
        let begun = std::time::Instant::now();
        let done = run(lighter(folder.path(), &["demo", "--memory", memory]));
        assert_ne!(done.exit, Exit::Done, "{memory}: {done:#?}");
        assert!(words.iter().all(|word| done.stderr.contains(word)), "{memory}: {done:#?}");
        assert!(begun.elapsed().as_secs() < 30, "{memory}: it was waited for: {done:#?}");
    }
}
