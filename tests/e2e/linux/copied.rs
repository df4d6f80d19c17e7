//! A Linux guest that writes files to its ext4 file system while its disk is copied to another
//! host, and continues there.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::disk::{MIB, boot_with};
use support::checks::nothing_left_behind;
use support::linux::image::BOOT_PATIENCE;
use support::linux::witness::CheckConsole;
use support::{Host, Migration, NodePlan, Pair, wait};

/// Number of files that must have been written before the migration, and again after it.
const FILES: u64 = 3;

/// Runs a program on the host and returns its output.
#[track_caller]
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said} {complaint}");
    said
}

/// Number of files that the guest reports as written.
fn written(host: &Host) -> u64 {
    let console = CheckConsole::of(host, "db", MIB * 256).console();
    assert!(!console.contains("files: cannot write"), "{console}");
    let counts =
        console.lines().filter_map(|line| line.trim().strip_prefix("files ")?.parse().ok());
    counts.max().unwrap_or(0)
}

#[track_caller]
fn await_files(host: &Host, count: u64) {
    wait::within(BOOT_PATIENCE, "linux writes files", || {
        wait::holds(written(host) >= count, CheckConsole::of(host, "db", MIB * 256).console())
    });
}

/// Asserts that the file system is sound once its journal has been replayed, as at every mount, and
/// that all files have the content that was written. Returns the number of files.
#[track_caller]
fn files_are_sound(disk: &Path, folder: &Path) -> u64 {
    let disk = disk.display().to_string();
    // Exit code 1: e2fsck has replayed the journal.
    let replayed = Command::new("e2fsck").args(["-p", &disk]).status().expect("e2fsck");
    assert!(matches!(replayed.code(), Some(0 | 1)), "{replayed}");
    host("e2fsck", &["-f", "-n", &disk]);
    fs::create_dir(folder).expect("a folder");
    host("debugfs", &["-R", &format!("rdump / {}", folder.display()), &disk]);
    let sums = fs::read_to_string(folder.join("sums")).expect("checksums");
    for line in sums.lines() {
        let (sum, file) = line.split_once("  ").unwrap_or_else(|| panic!("{sums}"));
        let found = host("md5sum", &[&folder.join(file).display().to_string()]);
        assert!(found.starts_with(sum), "{file}: {found} instead of {sum}");
    }
    sums.lines().count() as u64
}

#[test]
fn linux_moves_with_its_ext4_while_it_writes_to_it() {
    let mut pair = Pair::without_nodes();
    let [here, there] = ["a", "b"].map(|name| pair.folder().join(format!("disks-{name}")));
    let plan = |folder: &Path| {
        fs::create_dir(folder).expect("a folder");
        let arguments = vec!["--disk-dir".to_owned(), folder.display().to_string()];
        NodePlan { arguments, ..NodePlan::default() }
    };
    pair.a.start_node(&plan(&here));
    pair.b.start_node(&plan(&there));
    let [here, there] = [here, there].map(|folder| folder.join("db.raw"));
    host("mkfs.ext4", &["-q", &here.display().to_string(), "64M"]);
    pair.a.run(&boot_with("db", &here, "check.ext4=1")).ok();
    await_files(&pair.a, FILES);
    let before = written(&pair.a);

    let path = format!("{}={}", here.display(), there.display());
    let copy = ["--copy-disks", "--disk-path", &path, "--bandwidth", "20MB/s", "--downtime", "3s"];
    let report = Migration::start(&pair.a, "db", &pair.b, &copy).finish().ok();
    assert!(report["transfer"]["disk_pages"].as_u64() > Some(0), "{report:#}");
    await_files(&pair.b, before + FILES);
    let after = written(&pair.b);
    pair.b.run(&["destroy", "db"]).ok();

    assert!(files_are_sound(&there, &pair.folder().join("there")) >= after);
    // The source's file is as it was at the switchover.
    assert!(files_are_sound(&here, &pair.folder().join("here")) >= before);
    nothing_left_behind(&pair.hosts());
}
