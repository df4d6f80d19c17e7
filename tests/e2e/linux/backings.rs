//! Linux on other kinds of memory: huge pages of the pool, and clones of a template.

use super::disk::{MIB, boot_with, make_disk};
use support::checks::{cost, nothing_left_behind};
use support::linux::image::{BOOT_PATIENCE, Image};
use support::linux::witness::CheckConsole;
use support::{Host, Migration, Pair, Pool, wait};

#[test]
fn linux_on_huge_pages_of_the_pool_moves_to_such_pages() {
    // Room for two guests of 128 MiB: one leaves while the other arrives.
    let _pool = Pool::of_2m(128);
    let folder = tempfile::tempdir().expect("a folder");
    let pair = Pair::taking_disks_in(folder.path());
    let free = Pool::free();
    let disk = make_disk(folder.path());
    let mut arguments = boot_with("db", &disk, "check.disk=1");
    arguments.extend(["--hugepages", "2M", "--prealloc"].map(str::to_owned));
    pair.a.run(&arguments).ok();
    let witness = CheckConsole::of(&pair.a, "db", MIB * 256);
    let before = wait::within(BOOT_PATIENCE, "linux boots on huge pages", || {
        witness.last_line().ok_or_else(|| witness.console())
    });
    assert_eq!(Pool::free(), free - 64);
    Migration::run(&pair.a, "db", &pair.b).ok();
    let after = CheckConsole::of(&pair.b, "db", MIB * 256).line();
    after.follows(&before);
    wait::until("it has such pages there, and none here", || {
        wait::holds(Pool::free() == free - 64, Pool::free())
    });
    nothing_left_behind(&pair.hosts());
}

#[test]
fn clones_of_a_linux_continue_from_its_state() {
    let pair = Pair::new();
    let image = Image::halting();
    let witness = |host: &Host, name: &str| CheckConsole::of(host, name, image.pages());
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    let origin = witness(&pair.a, "linux").line();
    let file = pair.folder().join("linux.template").display().to_string();
    pair.a.run(&["template", "linux", &file]).ok();
    for name in ["one", "two"] {
        pair.a.run(&["run", "--template", &file, "--name", name, "--detach"]).ok();
        witness(&pair.a, name).line().follows(&origin);
    }
    let (alone, clone) = (cost(&pair.a, "linux"), cost(&pair.a, "one"));
    assert!(clone < alone, "a clone costs {clone} bytes, its origin {alone}");

    let before = witness(&pair.a, "two").line();
    Migration::run(&pair.a, "two", &pair.b).ok();
    let moved = witness(&pair.b, "two");
    moved.line().follows(&before);
    moved.has_checked_all_since(&before);
    nothing_left_behind(&pair.hosts());
}
