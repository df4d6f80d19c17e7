//! `lighter save`, `restore` and `template`: their effects on the guest, the file, and the disks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use support::checks::{await_life, guest_is_gone, memory_is_intact, nothing_left_behind};
use support::kernel::sleeper;
use support::{Exit, Guest, GuestPlan, Host, Migration, Pair, Running, lighter, wait};

#[test]
fn a_saved_guest_has_ended_and_is_restored_where_it_was() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    await_life(&guest);
    let file = pair.folder().join("web-1.lighter").display().to_string();
    let said = pair.a.run(&["save", "web-1", &file]).ok().stdout;
    assert!(said.contains("the guest has ended"), "{said}");
    guest_is_gone(&[&pair.a], "web-1");
    let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
    assert!(shown.contains(&format!("was saved to {file}")), "{shown}");

    pair.b.run(&["restore", &file, "--name", "web-2", "--detach"]).ok();
    let restored = pair.b.guest("web-2");
    await_life(&restored);
    memory_is_intact(&restored);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_guest_without_disks_can_keep_running_after_a_save() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let file = pair.folder().join("web-1.lighter").display().to_string();
    pair.a.run(&["save", "web-1", &file, "--keep-running"]).ok();
    await_life(&guest);
    for name in ["web-2", "web-3"] {
        pair.b.run(&["restore", &file, "--name", name, "--detach"]).ok();
        memory_is_intact(&pair.b.guest(name));
    }
    memory_is_intact(&guest);
}

#[test]
fn a_guest_whose_save_cannot_be_recorded_keeps_running() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    await_life(&guest);
    // The guest's process is not allowed to create this folder again.
    fs::remove_dir(pair.a.state_dir().join("ended/guests/web-1")).expect("the place for its end");
    let file = pair.folder().join("web-1.lighter").display().to_string();
    let words = ["web-1 is running; no file is left", "cannot note how web-1 ended"];
    pair.a.run(&["save", "web-1", &file]).complains(Exit::Failed, &words);
    await_life(&guest);
    memory_is_intact(&guest);
    assert!(!Path::new(&file).exists());
}

#[test]
fn a_save_with_disks_that_cannot_be_recorded_can_be_tried_again() {
    let pair = Pair::without_nodes();
    guest_with_a_disk(&pair);
    pair.a.run(&["pause", "db"]).ok();
    let place = pair.a.state_dir().join("ended/guests/db");
    fs::remove_dir(&place).expect("the place for its end");
    let file = pair.folder().join("db.lighter").display().to_string();
    let save = || pair.a.run(&["save", "db", &file, "--disks"]);
    let words = ["db is paused; no file is left", "cannot note how db ended"];
    save().complains(Exit::Failed, &words);
    let left = [file.clone(), format!("{file}.disk.raw")];
    assert!(!left.iter().any(|file| Path::new(file).exists()));

    fs::create_dir(&place).expect("the place for its end");
    save().ok();
    guest_is_gone(&[&pair.a], "db");
}

/// Starts a sleeping guest with a disk; returns the disk's path.
fn guest_with_a_disk(pair: &Pair) -> PathBuf {
    let disk = pair.folder().join("disk.raw");
    fs::write(&disk, [7; 1 << 20]).expect("a disk");
    let (kernel, path) = (sleeper(pair.folder()).display().to_string(), disk.display().to_string());
    let made_of = ["--memory", "64M", "--kernel", &kernel, "--disk", &path];
    pair.a.run(&[&["run", "--detach", "--name", "db"][..], &made_of].concat()).ok();
    disk
}

