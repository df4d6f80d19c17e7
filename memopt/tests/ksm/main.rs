//! Windows of the real ksmd. They need root and a kernel with KSM, take turns through a lock of the
//! host, and leave its settings as they were. `LIGHTER_SKIP_KSM=1` leaves them out, for hosts that
//! have no KSM or whose ksmd is not to be touched.

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

/// One test at a time on this host, also of other checkouts; checks at the end that all settings
/// are as they were.
struct Turn {
    before: KsmKnobs,
    lock: KsmLock,
}

impl Turn {
    /// `None` when these tests are to be left out.
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

/// A QEMU that never runs its guest, in whose memory the same page lies over and over. Pages of
/// zeros would not do: since Linux 6.12 they are dropped when their huge page is split, before ksmd
/// can merge them. It ends when this is dropped.
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
        // It greets early, and answers when its memory is filled.
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

/// A driver in a process of its own that has changed settings.
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

    // Merged it stays; 256 pages share one (`max_page_sharing`).
    let merged = merged(&sources, duplicates.0.id()).unwrap().expect("Linux 6.1 or later");
    assert!(merged.merging_pages + merged.zero_pages > PAGES * 9 / 10, "{merged:?}");
    assert!(outcome.gain_bytes > (PAGES * 4096 * 8 / 10) as i64, "{outcome:?}");
    let share = outcome.cpu.unwrap().as_secs_f64() / outcome.elapsed.as_secs_f64();
    // In a window this short most of it is the first guess; a host that is slow or busy is given
    // room.
    assert!(share < 0.8, "ksmd used {share} of a CPU");
}

#[test]
fn a_killed_driver_leaves_a_journal_from_which_the_next_one_puts_everything_back() {
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
fn a_driver_whose_owner_goes_away_puts_everything_back() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut driver = start_driver(&folder.path().join("ksm.json"));
    drop(driver.stdin.take());
    assert!(driver.wait().unwrap().success());
    turn.assert_all_is_as_it_was();
}

#[test]
fn a_setting_that_somebody_else_makes_is_theirs() {
    let Some(turn) = Turn::take() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut driver = start_driver(&folder.path().join("ksm.json"));
    // Waiting closes it otherwise, which ends the driver.
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
