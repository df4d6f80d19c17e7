//! A Linux guest with a disk and an entropy device, migrated while it writes.
//!
//! Each test boots its own guest: a disk belongs to one guest, so a saved one cannot be started
//! twice. For each line that it prints, the guest writes a record, bypassing every cache, and reads
//! the previous one back (`tests/guest/check/disk.rs`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::checks::nothing_left_behind;
use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::linux::witness::{CheckConsole, Line};
use support::{Exit, Host, Migration, Pair, wait};

/// Number of lines, and so of records, awaited on each host.
const LINES: usize = 3;
/// Memory that the check program checks.
pub(super) const MIB: u64 = 1;
const SECTOR_BYTES: usize = 512;

/// Creates a disk of 8 MiB in `folder`.
pub(super) fn make_disk(folder: &Path) -> PathBuf {
    let disk = folder.join("disk.raw");
    fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("a disk");
    disk
}

/// Arguments that start a guest with `disk`.
fn arguments(name: &str, disk: &Path) -> Vec<String> {
    boot_with(name, disk, "check.disk=1")
}

/// As [`arguments`], with `task` as options of the check program.
pub(super) fn boot_with(name: &str, disk: &Path, task: &str) -> Vec<String> {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let check = format!("mem=80M check.mib={MIB} check.rate=100 check.halt=1 {task}");
    let cmdline = cmdline(&check);
    let disk = format!("{},serial=db-1", disk.display());
    let options = [
        "run",
        "--detach",
        "--rng",
        "--name",
        name,
        "--memory",
        "128M",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        &cmdline,
        "--disk",
        &disk,
    ];
    options.map(str::to_owned).to_vec()
}

/// Waits for [`LINES`] more lines of the guest on `host`, and returns the last one; asserts that
/// the guest has read everything that it wrote.
#[track_caller]
fn lines_of(host: &Host) -> Line {
    let witness = CheckConsole::of(host, "db", MIB * 256);
    let lines = [(); LINES].map(|()| witness.line());
    let [.., last] = lines;
    assert_eq!(last.get("disk_errors"), 0, "{last:?}");
    last
}

/// Asserts that record `number` is on the disk, as this host sees it.
#[track_caller]
fn is_on_disk(disk: &fs::File, number: u64) {
    let mut sector = [0; SECTOR_BYTES];
    disk.read_exact_at(&mut sector, number * SECTOR_BYTES as u64).expect("the record");
    assert_eq!(sector.as_slice(), number.to_le_bytes().repeat(64), "record {number}");
}

#[test]
fn linux_with_a_disk_keeps_writing_at_the_destination() {
    keeps_writing("mmio", "");
}

#[test]
fn linux_with_a_disk_on_pci_keeps_writing_at_the_destination() {
    keeps_writing("pci", "");
}

#[test]
fn linux_with_a_disk_that_bypasses_the_cache_keeps_writing_at_the_destination() {
    keeps_writing("pci", ",cache=none");
}

/// Warnings of the kernel about its machine on the console of `host`.
fn complaints(host: &Host) -> Vec<String> {
    const WORDS: [&str; 5] = ["pci", "acpi", "ecam", "mmconfig", "msi"];
    let console = CheckConsole::of(host, "db", MIB * 256).console().to_lowercase();
    let lines = console.lines().filter(|line| WORDS.iter().any(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

fn keeps_writing(machine: &str, options: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = make_disk(folder.path());
    let thief = arguments("thief", &disk);
    let steal = |host: &Host, refusal| {
        host.run(&thief).complains(Exit::Failed, &["disk.raw", refusal]);
    };

    let pair = Pair::taking_disks_in(folder.path());
    // Warnings of the kernel are shown too.
    let with_options = format!("{}{options}", disk.display());
    let mut boot = boot_with("db", Path::new(&with_options), "check.disk=1 loglevel=5");
    boot.extend(["--machine", machine].map(str::to_owned));
    pair.a.run(&boot).ok();
    let witness = CheckConsole::of(&pair.a, "db", MIB * 256);
    wait::within(BOOT_PATIENCE, "linux boots and writes to its disk", || {
        witness.last_line().ok_or_else(|| witness.console())
    });
    // Without a bus, a kernel with PCI complains that there is none.
    if machine == "pci" {
        assert_eq!(complaints(&pair.a), [""; 0]);
    }
    let before = lines_of(&pair.a);
    assert_eq!(before.get("entropy"), 64);
    steal(&pair.b, "is in use by another guest");

    Migration::run(&pair.a, "db", &pair.b).ok();
    let after = lines_of(&pair.b);
    after.follows(&before);
    assert_eq!(pair.b.guest("db").get("/v1/guest").expect("an answer")["machine"], machine);
    steal(&pair.a, "belongs to the guest db, which has moved");
    Migration::run(&pair.b, "db", &pair.a).ok();
    let back = lines_of(&pair.a);
    back.follows(&after);

    let written = back.get("disk_written") as u64;
    assert!(written > before.get("disk_written") as u64 + LINES as u64, "{back:?}");
    let disk = fs::File::open(&disk).expect("the disk");
    (1..=written).for_each(|number| is_on_disk(&disk, number));
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_destination_without_the_disk_says_so_and_the_guest_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = make_disk(folder.path());
    let pair = Pair::taking_disks_in(folder.path());
    pair.a.run(&arguments("db", &disk)).ok();
    // Both hosts of the test are this machine: renaming the file is what makes it absent at the
    // destination.
    fs::rename(&disk, folder.path().join("elsewhere.raw")).expect("another name");
    let expected = format!("cannot use disk {}: No such file", disk.display());
    Migration::run(&pair.a, "db", &pair.b).stayed(&[&expected]);
    pair.a.guest("db").await_state("running");
}
