//! Guests with block devices: loop devices of this host on files.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::kernel::sleeper;
use support::{Exit, Host, Migration, NodePlan, Pair, lighter, run, wait};

/// The guest's name.
pub(super) const GUEST: &str = "db";
/// Size of the devices.
pub(super) const BYTES: u64 = 16 << 20;

/// A loop device on a file, detached when dropped.
pub(super) struct Loop {
    pub(super) device: PathBuf,
    /// The file behind the device. Writes to it bypass the kernel's write counter of the device,
    /// like those of another host.
    pub(super) behind: fs::File,
}

impl Loop {
    pub(super) fn on(file: &Path) -> Self {
        let behind = fs::File::options().read(true).write(true).create_new(true).open(file);
        let behind = behind.expect("a file");
        behind.set_len(BYTES).expect("its size");
        Self { device: attach(file), behind }
    }

    /// Lets the kernel count what is written to the device, or not.
    fn set_counting(&self, is_on: bool) -> std::io::Result<()> {
        let device = self.device.file_name().unwrap_or_default();
        let switch = Path::new("/sys/class/block").join(device).join("queue/iostats");
        fs::write(switch, if is_on { "1" } else { "0" })
    }

    pub(super) fn path(&self) -> String {
        self.device.display().to_string()
    }
}

/// A partition of a loop device, removed when dropped.
struct Partition<'a> {
    device: &'a Path,
    number: &'a str,
}

impl<'a> Partition<'a> {
    /// Makes the partition from sector `start` on, of 4 MiB.
    fn on(device: &'a Loop, number: &'a str, start: &str) -> Self {
        let device = device.device.as_path();
        let made = Command::new("addpart").arg(device).args([number, start, "8192"]).status();
        assert!(made.is_ok_and(|status| status.success()), "these tests make partitions, as root");
        Self { device, number }
    }

    fn path(&self) -> String {
        format!("{}p{}", self.device.display(), self.number)
    }

    fn remove(&self) -> bool {
        let removed = Command::new("delpart").arg(self.device).arg(self.number).status();
        removed.is_ok_and(|status| status.success())
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Other tests get the same loop device.
        let _ = self.set_counting(true);
        detach(&self.device);
    }
}

pub(super) fn start(
    pair: &Pair,
    name: &str,
    disk: &str,
    environment: &[(&str, &str)],
) -> support::Done {
    let kernel = sleeper(pair.folder()).display().to_string();
    let arguments = ["run", "--detach", "--name", name, "--memory", "64M", "--kernel", &kernel];
    let mut command = lighter(pair.a.state_dir(), &[&arguments[..], &["--disk", disk]].concat());
    command.envs(environment.iter().copied());
    run(command)
}

/// Makes a loop device on a file, or on another device.
fn attach(file: &Path) -> PathBuf {
    let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
    let made = made.expect("losetup");
    assert!(made.status.success(), "these tests make loop devices, as root: {made:?}");
    PathBuf::from(String::from_utf8_lossy(&made.stdout).trim())
}

fn detach(device: &Path) {
    let _ = Command::new("losetup").arg("--detach").arg(device).status();
}

/// A guest on host a, on a device that guests may bring to host b.
fn guest_on_a_lun() -> (Pair, Loop) {
    let mut pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    pair.a.start_node(&NodePlan::default());
    let arguments = vec!["--disk-device".to_owned(), device.path()];
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    start(&pair, GUEST, &device.path(), &[]).ok();
    (pair, device)
}

pub(super) fn runs(host: &Host) {
    host.guest(GUEST).await_state("running");
}

#[test]
fn a_device_written_behind_the_hosts_cache_is_refused_to_the_saved_guest() {
    let pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    start(&pair, GUEST, &device.path(), &[]).ok();
    let file = pair.folder().join("db.lighter").display().to_string();
    let restore = ["restore", &file, "--name", GUEST, "--detach"];
    pair.a.run(&["save", GUEST, &file]).ok();
    pair.a.run(&restore).ok();
    runs(&pair.a);
    pair.a.run(&["destroy", GUEST]).ok();

    // Held open, so that this host keeps its cached pages.
    let held = fs::File::open(&device.device).expect("the device");
    held.read_exact_at(&mut [0; 8192], 0).expect("its content");
    device.behind.write_all_at(b"mounted", 1024).expect("a write by another host");
    device.behind.sync_all().expect("a flush");
    let words = [&*device.path(), "was written since the guest last had it", "--unsafe"];
    pair.a.run(&restore).complains(Exit::Failed, &words);
    pair.a.run(&[&restore[..], &["--unsafe"]].concat()).ok();
    runs(&pair.a);
}

