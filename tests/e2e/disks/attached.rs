//! Devices that come while the guest runs: `lighter attach-disk`, `attach-device`. The guest never
//! notices one, as it sleeps; for guests that do, and for detachments, see the lab's `hot_plug` and
//! `vfio`.

use std::fs;

use super::place::{GUEST, Place, make_disk};

use support::Exit;
use support::checks::nothing_left_behind;
use support::kernel::sleeper;

#[test]
fn an_attached_disk_is_locked_moves_and_is_saved_with_its_guest() {
    let place = Place::new();
    let [first, second] = ["a", "b"].map(|host| place.folder(host).join("second.raw"));
    make_disk(&first);
    let [path, there] = [&first, &second].map(|path| path.display().to_string());
    let uncached = format!("{path},cache=none");
    let attach =
        |more: &[&str]| place.pair.a.run(&[&["attach-disk", GUEST, &uncached], more].concat());
    let attached = attach(&["--json"]);
    let words = ["has not noticed it yet", "finds the device when it boots"];
    assert!(words.iter().all(|word| attached.stderr.contains(word)), "{attached:#?}");
    let attached = attached.json();
    assert_eq!(attached["disk"], *path);
    assert_eq!(
        (&attached["address"], &attached["noticed"]),
        (&"0000:00:03.0".into(), &false.into())
    );
    attach(&[]).complains(Exit::Failed, &["second.raw", "already"]);
    place.run_on("other", &first).complains(Exit::Failed, &["second.raw", "in use by another"]);
    let detach = place.pair.a.run(&["detach-disk", GUEST, &path, "--timeout", "1s"]);
    detach.complains(Exit::Failed, &["still has", "within 1 s", "request is taken back"]);

    let migration =
        place.start(&["--disk-path", &format!("{path}={there}"), "--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    let third = place.folder("a").join("third.raw");
    make_disk(&third);
    let third = third.display().to_string();
    for refused in [&["attach-disk", GUEST, &third], &["detach-disk", GUEST, &path]] {
        place.pair.a.run(refused).complains(Exit::Failed, &["is being migrated"]);
    }
    place.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();
    place.migrate(&["--disk-path", &format!("{path}={there}")]).ok();
    assert_eq!(fs::read(&second).expect("the copy"), fs::read(&first).expect("the disk"));

    let file = place.pair.folder().join("db.lighter").display().to_string();
    place.pair.b.run(&["save", GUEST, &file]).ok();
    place.pair.b.run(&["restore", &file, "--detach"]).ok();
    let disks = place.pair.b.list()[0]["disks"].clone();
    assert_eq!((&disks[1]["path"], disks.as_array().map(Vec::len)), (&there.into(), Some(2)));
    let caches = [0, 1].map(|disk| disks[disk]["cache"].clone());
    assert_eq!(caches, ["writeback", "none"]);
    place.runs_only_on(&place.pair.b);
    nothing_left_behind(&place.pair.hosts());
}

#[test]
fn an_installation_image_is_only_read_typed_attached_and_defined() {
    let place = Place::new();
    let run = |arguments: &[&str]| place.pair.a.run(arguments);
    let medium = place.folder("a").join("debian.iso");
    make_disk(&medium);
    let path = medium.display().to_string();
    place.run_on("typed", &medium).ok();
    run(&["attach-disk", GUEST, &path]).ok();
    let (kernel, file) = (sleeper(place.pair.folder()), place.pair.folder().join("defined.toml"));
    let disk = format!("[[disk]]\npath = {path:?}\n");
    let defined = format!("name = \"defined\"\nmemory = \"64M\"\nkernel = {kernel:?}\n{disk}");
    fs::write(&file, defined).expect("a file");
    run(&["define", &file.display().to_string()]).ok();
    run(&["start", "defined"]).ok();
    for name in ["typed", GUEST, "defined"] {
        let shown = run(&["show", name, "--json"]).json();
        let disk = shown["disks"].as_array().and_then(|disks| disks.last());
        let found = disk.map(|disk| (&disk["path"], &disk["read_only"]));
        assert_eq!(found, Some((&path.as_str().into(), &true.into())), "{shown:#}");
        run(&["destroy", name]).ok();
    }
}

#[test]
fn devices_of_the_host_that_are_not_there_change_nothing() {
    let place = Place::new();
    let run = |arguments: &[&str]| place.pair.a.run(arguments);
    let nowhere = "vfio=ffff:ff:1f.7";
    let words = ["ffff:ff:1f.7", "no such device"];
    run(&["attach-device", GUEST, nowhere]).complains(Exit::Failed, &words);
    run(&["detach-device", GUEST, nowhere]).complains(Exit::Failed, &["has no host device"]);
    run(&["attach-device", GUEST, "eth0"]).complains(Exit::Usage, &["vfio=0000:03:00.0"]);
    place.migrate(&["--detach-on-migrate"]).ok();
    place.runs_only_on(&place.pair.b);
}
