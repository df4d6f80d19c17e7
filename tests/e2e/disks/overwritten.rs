//! Disks that are copied onto block devices: `--copy-disks --replace-disks` to a loop device.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::devices::{BYTES, GUEST, Loop, runs, start};
use support::{Exit, Host, Migration, NodePlan, Outcome, Pair, wait};

/// Size of the guest's disk: the device is larger, and the last page is not whole.
const DISK_BYTES: u64 = (8 << 20) + 512;
/// What is on the device before.
const OLD: u8 = 0xaa;

/// A guest on the first host with a file as its disk, and a device that it may have on the second.
struct Scene {
    pair: Pair,
    disk: PathBuf,
    device: Loop,
}

impl Scene {
    fn new(disk_bytes: u64) -> Self {
        let mut pair = Pair::without_nodes();
        let here = pair.folder().canonicalize().expect("a folder").join("here");
        fs::create_dir(&here).expect("a folder");
        let (disk, device) = (here.join("db.raw"), Loop::on(&pair.folder().join("lv")));
        device.behind.write_all_at(&vec![OLD; BYTES as usize], 0).expect("old content");
        let file = fs::File::create(&disk).expect("a disk");
        file.set_len(disk_bytes).expect("its size");
        for (at, content) in [(3 << 20, &vec![7; 2 << 20][..]), (disk_bytes - 512, &[8; 512])] {
            file.write_all_at(content, at).expect("its content");
        }
        let plan = |option: &str, place: String| {
            let arguments = vec![option.to_owned(), place];
            NodePlan { arguments, ..NodePlan::default() }
        };
        pair.a.start_node(&plan("--disk-dir", here.display().to_string()));
        pair.b.start_node(&plan("--disk-device", device.path()));
        start(&pair, GUEST, &disk.display().to_string(), &[]).ok();
        Self { pair, disk, device }
    }

    fn start(&self, more: &[&str]) -> Migration {
        let paths = [self.disk.as_path(), &self.device.device];
        start_between([&self.pair.a, &self.pair.b], paths, more)
    }

    fn go(&self, more: &[&str]) -> Outcome {
        self.start(more).finish()
    }

    fn go_back(&self) -> Outcome {
        let paths = [self.device.device.as_path(), &self.disk];
        let hosts = [&self.pair.b, &self.pair.a];
        start_between(hosts, paths, &["--replace-disks"]).finish()
    }

    /// The first bytes of the device, as many as the disk has, and the byte after them.
    fn on_device(&self) -> (Vec<u8>, u8) {
        let mut content = vec![0; DISK_BYTES as usize + 1];
        let device = fs::File::open(&self.device.device).expect("the device");
        device.read_exact_at(&mut content, 0).expect("its content");
        let after = content.pop().expect("a byte");
        (content, after)
    }
}

fn start_between([from, to]: [&Host; 2], [here, there]: [&Path; 2], more: &[&str]) -> Migration {
    let path = format!("{}={}", here.display(), there.display());
    let copy = ["--copy-disks", "--disk-path", &path];
    Migration::start(from, GUEST, to, &[&copy, more].concat())
}

#[test]
fn a_file_moves_onto_a_larger_block_device_and_back() {
    let scene = Scene::new(DISK_BYTES);
    let before = fs::read(&scene.disk).expect("the disk");
    scene.go(&[]).stayed(&[&*scene.device.path(), "exists already", "--replace-disks"]);
    assert_eq!(scene.on_device().0, vec![OLD; DISK_BYTES as usize]);

    scene.go(&["--replace-disks"]).ok();
    runs(&scene.pair.b);
    let (copy, after) = scene.on_device();
    assert!(copy == before, "the copy differs");
    assert_eq!(after, OLD, "the rest of the device is not the guest's");

    fs::write(&scene.disk, "old").expect("the disk");
    scene.go_back().ok();
    runs(&scene.pair.a);
    assert!(fs::read(&scene.disk).expect("the disk") == before, "the copy differs");

    // The device has its content again, so its guest may start from it.
    scene.go(&["--replace-disks"]).ok();
    let file = scene.pair.folder().join("db.lighter").display().to_string();
    scene.pair.b.run(&["save", GUEST, &file]).ok();
    scene.pair.b.run(&["restore", &file, "--name", GUEST, "--detach"]).ok();
    runs(&scene.pair.b);
}