#[test]
fn a_device_whose_writes_are_not_counted_is_refused_to_the_saved_guest() {
    let pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    let [counted, uncounted] = ["counted", "uncounted"]
        .map(|name| pair.folder().join(name).with_extension("lighter").display().to_string());
    start(&pair, GUEST, &device.path(), &[]).ok();
    pair.a.run(&["save", GUEST, &counted]).ok();
    let restore = |file: &str| pair.a.run(&["restore", file, "--name", GUEST, "--detach"]);
    let words = ["cannot tell whether", &*device.path(), "--unsafe"];
    device.set_counting(false).expect("the switch of its counters");
    restore(&counted).complains(Exit::Failed, &words);
    // The device was never written, and the kernel would have counted it.
    device.set_counting(true).expect("the switch of its counters");
    restore(&counted).ok();
    device.set_counting(false).expect("the switch of its counters");
    pair.a.run(&["save", GUEST, &uncounted]).ok();
    device.set_counting(true).expect("the switch of its counters");
    restore(&uncounted).complains(Exit::Failed, &words);
}

#[test]
fn a_device_whose_content_has_left_with_its_guest_is_not_used() {
    let mut pair = Pair::without_nodes();
    let folder = pair.folder().join("disks");
    fs::create_dir(&folder).expect("a folder");
    let arguments = vec!["--disk-dir".to_owned(), folder.display().to_string()];
    pair.a.start_node(&NodePlan::default());
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    let device = Loop::on(&pair.folder().join("lv"));
    start(&pair, GUEST, &device.path(), &[]).ok();
    let path = format!("{}={}", device.path(), folder.join("db.raw").display());
    let go = ["migrate", GUEST, pair.b.node().address(), "--copy-disks", "--disk-path", &path];
    let moved = pair.a.run(&go).ok().stderr;
    assert!(moved.contains(&format!("{} cannot be marked", device.path())), "{moved}");

    let refused = start(&pair, "other", &device.path(), &[]);
    let list = pair.a.state_dir().join("departed/guests/db");
    let words = [&*device.path(), "has moved to", "with the guest db", &list.display().to_string()];
    refused.complains(Exit::Failed, &words);
    let shown = pair.a.run(&["show", GUEST]).ok().stdout;
    let words = ["Left with", &device.path(), "moved to", "`rm "];
    assert!(words.iter().all(|word| shown.contains(*word)), "{shown}");
    let shown = pair.a.run(&["show", GUEST, "--json"]).ok().json();
    let record = shown["left_disks"][0]["record"].as_str().expect("a record");
    fs::remove_file(record).expect("the record");
    start(&pair, "other", &device.path(), &[]).ok();
    pair.a.run(&["destroy", "other"]).ok();
}

#[test]
fn a_device_that_the_host_uses_is_refused_to_guests() {
    let mut pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    // As mount does.
    let claim = || {
        let mut claim = fs::File::options();
        claim.read(true).custom_flags(libc::O_EXCL);
        claim.open(&device.device)
    };
    let words = [&*device.path(), "in use by the host", "mounted", "lsblk"];
    let claimed = claim().expect("the device");
    start(&pair, GUEST, &device.path(), &[]).complains(Exit::Failed, &words);
    start(&pair, "reader", &format!("{},ro", device.path()), &[]).ok();
    pair.a.run(&["destroy", "reader"]).ok();
    drop(claimed);
    start(&pair, GUEST, &device.path(), &[]).ok();

    // Nor does the host get the device while its guest runs, wherever it has come from.
    let is_refused = || {
        let refused = claim().expect_err("the device is the guest's");
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY), "{refused}");
    };
    is_refused();
    pair.a.start_node(&NodePlan::default());
    let arguments = vec!["--disk-device".to_owned(), device.path()];
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    Migration::run(&pair.a, GUEST, &pair.b).ok();
    runs(&pair.b);
    is_refused();
    pair.b.run(&["destroy", GUEST]).ok();
    wait::until("the device is free", || wait::holds(claim().is_ok(), ()));
}

