//! Guests of which one disk is copied, and another is shared by both hosts: `--copy-disk`.

use std::fs;
use std::path::Path;

use support::kernel::sleeper;
use support::{Done, Exit, Host, Migration, NodePlan, Pair};

const GUEST: &str = "db";

fn start(pair: &Pair, name: &str, disks: &[&Path]) -> Done {
    start_on(&pair.a, pair, name, disks)
}

fn start_on(host: &Host, pair: &Pair, name: &str, disks: &[&Path]) -> Done {
    let kernel = sleeper(pair.folder()).display().to_string();
    let start = ["run", "--detach", "--name", name, "--memory", "64M", "--kernel", &kernel];
    let paths: Vec<_> = disks.iter().map(|disk| disk.display().to_string()).collect();
    let disks = paths.iter().flat_map(|path| ["--disk", path.as_str()]);
    host.run(&start.into_iter().chain(disks).collect::<Vec<_>>())
}

#[test]
fn one_disk_is_copied_and_the_other_is_shared() {
    let mut pair = Pair::without_nodes();
    let [here, there, both] = ["here", "there", "both"].map(|name| pair.folder().join(name));
    for folder in [&here, &there, &both] {
        fs::create_dir(folder).expect("a folder");
    }
    let (own, copy, shared) = (here.join("own.raw"), there.join("own.raw"), both.join("common"));
    fs::write(&own, [7; 8192]).expect("a disk");
    fs::write(&shared, [8; 8192]).expect("a disk");
    let folders =
        [&there, &both].map(|folder| ["--disk-dir".to_owned(), folder.display().to_string()]);
    let shares = vec!["--disk-dir".to_owned(), both.display().to_string()];
    pair.a.start_node(&NodePlan { arguments: shares, ..NodePlan::default() });
    pair.b.start_node(&NodePlan { arguments: folders.concat(), ..NodePlan::default() });
    start(&pair, GUEST, &[&own, &shared]).ok();

    let (own_path, shared_path) = (own.display().to_string(), shared.display().to_string());
    let path = format!("{own_path}={}", copy.display());
    let go = |more: &[&str]| Migration::start(&pair.a, GUEST, &pair.b, more).finish();
    go(&["--copy-disk", "/no/disk"]).done.complains(Exit::Failed, &["has no disk /no/disk"]);
    go(&["--copy-disk", "vdc"]).done.complains(Exit::Failed, &["db has no disk vdc"]);
    go(&["--copy-disk", &shared_path, "--disk-path", &path])
        .done
        .complains(Exit::Failed, &["own.raw is not copied"]);
    let by_name = format!("vda={}", copy.display());
    go(&["--copy-disks", "--disk-path", &path, "--disk-path", &by_name])
        .done
        .complains(Exit::Failed, &["two places for", "own.raw"]);
    let report = go(&["--copy-disk", "vda", "--disk-path", &by_name]).ok();
    assert_eq!(report["disk_bytes"], 8192, "only one of them: {report:#}");
    pair.b.guest(GUEST).await_state("running");
    assert_eq!(fs::read(&copy).expect("the copy"), [7; 8192]);
    assert_eq!(fs::read_dir(&both).expect("a folder").count(), 1);

    let moved = [&*own_path, "has moved to"];
    start(&pair, "other", &[&own]).complains(Exit::Failed, &moved);
    let elsewhere = [&*shared_path, "belongs to the guest db", "has it as db (running)"];
    start(&pair, "other", &[&shared]).complains(Exit::Failed, &elsewhere);

    // Another guest of its name comes with the shared disk.
    let has_left_with_it = || {
        let left = pair.a.run(&["show", GUEST, "--json"]).json()["left_disks"].clone();
        let left = left.as_array().expect("disks").clone();
        left.iter().any(|disk| disk["path"] == shared_path)
    };
    assert!(has_left_with_it());
    pair.b.run(&["destroy", GUEST]).ok();
    start_on(&pair.b, &pair, GUEST, &[&shared]).ok();
    Migration::start(&pair.b, GUEST, &pair.a, &[]).finish().ok();
    assert!(!has_left_with_it());
}