#[test]
fn a_guest_is_restored_on_the_disk_that_it_left_and_on_no_other() {
    let pair = Pair::without_nodes();
    let disk = guest_with_a_disk(&pair);
    let file = pair.folder().join("db.lighter").display().to_string();
    let restore = |more: &[&str]| pair.a.run(&[&["restore", &file, "--detach"], more].concat());
    pair.a
        .run(&["save", "db", &file, "--keep-running"])
        .complains(Exit::Failed, &["db writes its disk", "disk.raw", "--keep-running"]);
    pair.a.guest("db").await_state("running");
    assert!(!Path::new(&file).exists());

    pair.a.run(&["save", "db", &file]).ok();
    restore(&[]).ok();
    pair.a.guest("db").await_state("running");
    pair.a.run(&["destroy", "db"]).ok();
    let words = ["disk.raw was written since the guest last had it", "lighter run", "--unsafe"];
    restore(&[]).complains(Exit::Failed, &words);
    guest_is_gone(&[&pair.a], "db");

    restore(&["--unsafe"]).ok();
    pair.a.run(&["save", "db", &file]).ok();
    let written = File::options().write(true).open(&disk).expect("the disk");
    written.write_all_at(&[8; 512], 0).expect("a sector");
    restore(&[]).complains(Exit::Failed, &words);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn the_disk_of_a_saved_guest_is_refused_to_others_while_its_file_is_there() {
    let pair = Pair::without_nodes();
    let disk = guest_with_a_disk(&pair).display().to_string();
    let file = pair.folder().join("db.lighter").display().to_string();
    pair.a.run(&["save", "db", &file]).ok();
    let kernel = sleeper(pair.folder()).display().to_string();
    let made_of = ["--memory", "64M", "--kernel", &kernel];
    let run = |name, disk: &[&str]| {
        pair.a.run(&[&["run", "--detach", "--name", name][..], &made_of, disk].concat())
    };
    let words = [&*disk, "is a disk of the guest db, which was saved to", &file, "restore that"];
    run("other", &["--disk", &disk]).complains(Exit::Failed, &words);
    run("other", &[]).ok();
    pair.a.run(&["attach-disk", "other", &disk]).complains(Exit::Failed, &words);

    pair.a.run(&["restore", &file, "--name", "again", "--detach"]).ok();
    pair.a.guest("again").await_state("running");
    pair.a.run(&["destroy", "again"]).ok();
    fs::remove_file(&file).expect("the file");
    run("third", &["--disk", &disk]).ok();
}

#[test]
fn the_file_of_a_guest_that_kept_running_is_refused_with_its_disk() {
    let pair = Pair::without_nodes();
    guest_with_a_disk(&pair);
    pair.a.run(&["destroy", "db"]).ok();
    let kernel = sleeper(pair.folder()).display().to_string();
    let disk = pair.folder().join("disk.raw").display().to_string();
    let made_of = ["--memory", "64M", "--kernel", &kernel, "--disk", &disk, "--landlock", "off"];
    pair.a.run(&[&["run", "--detach", "--name", "db"][..], &made_of].concat()).ok();
    let file = pair.folder().join("db.lighter");
    save_by_api(&pair.a.guest("db"), &file);
    pair.a.run(&["resume", "db"]).ok();
    pair.a.run(&["destroy", "db"]).ok();
    let file = file.display().to_string();
    let refused = pair.a.run(&["restore", &file, "--detach"]);
    refused.complains(Exit::Failed, &["was written since the guest last had it"]);
}

#[test]
fn disks_are_saved_with_a_guest_that_keeps_running() {
    let pair = Pair::without_nodes();
    let disk = guest_with_a_disk(&pair);
    let file = pair.folder().join("db.lighter").display().to_string();
    let done = pair.a.run(&["save", "db", &file, "--disks", "--keep-running"]).ok();
    let copy = format!("{file}.disk.raw");
    assert!(done.stdout.contains("the guest was paused for"), "{}", done.stdout);
    assert!(done.stderr.contains(&format!("{} is in {copy}", disk.display())), "{}", done.stderr);
    assert_eq!(fs::read(&disk).expect("the disk"), fs::read(&copy).expect("its copy"));
    pair.a.guest("db").await_state("running");

    // The guest continues with its disk, the saved one with the copy.
    let written = File::options().write(true).open(&disk).expect("the disk");
    written.write_all_at(&[8; 512], 0).expect("a sector");
    pair.a.run(&["restore", &file, "--name", "past", "--detach"]).ok();
    let shown = pair.a.run(&["show", "past"]).ok().stdout;
    assert!(shown.contains(&copy), "{shown}");
    pair.a.run(&["destroy", "past"]).ok();
    let twice = pair.a.run(&["save", "db", &file, "--disks", "--keep-running"]);
    twice.complains(Exit::Failed, &[&copy, "is there already"]);
    pair.a.guest("db").await_state("running");
    let again = pair.a.run(&["restore", &file, "--name", "past", "--detach"]);
    again.complains(Exit::Failed, &[&copy, "was written since the guest last had it"]);
}

#[test]
fn a_template_of_a_guest_that_writes_disks_is_made_while_it_is_paused() {
    let pair = Pair::without_nodes();
    guest_with_a_disk(&pair);
    let file = pair.folder().join("db.template").display().to_string();
    let refused = pair.a.run(&["template", "db", &file]);
    refused.complains(Exit::Failed, &["db writes its disk", "lighter pause db", "copy the disk"]);
    pair.a.run(&["pause", "db"]).ok();
    pair.a.run(&["template", "db", &file]).ok();
    pair.a.guest("db").await_state("paused");
}

/// Asks a guest whose process may open files to save itself. Returns the id of the save.
fn save_by_api(guest: &Guest, file: &Path) -> Value {
    let request = json!({ "file": file });
    let saved = guest.request("POST", "/v1/guest/save", Some(&request)).success();
    json!({ "id": saved.expect("it is saved")["id"] })
}

#[test]
fn a_saved_guest_stays_paused_until_it_is_ended_or_resumed() {
    let pair = Pair::without_nodes();
    let options = ["--landlock", "off"].map(str::to_owned).to_vec();
    let guest = Guest::start(&pair.a, &GuestPlan { options, ..GuestPlan::default() });
    let put = |what: &str, save: &Value| {
        guest.request("PUT", &format!("/v1/guest/save/{what}"), Some(save)).status
    };
    let file = pair.folder().join("web-1.lighter");
    let first = save_by_api(&guest, &file);
    guest.await_state("paused");
    let other = file.with_extension("other").display().to_string();
    for verb in [&["pause", "web-1"][..], &["save", "web-1", &other], &["stop", "web-1"]] {
        pair.a.run(verb).complains(Exit::Failed, &["web-1 is being saved"]);
    }
    assert_eq!(put("hold", &first), 200);
    pair.a.run(&["resume", "web-1"]).ok();
    await_life(&guest);

    let second = save_by_api(&guest, &file);
    for what in ["hold", "release", "finish"] {
        assert_eq!(put(what, &first), 409, "{what} is about another save");
    }
    guest.await_state("paused");
    assert_eq!(put("release", &second), 200);
    await_life(&guest);
    assert_eq!(put("finish", &second), 409, "a guest that runs is not ended by it");

    pair.a.run(&["pause", "web-1"]).ok();
    let third = save_by_api(&guest, &file);
    assert_eq!(put("release", &third), 200);
    guest.await_state("paused");

    let last = save_by_api(&guest, &file);
    assert_eq!(put("finish", &last), 202);
    guest_is_gone(&[&pair.a], "web-1");
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn a_guest_resumes_when_its_save_command_is_killed() {
    let pair = Pair::without_nodes();
    let plan = GuestPlan { memory: "512M".to_owned(), ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    let file = pair.folder().join("web-1.lighter");
    let name = file.display().to_string();
    let save = Running::start(lighter(pair.a.state_dir(), &["save", "web-1", &name]));
    wait::until("it is being saved, or has been", || {
        let state = guest.state();
        let is_on_its_way = state.as_deref() == Some("paused") || file.exists();
        wait::holds(is_on_its_way, state)
    });
    save.pid().kill();
    save.finish();
    // A fast disk has written the whole file before the kill: then the guest may have ended.
    if !file.exists() {
        await_life(&guest);
        memory_is_intact(&guest);
        assert!(!file.exists());
    }
}

#[test]
fn a_save_whose_process_is_terminated_leaves_a_whole_file_or_none() {
    let pair = Pair::without_nodes();
    let plan = GuestPlan { memory: "512M".to_owned(), ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    let folder = pair.folder().join("saved");
    std::fs::create_dir(&folder).expect("a folder");
    let file = folder.join("web-1.lighter").display().to_string();
    let pid = guest.pid();
    let save = Running::start(lighter(pair.a.state_dir(), &["save", "web-1", &file]));
    wait::until("it is saved, or has been", || {
        let state = guest.state();
        let is_on_its_way = state.as_deref() == Some("paused") || Path::new(&file).exists();
        wait::holds(is_on_its_way, state)
    });
    pid.signal(Signal::SIGTERM);

    let done = save.finish();
    guest_is_gone(&[&pair.a], "web-1");

    let left = std::fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(left, usize::from(done.exit == Exit::Done), "{done:#?}");
    if done.exit != Exit::Done {
        done.complains(Exit::Failed, &["cannot save web-1", "the guest ended"]);
    }
}

#[test]
fn a_damaged_saved_guest_is_refused_and_leaves_nothing() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    let file = pair.folder().join("web-1.lighter");
    let name = file.display().to_string();
    pair.a.run(&["save", "web-1", &name]).ok();
    let whole = std::fs::read(&file).expect("the saved guest");

    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (damaged, what) in [
        (flipped, "a flipped bit"),
        (whole[..middle].to_vec(), "half a file"),
        (Vec::new(), "nothing"),
    ] {
        std::fs::write(&file, damaged).expect("a file");
        let refused = pair.b.run(&["restore", &name, "--detach"]);
        assert_eq!(refused.exit, Exit::Failed, "{what}: {refused:#?}");
        refused.complains(Exit::Failed, &["lighter: ", "web-1.lighter"]);
        nothing_left_behind(&[&pair.b]);
    }
}

#[test]
fn labels_follow_the_guest() {
    let pair = Pair::new();
    let options = ["--label", "team=shop", "--label", "tier=batch"].map(str::to_owned).into();
    let plan = GuestPlan { name: "web".to_owned(), options, ..GuestPlan::default() };
    Guest::start(&pair.a, &plan);
    let labels = |host: &Host| host.run(&["show", "web", "--json"]).ok().json()["labels"].clone();
    let wanted = json!({"team": "shop", "tier": "batch"});
    assert_eq!(labels(&pair.a), wanted);
    Migration::run(&pair.a, "web", &pair.b).ok();
    assert_eq!(labels(&pair.b), wanted);
    let file = pair.folder().join("web.lighter").display().to_string();
    pair.b.run(&["save", "web", &file]).ok();
    pair.b.run(&["restore", &file, "--detach"]).ok();
    assert_eq!(labels(&pair.b), wanted);
}