#[test]
fn a_disk_is_locked_under_all_of_its_devices() {
    let pair = Pair::without_nodes();
    let file = pair.folder().canonicalize().expect("a folder").join("disk.raw");
    let device = Loop::on(&file);
    let partitions = [("1", "2048"), ("2", "16384")]
        .map(|(number, sector)| Partition::on(&device, number, sector));
    let [one, two] = partitions.each_ref().map(Partition::path);
    let alias = attach(&file);
    let (whole, file, alias_path) =
        (device.path(), file.display().to_string(), alias.display().to_string());
    let refused = |disk: &str, words: &[&str]| {
        start(&pair, "other", disk, &[]).complains(Exit::Failed, words);
    };
    let destroy = |names: &[&str]| {
        for name in names {
            pair.a.run(&["destroy", name]).ok();
        }
    };
    let (claimed, locked) = (["in use by the host or by a guest"], ["in use by another guest"]);
    let behind = [&*alias_path, " uses ", &file, "in use by another guest"];

    start(&pair, "one", &one, &[]).ok();
    start(&pair, "two", &two, &[]).ok();
    refused(&whole, &claimed);
    refused(&file, &locked);
    refused(&alias_path, &behind);
    destroy(&["one", "two"]);

    start(&pair, "whole", &whole, &[]).ok();
    refused(&one, &claimed);
    refused(&file, &locked);
    refused(&format!("{file},ro"), &locked);
    refused(&alias_path, &behind);
    destroy(&["whole"]);

    start(&pair, "file", &file, &[]).ok();
    refused(&alias_path, &behind);
    refused(&two, &["in use by another guest"]);
    destroy(&["file"]);

    start(&pair, "reader", &format!("{file},ro"), &[]).ok();
    start(&pair, "second", &format!("{alias_path},ro"), &[]).ok();
    refused(&two, &["in use by another guest"]);
    destroy(&["reader", "second"]);
    detach(&alias);
    for partition in &partitions {
        wait::until("no guest is left on it", || wait::holds(partition.remove(), partition.path()));
    }
}

#[test]
fn a_device_whose_guest_is_on_another_host_is_refused_to_guests_of_every_name() {
    let (mut pair, device) = guest_on_a_lun();
    let file = pair.folder().join("db.lighter").display().to_string();
    pair.a.run(&["save", GUEST, &file]).ok();
    pair.a.run(&["restore", &file, "--name", GUEST, "--detach"]).ok();
    Migration::run(&pair.a, GUEST, &pair.b).ok();

    let there = [
        &*device.path(),
        "belongs to the guest db",
        "has it as db (running)",
        "Shut that guest down there first",
    ];
    for name in [GUEST, "other"] {
        start(&pair, name, &device.path(), &[]).complains(Exit::Failed, &there);
    }
    let restore = ["restore", &file, "--name", "copy", "--unsafe", "--detach"];
    pair.a.run(&restore).complains(Exit::Failed, &there);

    // The guest comes back, and leaves again.
    let arguments = vec!["--disk-device".to_owned(), device.path()];
    pair.a.kill_node();
    pair.a.start_node(&NodePlan { arguments, ..NodePlan::default() });
    Migration::run(&pair.b, GUEST, &pair.a).ok();
    let locked = ["in use by another guest"];
    start(&pair, "other", &device.path(), &[]).complains(Exit::Failed, &locked);
    Migration::run(&pair.a, GUEST, &pair.b).ok();

    // No node answers, so the guest may be anywhere; an operator knows.
    pair.b.kill_node();
    let silent = ["belongs to the guest db", "cannot be asked", "runs nowhere, `rm "];
    start(&pair, "other", &device.path(), &[]).complains(Exit::Failed, &silent);
    // A forced start that fails leaves the record.
    let mistyped = ["restore", "/nowhere.lighter", "--name", GUEST, "--force", "--detach"];
    pair.a.run(&mistyped).complains(Exit::Failed, &["/nowhere.lighter"]);
    start(&pair, "other", &device.path(), &[]).complains(Exit::Failed, &silent);
    pair.b.run(&["destroy", GUEST]).ok();
    start(&pair, "other", &device.path(), &[]).complains(Exit::Failed, &silent);
    fs::remove_dir_all(pair.a.state_dir().join("departed/guests/db")).expect("the record");
    start(&pair, "other", &device.path(), &[]).ok();
    pair.a.run(&["destroy", "other"]).ok();
}