#[test]
fn a_guest_gets_the_rest_of_the_device_that_it_was_copied_to() {
    let scene = Scene::new(DISK_BYTES);
    scene.go(&["--replace-disks"]).ok();
    let device = scene.device.path();
    let resize =
        |more: &[&str]| scene.pair.b.run(&[&["blockresize", GUEST, &*device], more].concat());
    resize(&["1G"]).complains(Exit::Failed, &[&device, "lvextend"]);
    assert_eq!(resize(&["--json"]).json()["bytes"], BYTES);
    scene.go_back().ok();
    let disk = fs::read(&scene.disk).expect("the disk");
    assert!(
        disk.len() as u64 == BYTES && disk[DISK_BYTES as usize..].iter().all(|byte| *byte == OLD)
    );
    runs(&scene.pair.a);
}

#[test]
fn a_device_that_is_too_small_or_in_use_is_not_overwritten() {
    let scene = Scene::new(DISK_BYTES);
    start(&scene.pair, "other", &scene.device.path(), &[]).ok();
    scene.go(&["--replace-disks"]).stayed(&[&*scene.device.path(), "in use by another guest"]);
    scene.pair.a.run(&["destroy", "other"]).ok();
    assert_eq!(scene.on_device().0, vec![OLD; DISK_BYTES as usize]);
    runs(&scene.pair.a);

    let scene = Scene::new(BYTES + 512);
    let words = [&*scene.device.path(), "has 16777216 bytes here"];
    scene.go(&["--replace-disks"]).stayed(&words);
    assert_eq!(scene.on_device().0, vec![OLD; DISK_BYTES as usize]);
}

#[test]
fn a_device_is_not_copied_onto_itself() {
    let mut pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    device.behind.write_all_at(&[7; 4096], 0).expect("content");
    pair.a.start_node(&NodePlan::default());
    let arguments = vec!["--disk-device".to_owned(), device.path()];
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    start(&pair, GUEST, &device.path(), &[]).ok();
    let go = |more: &[&str]| {
        let copy = ["--copy-disks", "--replace-disks"];
        Migration::start(&pair.a, GUEST, &pair.b, &[&copy, more].concat()).finish()
    };
    go(&[]).stayed(&[&*device.path(), "the guest uses at the source", "--copy-disk"]);
    // Even a user who is mistaken does not destroy it: the guest has it locked.
    go(&["--unsafe"]).stayed(&[&*device.path(), "in use by another guest"]);
    let mut content = [0; 4096];
    device.behind.read_exact_at(&mut content, 0).expect("its content");
    assert_eq!(content, [7; 4096]);
    runs(&pair.a);
}

#[test]
fn a_cancelled_copy_leaves_the_device_to_others() {
    let scene = Scene::new(DISK_BYTES);
    let migration = scene.start(&["--replace-disks", "--bandwidth", "50KB/s", "--compress", "off"]);
    migration.await_phase("precopy");
    start(&scene.pair, "other", &scene.device.path(), &[])
        .complains(Exit::Failed, &["in use by another guest"]);
    scene.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();
    runs(&scene.pair.a);
    wait::until("the device is free", || {
        let done = start(&scene.pair, "other", &scene.device.path(), &[]);
        wait::holds(done.exit == Exit::Done, done)
    });
    scene.pair.a.run(&["destroy", "other"]).ok();
    scene.go(&["--replace-disks"]).ok();
    assert!(scene.on_device().0 == fs::read(&scene.disk).expect("the disk"), "the copy differs");
}
