//! Disks that are copied with their guest: `lighter migrate --copy-disks`.
//!
//! The guest is a kernel of three bytes that sleeps forever, so that it has a disk and starts at
//! once. For a Linux guest that writes while its disk is copied, see [`crate::linux`].

mod attached;
mod chosen;
mod devices;
#[cfg(feature = "failpoints")]
mod faults;
mod overwritten;
mod place;

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use nix::sys::signal::Signal;
use place::{DISK_BYTES, GUEST, Place};

use support::checks::nothing_left_behind;
use support::{Exit, Migration, wait};

#[test]
fn a_disk_moves_with_its_guest_and_back() {
    let place = Place::new();
    let before = fs::read(place.disk_a()).expect("the disk");
    fs::set_permissions(place.disk_a(), Permissions::from_mode(0o640)).expect("the disk");
    let report = place.migrate(&[]).ok();
    assert_eq!(report["disk_bytes"], DISK_BYTES);
    assert!(report["transfer"]["disk_pages"].as_u64() > Some(0), "{report:#}");
    assert!(
        report["transfer"]["wire_bytes"].as_u64() < Some(DISK_BYTES),
        "holes are not sent: {report:#}"
    );

    let [here, there] =
        [place.disk_a(), place.disk_b()].map(|path| fs::metadata(path).expect("a disk"));
    assert_eq!(fs::read(place.disk_b()).expect("the copy"), before);
    assert!(
        there.blocks() <= here.blocks() + 64,
        "holes stay holes: {} {}",
        here.blocks(),
        there.blocks()
    );
    assert_eq!(fs::read(place.disk_a()).expect("the disk"), before, "what was there stays");
    let modes = [here.mode() & 0o777, there.mode() & 0o777];
    assert_eq!(modes, [0o640, 0o600], "a mode does not go along");
    place.runs_only_on(&place.pair.b);

    place.migrate_back(&[]).stayed(&["disk.raw exists already", "--replace-disks"]);
    let sector = fs::File::options().write(true).open(place.disk_b()).expect("the copy");
    sector.write_all_at(&[0x5a; 512], 0).expect("a sector");
    place.migrate_back(&["--replace-disks"]).ok();
    assert_eq!(fs::read(place.disk_a()).expect("the disk")[..512], [0x5a; 512]);
    assert_eq!(place.files_of("a"), ["disk.raw"]);
    place.runs_only_on(&place.pair.a);
    nothing_left_behind(&place.pair.hosts());
}

