//! A Linux guest with a disk and a source of entropy, migrated while it writes.
//!
//! It is booted anew: a disk belongs to one guest, so a saved one cannot be started twice. Its first process writes records,
//! syncs them and reads them back (`tests/guest/disk`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::image::{guest_folder, script};
use crate::host::checks::nothing_left_behind;
use crate::host::{Exit, Host, Migration, Pair, wait};

/// Booting takes half a minute where KVM emulates the guest's kernel, and the machine may be busy.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// A record takes a second or two there.
const RECORD_PATIENCE: Duration = Duration::from_secs(120);
/// Records to be written on each host.
const RECORDS: u64 = 3;
const SECTOR_BYTES: u64 = 512;

/// What the guest said last.
#[derive(Debug)]
struct Line {
    record: u64,
    read: u64,
    errors: u64,
    random: u64,
}

/// The last whole line of the guest's console on `host`, or the console.
fn last_line(host: &Host) -> Result<Line, String> {
    let console = host.state_dir().join("guests/db/console.log");
    let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().rev().find_map(parse).ok_or(text)
}

fn parse(line: &str) -> Option<Line> {
    let mut numbers = line.trim().strip_prefix("disk ")?.split(' ').map(|field| {
        let (_, number) = field.split_once('=')?;
        number.parse().ok()
    });
    let mut next = || numbers.next().flatten();
    Some(Line { record: next()?, read: next()?, errors: next()?, random: next()? })
}

/// Waits until the guest has written at least `record` and found all that it read as it was written.
#[track_caller]
fn await_record(host: &Host, record: u64, patience: Duration) -> Line {
    let line = wait::within(patience, "linux writes to its disk", || {
        let line = last_line(host)?;
        if line.record >= record { Ok(line) } else { Err(format!("{line:?}")) }
    });
    assert_eq!((line.errors, line.read), (0, line.record - 1), "{line:?}");
    line
}

/// Record `number` is on the disk, as this host sees it.
#[track_caller]
fn is_on_disk(disk: &Path, number: u64) {
    let expected = format!("record {number}\n");
    let mut bytes = vec![0; expected.len() + 1];
    let file = fs::File::open(disk).expect("the disk");
    file.read_exact_at(&mut bytes, number * SECTOR_BYTES).expect("the record's sector");
    assert_eq!(String::from_utf8_lossy(&bytes), expected + "\0");
}

#[test]
fn linux_with_a_disk_goes_on_writing_at_the_destination() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.raw");
    fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("a disk");
    let [kernel, initrd] = ["kernel.sh", "initramfs.sh"].map(script);
    let options = fs::read_to_string(guest_folder().join("cmdline")).expect("a command line");
    let cmdline = format!("console=ttyS0 quiet rdinit=/disk {}", options.trim());
    let disk_argument = format!("{},serial=db-1", disk.display());
    let run = |host: &Host, name: &str| {
        host.run(&[
            "run",
            "--detach",
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
            &disk_argument,
            "--rng",
        ])
    };

    let pair = Pair::new();
    run(&pair.a, "db").ok();
    let before = await_record(&pair.a, RECORDS, BOOT_PATIENCE);
    assert_eq!(before.random, 64, "bytes of entropy");
    run(&pair.b, "thief").complains(Exit::Failed, &["disk.raw is in use by another guest"]);

    Migration::run(&pair.a, "db", &pair.b).ok();
    let after = await_record(&pair.b, before.record + RECORDS, RECORD_PATIENCE);
    run(&pair.a, "thief").complains(Exit::Failed, &["disk.raw is in use by another guest"]);
    Migration::run(&pair.b, "db", &pair.a).ok();
    let back = await_record(&pair.a, after.record + RECORDS, RECORD_PATIENCE);

    (1..back.record).for_each(|number| is_on_disk(&disk, number));
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_destination_without_the_disk_says_so_and_the_guest_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.raw");
    fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("a disk");
    let kernel = script("kernel.sh");
    let pair = Pair::new();
    let disk_argument = disk.display().to_string();
    pair.a
        .run(&[
            "run",
            "--detach",
            "--name",
            "db",
            "--memory",
            "64M",
            "--kernel",
            &kernel,
            "--disk",
            &disk_argument,
        ])
        .ok();
    // Both hosts of the test are this one: taking the name away is what tells them apart.
    fs::rename(&disk, folder.path().join("elsewhere.raw")).expect("another name");
    let expected = format!("cannot use disk {}: No such file", disk.display());
    Migration::run(&pair.a, "db", &pair.b).stayed(&[&expected]);
    pair.a.guest("db").await_state("running");
}
