//! Disks that are local files of each host: whether the file at a guest's path is the guest's disk.

use std::path::Path;

use crate::fixtures::{Host, Lab, holds, until};
use support::kernel::sleeper;

const DISK: &str = "/var/lib/disks/db.raw";

const SAVE: &str = "save db /var/lib/disks/db.lighter";
const RESTORE: &str = "restore /var/lib/disks/db.lighter --name db --detach";

/// Runs a guest; the caller appends its name and disk.
pub(crate) const RUN: &str = "run --detach --memory 64M --kernel /var/lib/disks/sleeper --name";

/// Gives a host the kernel of [`RUN`].
pub(crate) fn push_kernel(host: Host<'_>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    host.push(&[Path::new(&sleeper(folder.path()))], "/var/lib/disks");
}

/// Two hosts with the kernel of [`RUN`]; only the first host has [`DISK`].
pub(crate) fn hosts(lab: &Lab) -> [Host<'_>; 2] {
    let hosts = lab.nodes();
    for host in hosts {
        push_kernel(host);
        host.sh(&format!("rm -f {DISK}")).ok();
    }
    hosts[0].sh(&format!("truncate -s 16M {DISK}")).ok();
    hosts
}

/// As `hosts`, with a guest on the first host that uses `disk`.
fn set_up<'a>(lab: &'a Lab, disk: &str) -> [Host<'a>; 2] {
    let hosts = hosts(lab);
    hosts[0].lighter(&format!("{RUN} db --disk {disk}")).ok();
    hosts
}

#[test]
fn a_guest_on_a_device_is_saved_after_its_host_has_emptied_its_caches() {
    let lab = Lab::of(1);
    let here = lab.host(1);
    push_kernel(here);
    lab.reset_shared_disk();
    here.lighter(&format!("{RUN} db --disk /dev/vdb")).ok();
    for _ in 0..2 {
        here.sh("echo 2 > /proc/sys/vm/drop_caches").ok();
        here.lighter(SAVE).ok();
        here.lighter(RESTORE).ok();
    }
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}

const OTHER: [&str; 3] = [DISK, "is not the one that the guest has at the source", "--copy-disks"];

#[test]
fn another_file_of_the_same_size_is_not_the_guests_disk() {
    let lab = Lab::of(2);
    let [here, there] = set_up(&lab, DISK);
    there.sh(&format!("truncate -s 16M {DISK}")).ok();
    here.lighter(&format!("migrate db {}", there.address())).complains(&OTHER);
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
    assert!(there.guests().is_empty());
    here.lighter(&format!("migrate db {} --unsafe --downtime 10s", there.address())).ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
}

#[test]
fn a_disk_that_was_left_behind_is_not_taken_for_the_guests() {
    let lab = Lab::of(2);
    let [here, there] = set_up(&lab, DISK);
    here.lighter(&format!("migrate db {} --copy-disks --downtime 10s", there.address())).ok();
    let words = [DISK, "has moved to", "setfattr -x"];
    here.lighter(&format!("{RUN} db2 --disk {DISK}")).complains(&words);
    there.lighter(&format!("migrate db {}", here.address())).complains(&[DISK, "has moved to"]);
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
    let replace =
        format!("migrate db {} --copy-disks --replace-disks --downtime 10s", here.address());
    there.lighter(&replace).ok();
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}

#[test]
fn a_device_that_both_hosts_have_is_known_by_its_name_wherever_the_guest_came_from() {
    let lab = Lab::of(2);
    let [here, there] = set_up(&lab, "/dev/vdb");
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    there.lighter(&format!("migrate db {} --downtime 10s", here.address())).ok();
    here.lighter("save db /var/tmp/db.lighter").ok();
    here.lighter("restore /var/tmp/db.lighter --name db --detach").ok();
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
}

#[test]
fn a_device_that_a_host_uses_is_refused_to_guests() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    // The host's own system, by its disk and by its partition.
    let root = here.sh("findmnt --noheadings --output source /").ok();
    let (root, words) = (root.trim(), ["in use by the host", "lsblk"]);
    let whole = here.sh(&format!("lsblk --noheadings --output pkname {root}")).ok();
    let whole =
        if whole.trim().is_empty() { root.to_owned() } else { format!("/dev/{}", whole.trim()) };
    for disk in [root, &whole] {
        here.lighter(&format!("{RUN} db --disk {disk}")).complains(&words);
    }
    here.lighter(&format!("{RUN} db --disk /dev/vdb")).ok();
    // A volume on it, as LVM makes them.
    let claim = "echo '0 2048 linear /dev/vdb 0' | dmsetup create volume";
    here.sh(&format!("if {claim}; then exit 9; fi")).ok();
    there.sh(claim).ok();
    here.lighter(&format!("migrate db {}", there.address())).complains(&words);
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
    there.sh("dmsetup remove volume").ok();
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    let elsewhere = ["/dev/vdb", "belongs to the guest db", "has it as db (running)"];
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).complains(&elsewhere);
    there.lighter("destroy db").ok();
    there.lighter(&format!("{RUN} db3 --disk /dev/vdb")).ok();
    let another = ["/dev/vdb", "belonged to the guest db", "has db3, which writes it (running)"];
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).complains(&another);
    there.lighter("destroy db3").ok();
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).ok();
}