#[test]
fn a_disk_that_has_grown_moves_with_its_guest() {
    let place = Place::new();
    let disk = place.disk_a().display().to_string();
    let resize = |host: &support::Host, arguments: &[&str]| {
        host.run(&[&["blockresize", GUEST], arguments].concat())
    };
    resize(&place.pair.a, &[&disk, "1M"]).complains(Exit::Failed, &["disk.raw", "shrink"]);
    resize(&place.pair.a, &["vdb", "1G"]).complains(Exit::Failed, &["db has no disk vdb"]);
    resize(&place.pair.a, &[&disk]).complains(Exit::Failed, &["disk.raw", "give the new size"]);
    resize(&place.pair.a, &["/no/disk", "1G"])
        .complains(Exit::Failed, &["/no/disk", "lighter show"]);
    let migration = place.start(&["--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    resize(&place.pair.a, &[&disk, "64M"]).complains(Exit::Failed, &["being migrated"]);
    place.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();

    let grown = resize(&place.pair.a, &[&disk, "64M", "--json"]).json();
    assert_eq!(grown["bytes"], 64 << 20);
    let report = place.migrate(&[]).ok();
    assert_eq!(report["disk_bytes"], 64 << 20);
    place.runs_only_on(&place.pair.b);
    let there = place.disk_b().display().to_string();
    let said = resize(&place.pair.b, &["vda", "65M"]).ok();
    assert!(said.stdout.contains("disk.raw of db has 65 MiB"), "{said:#?}");
    assert_eq!(fs::metadata(place.disk_b()).expect("the disk").len(), 65 << 20);
    // A file that the guest was saved to does not fit the disk any more.
    let file = place.pair.folder().join("db.lighter").display().to_string();
    place.pair.b.run(&["save", GUEST, &file]).ok();
    place.pair.b.run(&["restore", &file, "--detach"]).ok();
    resize(&place.pair.b, &[&there, "66M"]).ok();
    place.pair.b.run(&["destroy", GUEST]).ok();
    place.pair.b.run(&["restore", &file]).complains(Exit::Failed, &["disk.raw"]);
}

#[test]
fn a_disk_moves_with_a_paused_guest() {
    let place = Place::new();
    place.pair.a.run(&["pause", GUEST]).ok();
    place.migrate(&[]).ok();
    place.pair.b.guest(GUEST).await_state("paused");
    assert_eq!(place.files_of("b"), ["disk.raw"]);
    place.pair.b.run(&["resume", GUEST]).ok();
    place.runs_only_on(&place.pair.b);
}

#[test]
fn disks_are_made_only_where_the_node_may_and_nothing_is_there() {
    let place = Place::new();
    let elsewhere =
        format!("{}={}", place.disk_a().display(), place.folder("c").join("d.raw").display());
    let go = |more: &[&str]| Migration::start(&place.pair.a, GUEST, &place.pair.b, more).finish();
    go(&["--copy-disks", "--disk-path", &elsewhere]).stayed(&[
        "takes disks in",
        "--disk-path",
        "--disk-dir",
    ]);
    go(&["--copy-disks"]).stayed(&["takes disks in"]);
    let unknown = go(&["--copy-disks", "--disk-path", "/no/disk=/x"]);
    unknown.done.complains(Exit::Failed, &["the guest has no disk /no/disk"]);
    fs::write(place.disk_b(), "precious").expect("a file");
    place.migrate(&[]).stayed(&["exists already"]);
    assert_eq!(fs::read(place.disk_b()).expect("the file"), b"precious");
    assert_eq!(place.files_of("c"), [""; 0]);
    place.runs_only_on(&place.pair.a);
    nothing_left_behind(&place.pair.hosts());
}

#[test]
fn a_node_accepts_no_disks_without_disk_folders() {
    let mut place = Place::new();
    place.pair.b.kill_node();
    place.pair.b.start_node(&support::NodePlan::default());
    place.migrate(&[]).stayed(&["takes no disks", "--disk-dir"]);
    place.runs_only_on(&place.pair.a);
}

#[test]
fn a_disk_that_both_hosts_have_is_taken_only_where_the_node_may_have_disks() {
    let mut place = Place::new();
    let go = |place: &Place| Migration::start(&place.pair.a, GUEST, &place.pair.b, &[]).finish();
    go(&place).stayed(&["takes disks in", "not", "disk.raw", "--disk-device"]);
    place.runs_only_on(&place.pair.a);
    place.pair.b.kill_node();
    let arguments = vec!["--disk-dir".to_owned(), place.folder("a").display().to_string()];
    place.pair.b.start_node(&support::NodePlan { arguments, ..Default::default() });
    go(&place).done.ok();
    place.runs_only_on(&place.pair.b);
}

#[test]
fn a_cancelled_copy_leaves_no_files() {
    let place = Place::new();
    let migration = place.start(&["--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    wait::until("some of the disk has gone", || {
        let status = place.pair.a.guest(GUEST).get("/v1/guest/migration")?;
        let progress = &status["progress"];
        let gone = progress["transfer"]["disk_pages"].as_u64() > Some(0);
        wait::holds(gone && progress["disk_remaining_bytes"].as_u64() > Some(0), status)
    });
    for (host, direction, name) in [
        (&place.pair.a, "outgoing", "lighter_migration_disk_remaining_bytes"),
        (&place.pair.a, "outgoing", "lighter_migration_disk_transferred_bytes_total"),
        (&place.pair.b, "incoming", "lighter_migration_disk_transferred_bytes_total"),
    ] {
        crate::metrics::is_counted(host, name, GUEST, direction);
    }
    assert_eq!(place.files_of("b"), [""; 0], "half a disk has no name");
    place.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();
    assert_eq!(place.files_of("b"), [""; 0]);
    place.runs_only_on(&place.pair.a);
    place.migrate(&[]).ok();
}

#[test]
fn a_cancelled_copy_leaves_the_file_that_it_would_have_replaced() {
    let place = Place::new();
    fs::write(place.disk_b(), "an old disk").expect("a file");
    let migration = place.start(&["--replace-disks", "--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    place.pair.a.run(&["cancel", GUEST]).ok();
    migration.finish().cancelled();
    assert_eq!(fs::read(place.disk_b()).expect("the file"), b"an old disk");
    assert_eq!(place.files_of("b"), ["disk.raw"]);
    place.runs_only_on(&place.pair.a);
}

#[test]
fn disks_of_a_guest_that_ends_during_migration_stay_usable() {
    let place = Place::new();
    let migration = place.start(&["--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    let process = place.pair.a.guest(GUEST).pid();
    process.signal(Signal::SIGTERM);
    wait::until("the guest's process has ended", || wait::holds(!process.is_alive(), process));
    drop(migration);
    place.start_guest(&[]);
    place.runs_only_on(&place.pair.a);
    place.migrate(&[]).ok();
}

/// A mounted file system, unmounted when dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_destination_without_room_says_so_and_the_guest_stays() {
    let place = Place::new();
    let folder = place.folder("b");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&folder).status();
    assert!(mounted.is_ok_and(|status| status.success()), "these tests mount a tmpfs, as root");
    let _mounted = Mounted(folder.clone());
    let fill = |bytes: usize| fs::write(folder.join("filler"), vec![1; bytes]).expect("a filler");

    fill(7 << 20);
    place.migrate(&[]).stayed(&["its disks take", "has room for"]);
    fs::remove_file(folder.join("filler")).expect("the filler");
    let migration = place.start(&["--bandwidth", "50KB/s"]);
    migration.await_phase("precopy");
    fill(6 << 20);
    migration.finish().stayed(&["disk.raw", "No space left"]);
    assert_eq!(place.files_of("b"), ["filler"]);
    place.runs_only_on(&place.pair.a);
    fs::remove_file(folder.join("filler")).expect("the filler");
    place.migrate(&[]).ok();
}
