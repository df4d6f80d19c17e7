//! Windows of the real ksmd. The tests need root and a kernel with KSM, take turns through a lock
//! of the host, and restore its settings. `LIGHTER_SKIP_KSM=1` skips them, for hosts without KSM or
//! whose ksmd must not be changed.

#![allow(clippy::unwrap_used)] // all of it is test

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use memopt::ksm::{Budget, Control, Driver, End, Knob, KsmError, Options, Set, Window};
use memopt::observe::{KsmKnobs, Sources, ksm_knobs, merged};

use support::ksm_turn::{FOLDER, KsmLock, set};

/// Pages of the process that is merged: 64 MiB.
const PAGES: u64 = 16_384;

/// Allows one test at a time on this host, including tests of other checkouts, and checks at the
/// end that all settings are unchanged.
struct Turn {
    before: KsmKnobs,
    lock: KsmLock,
}

impl Turn {
    /// Waits for the lock; `None` if these tests are to be skipped.
    fn take() -> Option<Self> {
        if std::env::var_os("LIGHTER_SKIP_KSM").is_some_and(|value| value == "1") {
            eprintln!("left out: LIGHTER_SKIP_KSM=1");
            return None;
        }
        let lock = KsmLock::take();
        let before = ksm_knobs(&Sources::system()).expect("KSM; LIGHTER_SKIP_KSM=1 leaves it out");
        assert_eq!(before.run, 0, "ksmd is in use on this host; LIGHTER_SKIP_KSM=1 leaves it out");
        Some(Self { before, lock })
    }

    fn assert_all_is_as_it_was(&self) {
        assert_eq!(ksm_knobs(&Sources::system()).unwrap(), self.before);
        assert!(self.lock.is_as_before());
    }
}

/// A QEMU that never runs its guest, whose memory contains the same page over and over. Pages of
/// zeros would not work: since Linux 6.12 they are dropped when their huge page is split, before
/// ksmd can merge them. QEMU is stopped on drop.
struct Duplicates(Child);

impl Duplicates {
    fn start(folder: &Path) -> Self {
        let content = folder.join("content");
        fs::write(&content, b"lighter!".repeat((PAGES * 512) as usize)).unwrap();
        let loader = format!("loader,file={},addr=0x1000000,force-raw=on", content.display());
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-S", "-display", "none", "-nodefaults", "-machine", "q35", "-accel", "tcg"]);
        qemu.args(["-m", "128", "-device", &loader, "-qmp", "stdio"]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut qemu = qemu.spawn().expect("QEMU; scripts/setup installs it");
        // QEMU greets early, and answers once its memory is filled.
        let mut asked = qemu.stdin.take().unwrap();
        asked.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
        let mut said = BufReader::new(qemu.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("return")));
        qemu.stdin = Some(asked);
        Self(qemu)
    }
}

impl Drop for Duplicates {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a driver in its own process, and waits until it has changed settings.
fn start_driver(journal: &Path) -> Child {
    let mut driver = Command::new(env!("CARGO_BIN_EXE_ksm-driver"));
    let mut driver =
        driver.arg(journal).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(driver.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "driving\n");
    driver
}

#[test]
fn duplicates_are_merged_in_a_window_and_the_settings_are_as_they_were() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let duplicates = Duplicates::start(folder.path());
    let sources = Sources::system();
    let (control, _) = Control::open(&sources, &folder.path().join("ksm.json")).unwrap();
    let time = Duration::from_secs(120);
    let budget = Budget { cpu_share: 0.5, cpu_time: time, pages_per_second: 200_000, time };
    let mut driver = Driver::new(&sources, control, Window::new(budget, Options::default()));
    let (_sender, cancel) = mpsc::channel();
    let outcome = driver.run(Duration::from_millis(250), &cancel).unwrap();
    println!("{outcome:?}");
    assert_eq!(outcome.end, End::Flat);
    assert!(driver.restored().foreign.is_empty());
    turn.assert_all_is_as_it_was();

    // Pages stay merged; up to 256 share one (`max_page_sharing`).
    let merged = merged(&sources, duplicates.0.id()).unwrap().expect("Linux 6.1 or later");
    assert!(merged.merging_pages + merged.zero_pages > PAGES * 9 / 10, "{merged:?}");
    assert!(outcome.gain_bytes > (PAGES * 4096 * 8 / 10) as i64, "{outcome:?}");
    let share = outcome.cpu.unwrap().as_secs_f64() / outcome.elapsed.as_secs_f64();
    // In a window this short, most of the time runs on the first guess. The bound leaves margin for
    // slow or busy hosts.
    assert!(share < 0.8, "ksmd used {share} of a CPU");
}

#[test]
fn a_killed_driver_leaves_a_journal_from_which_the_next_one_restores_everything() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("ksm.json");
    let mut driver = start_driver(&journal);
    let changed = ksm_knobs(&Sources::system()).unwrap();
    assert_ne!(changed, turn.before);

    let refused = Control::open(&Sources::system(), &journal).unwrap_err();
    assert!(matches!(refused, KsmError::Driven { .. }), "{refused}");
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert_eq!(ksm_knobs(&Sources::system()).unwrap(), changed, "nobody put anything back");

    let (control, restored) = Control::open(&Sources::system(), &journal).unwrap();
    assert_eq!(restored.restored.first(), Some(&Set::new(Knob::Run, 0)));
    assert!(restored.foreign.is_empty());
    turn.assert_all_is_as_it_was();
    drop(control);
    assert!(!journal.exists());
}

#[test]
fn a_driver_whose_owner_ends_restores_everything() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut driver = start_driver(&folder.path().join("ksm.json"));
    drop(driver.stdin.take());
    assert!(driver.wait().unwrap().success());
    turn.assert_all_is_as_it_was();
}

#[test]
fn a_setting_of_another_program_is_kept() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut driver = start_driver(&folder.path().join("ksm.json"));
    // Otherwise `wait` closes it, which ends the driver.
    let _stdin = driver.stdin.take();
    // As ksmtuned does.
    set("pages_to_scan", "1250");
    let began = Instant::now();
    assert!(driver.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(60), "it noticed by itself");
    let left = ksm_knobs(&Sources::system()).unwrap();
    let expected = KsmKnobs { pages_to_scan: 1250, ..turn.before };
    set("pages_to_scan", &turn.before.pages_to_scan.to_string());
    assert_eq!(left, expected);
}

#[test]
fn the_kernels_advisor_decides_again_afterwards() {
    let Some(turn) = Turn::take() else { return };
    if turn.before.advisor.is_none() {
        eprintln!("left out: this kernel has no advisor (Linux 6.8)");
        return;
    }
    let advisor = format!("{FOLDER}/advisor_mode");
    set("advisor_mode", "scan-time");
    let folder = tempfile::tempdir().unwrap();
    let mut driver = start_driver(&folder.path().join("ksm.json"));
    let during = fs::read_to_string(&advisor).unwrap();
    drop(driver.stdin.take());
    let ended = driver.wait().unwrap();
    let after = fs::read_to_string(&advisor).unwrap();
    set("advisor_mode", "none");
    set("pages_to_scan", &turn.before.pages_to_scan.to_string());
    assert!(ended.success());
    assert_eq!((during.trim(), after.trim()), ("[none] scan-time", "none [scan-time]"));
    turn.assert_all_is_as_it_was();
}