#[test]
fn guests_have_volumes_of_a_device_or_one_has_the_device() {
    let lab = Lab::of(2);
    let [here, _] = hosts(&lab);
    let volume = |name: &str, sector: u32| {
        format!("echo '0 2048 linear /dev/vdb {sector}' | dmsetup create {name}")
    };
    here.sh(&format!("{} && {}", volume("one", 0), volume("two", 2048))).ok();
    for name in ["one", "two"] {
        here.lighter(&format!("{RUN} {name} --disk /dev/mapper/{name}")).ok();
    }
    let claimed = ["/dev/vdb", "in use by the host or by a guest", "lsblk"];
    here.lighter(&format!("{RUN} whole --disk /dev/vdb")).complains(&claimed);
    here.lighter("destroy one").ok();
    here.lighter("destroy two").ok();
    for name in ["one", "two"] {
        let remove = format!("until dmsetup remove {name}; do sleep 0.2; done");
        here.sh(&format!("timeout 300 sh -c \"{remove}\"")).ok();
    }

    here.lighter(&format!("{RUN} whole --disk /dev/vdb")).ok();
    here.sh(&format!("if {}; then exit 9; fi", volume("one", 0))).ok();
    here.sh("losetup /dev/loop0 /dev/vdb && addpart /dev/vdb 1 2048 2048").ok();
    let behind = ["/dev/loop0 uses /dev/vdb", "in use by another guest"];
    here.lighter(&format!("{RUN} other --disk /dev/loop0")).complains(&behind);
    let claimed = ["/dev/vdb1", "in use by the host or by a guest"];
    here.lighter(&format!("{RUN} other --disk /dev/vdb1")).complains(&claimed);
    assert_eq!(here.state_of("whole").as_deref(), Some("running"));
    assert_eq!(here.guests().len(), 1);
    here.lighter("destroy whole").ok();
    // The host may have read the device's partitions again, and found none.
    here.sh("losetup --detach /dev/loop0 && delpart /dev/vdb 1 || true").ok();
}

#[test]
fn a_device_with_which_a_guest_has_left_is_refused_despite_a_power_cut() {
    let lab = Lab::of(2);
    let [here, there] = set_up(&lab, "/dev/vdb");
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    // The kernel of the guests to come is to outlive the power cut.
    here.sh("sync").ok();
    lab.cut_power(1);
    lab.restore_power(1);
    here.await_node();
    let elsewhere = ["/dev/vdb", "belongs to the guest db", "has it as db (running)"];
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).complains(&elsewhere);
    here.sh("losetup /dev/loop0 /dev/vdb").ok();
    here.lighter(&format!("{RUN} db2 --disk /dev/loop0")).complains(&elsewhere);
    here.sh("echo '0 2048 linear /dev/loop0 0' | dmsetup create volume").ok();
    here.lighter(&format!("{RUN} db2 --disk /dev/mapper/volume")).complains(&elsewhere);
    here.sh("dmsetup remove volume && losetup --detach /dev/loop0").ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
    lab.cut_power(2);
    let silent = ["/dev/vdb", "belongs to the guest db", "does not answer"];
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).complains(&silent);
    lab.restore_power(2);
    there.await_node();
    // The guest went down with its host.
    here.lighter(&format!("{RUN} db2 --disk /dev/vdb")).ok();
}

#[test]
fn a_device_that_another_host_has_written_is_refused_to_the_saved_guest() {
    let lab = Lab::of(2);
    let [here, there] = set_up(&lab, "/dev/vdb");
    here.lighter(SAVE).ok();
    here.sh("losetup /dev/loop0 /dev/vdb").ok();
    let needed = ["/dev/loop0 overlaps /dev/vdb, a disk of the guest db, which was saved to"];
    here.lighter(&format!("{RUN} other --disk /dev/loop0")).complains(&needed);
    here.sh("losetup --detach /dev/loop0").ok();
    // The host keeps its cached pages of the device for as long as the device is open.
    here.sh(
        "setsid -f sleep 3600 </dev/vdb >/dev/null 2>&1; dd if=/dev/vdb of=/dev/null bs=1M count=2",
    )
    .ok();
    there.sh("echo mounted | dd of=/dev/vdb bs=512 seek=2 conv=fsync,notrunc").ok();
    let words = ["/dev/vdb", "was written since the guest last had it", "--unsafe"];
    here.lighter(RESTORE).complains(&words);
    assert!(here.guests().is_empty());
    here.lighter(&format!("{RESTORE} --unsafe")).ok();
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}