#[test]
fn a_device_that_another_guest_of_the_other_host_needs_is_refused_when_its_guest_is_gone() {
    let (pair, device) = guest_on_a_lun();
    Migration::run(&pair.a, GUEST, &pair.b).ok();
    let is_refused = |who: &str| {
        let words = [&*device.path(), "belonged to the guest db", who, "`rm "];
        start(&pair, "other", &device.path(), &[]).complains(Exit::Failed, &words);
    };

    let file = pair.folder().join("db.lighter").display().to_string();
    pair.b.run(&["save", GUEST, &file]).ok();
    is_refused("has db, which was saved to");
    pair.b.run(&["restore", &file, "--name", "second", "--detach"]).ok();
    fs::remove_file(file).expect("the saved guest");
    is_refused("has second, which writes it (running)");
    pair.b.run(&["destroy", "second"]).ok();
    let alias = attach(&device.device);
    let kernel = sleeper(pair.folder()).display().to_string();
    let line = ["run", "--detach", "--name", "alias", "--memory", "64M", "--kernel", &kernel];
    pair.b.run(&[&line[..], &["--disk", &alias.display().to_string()]].concat()).ok();
    is_refused("has alias, which writes it (running)");
    pair.b.run(&["destroy", "alias"]).ok();
    detach(&alias);
    let definition = pair.folder().join("third.toml");
    let text = format!(
        "name = \"third\"\nmemory = \"64M\"\nkernel = \"{kernel}\"\n[[disk]]\npath = \"{}\"\n",
        device.path()
    );
    fs::write(&definition, text).expect("a definition");
    pair.b.run(&["define", &definition.display().to_string()]).ok();
    pair.b.run(&["autostart", "third"]).ok();
    is_refused("has third, which is started when that host boots");
    pair.b.run(&["undefine", "third"]).ok();

    start(&pair, "other", &device.path(), &[]).ok();
    let places = fs::read_dir(pair.a.state_dir().join("departed/guests/db"));
    let places = places.into_iter().flatten().flatten();
    let files = places.flat_map(|place| fs::read_dir(place.path()).into_iter().flatten());
    assert_eq!(files.count(), 0, "the device is no longer recorded as the guest's");
    pair.a.run(&["destroy", "other"]).ok();
}

#[cfg(feature = "failpoints")]
#[test]
fn a_copy_in_doubt_does_not_run_over_a_device_that_the_other_host_may_have_written() {
    let mut pair = Pair::without_nodes();
    let device = Loop::on(&pair.folder().join("lun"));
    pair.a.start_node(&NodePlan::default());
    let hold = ("LIGHTER_FAILPOINT".to_owned(), "destination.send.running:hold".to_owned());
    let arguments = vec!["--disk-device".to_owned(), device.path()];
    let plan = NodePlan { arguments, environment: vec![hold], ..NodePlan::default() };
    pair.b.start_node(&plan);
    start(&pair, GUEST, &device.path(), &[]).ok();
    let migration = Migration::start(&pair.a, GUEST, &pair.b, &[]);
    wait::until("the guest runs there", || {
        let logs = pair.b.logs();
        wait::holds(logs.contains("destination.send.running"), logs)
    });
    let children = pair.b.node().pid().children();
    pair.b.kill_node();
    children.into_iter().for_each(|child| child.kill());
    migration.finish().in_doubt();

    let resolve = ["migrate", GUEST, "--resolve", "run"];
    let words = ["may have run at the destination", &*device.path(), "--resolve run --unsafe"];
    pair.a.run(&resolve).complains(Exit::Failed, &words);
    pair.a.guest(GUEST).await_state("in-doubt");
    pair.a.run(&[&resolve[..], &["--unsafe"]].concat()).ok();
    runs(&pair.a);
}

#[test]
fn a_file_that_many_guests_read_is_still_theirs_when_one_of_them_has_left() {
    let mut pair = Pair::without_nodes();
    let [here, there] = ["here", "there"].map(|name| pair.folder().join(name));
    for folder in [&here, &there] {
        fs::create_dir(folder).expect("a folder");
    }
    let [own, base] = ["own.raw", "base.img"].map(|name| here.join(name));
    for disk in [&own, &base] {
        fs::write(disk, [7; 8192]).expect("a disk");
    }
    let arguments = vec!["--disk-dir".to_owned(), there.display().to_string()];
    pair.a.start_node(&NodePlan::default());
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    let kernel = sleeper(pair.folder()).display().to_string();
    let read_only = format!("{},ro", base.display());
    let start = |name: &str, more: &[&str]| {
        let start = ["run", "--detach", "--name", name, "--memory", "64M", "--kernel", &kernel];
        pair.a.run(&[&start[..], &["--disk", &read_only], more].concat())
    };
    start(GUEST, &["--disk", &own.display().to_string()]).ok();
    start("stays", &[]).ok();
    let places = [&own, &base].map(|disk| {
        let name = disk.file_name().expect("a name");
        format!("{}={}", disk.display(), there.join(name).display())
    });
    let go = ["--copy-disks", "--disk-path", &places[0], "--disk-path", &places[1]];
    Migration::start(&pair.a, GUEST, &pair.b, &go).finish().ok();
    runs(&pair.b);
    start("another", &[]).ok();
    let moved = ["has moved to"];
    start("third", &["--disk", &own.display().to_string()]).complains(Exit::Failed, &moved);
}