#[test]
fn a_guest_is_restored_from_its_file_once_despite_a_power_cut() {
    let lab = Lab::of(2);
    let [here, _] = set_up(&lab, DISK);
    here.lighter(SAVE).ok();
    here.lighter(RESTORE).ok();
    lab.cut_power(1);
    lab.restore_power(1);
    here.lighter(RESTORE).complains(&[DISK, "was written since the guest last had it", "--unsafe"]);
    assert!(here.guests().is_empty());
    here.lighter(&format!("{RESTORE} --unsafe")).ok();
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}

#[test]
fn after_a_reboot_a_device_with_unknown_writes_is_refused() {
    let lab = Lab::of(2);
    let [here, _] = set_up(&lab, "/dev/vdb");
    here.lighter(SAVE).ok();
    here.sh("dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync").ok();
    here.lighter(RESTORE).complains(&["/dev/vdb", "was written since the guest last had it"]);
    lab.cut_power(1);
    lab.restore_power(1);
    here.lighter(RESTORE).complains(&["cannot tell whether disk /dev/vdb was written", "--unsafe"]);
    here.lighter(&format!("{RESTORE} --unsafe")).ok();
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}

#[test]
fn a_file_whose_note_the_power_cut_prevented_is_old_under_another_name_too() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    let point = "source.act.releaseguest:hold,source.send.commit:freeze";
    here.sh(&format!("LIGHTER_FAILPOINT={point} lighter {RUN} db --disk {DISK} && sync")).ok();
    let migrate = format!("lighter migrate db {} --copy-disks --downtime 10s", there.address());
    here.sh(&format!("systemd-run --quiet --unit lab-migrate-db {migrate}")).ok();
    until("it is decided", || {
        let records = here.records();
        let is_committed = records.iter().any(|(_, it)| it["side"]["state"] == "committed");
        holds(is_committed, records)
    });
    there.await_received("db");
    lab.cut_power(1);
    lab.restore_power(1);
    until("it has arrived", || holds(there.state_of("db").as_deref() == Some("running"), ()));
    let moved = ["is old", "departed/guests/db/"];
    for (made, name) in [("ln", "linked"), ("mv", "renamed")] {
        let other = format!("/var/lib/disks/{name}.raw");
        here.sh(&format!("{made} {DISK} {other}")).ok();
        here.lighter(&format!("{RUN} {name} --disk {other}")).complains(&moved);
    }
    here.sh(&format!("truncate -s 16M {DISK}")).ok();
    here.lighter(&format!("{RUN} new --disk {DISK}")).ok();
}

#[test]
fn a_mapped_device_without_a_uuid_is_old_by_its_name() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    // The first device that is created becomes dm-0.
    let make = |name: &str| {
        let file = format!("/var/lib/disks/{name}.raw");
        here.sh(&format!(
            "set -e; test -e {file} || truncate -s 16M {file}; loop=$(losetup --find --show {file}); \
             dmsetup create {name} --table \"0 $((16 << 11)) linear $loop 0\"; test -z \"$(dmsetup info -c --noheadings -o uuid {name})\"; \
             basename $(realpath /dev/mapper/{name})"
        ))
        .ok()
    };
    let first = make("old");
    here.lighter(&format!("{RUN} db --disk /dev/mapper/old")).ok();
    let path = format!("--disk-path /dev/mapper/old={DISK}");
    here.lighter(&format!("migrate db {} --copy-disks {path} --downtime 10s", there.address()))
        .ok();
    here.sh("timeout 300 sh -c \"until dmsetup remove old; do sleep 0.2; done\" && losetup --detach-all").ok();
    assert_eq!(make("new"), first);
    assert_ne!(make("old"), first);
    here.lighter(&format!("{RUN} a --disk /dev/mapper/old")).complains(&[
        "/dev/dm-",
        "is old",
        "departed/guests/db/",
    ]);
    here.lighter(&format!("{RUN} b --disk /dev/mapper/new")).ok();
}

#[test]
fn a_save_that_cannot_be_recorded_fails_and_the_guest_keeps_running() {
    let lab = Lab::of(2);
    let [here, _] = hosts(&lab);
    let script = format!(
        "set -e; export LIGHTER_STATE_DIR=/tmp/lab/state; mkdir $LIGHTER_STATE_DIR; \
         mount -t tmpfs -o size=2M lab $LIGHTER_STATE_DIR; cd /tmp/lab; \
         lighter {RUN} full --disk {DISK}; \
         dd if=/dev/zero of=state/filler status=none || true; \
         if lighter save full /var/tmp/full.lighter; then exit 9; fi; \
         lighter show full --json | grep running; rm state/filler; lighter save full /var/tmp/again.lighter; \
         lighter show full | grep saved; lighter restore /var/tmp/again.lighter --name full --detach; \
         lighter show full --json | grep running"
    );
    // A private mount, which disappears with the guest.
    let done = here.sh(&format!("unshare --mount sh -c '{script}'"));
    assert!(done.stderr.contains("No space left on device"), "{done:?}");
    done.ok();
}
