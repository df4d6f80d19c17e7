//! Kernel samepage merging, for tests that need it to run. There is one ksmd per machine, so these
//! tests take turns.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::ksm_turn::{FOLDER, KsmLock, set};
use super::process::Pid;

/// Makes ksmd scan 5000 pages in a row, with a pause of a millisecond: some hundred MiB a second.
const KNOBS: [(&str, &str); 3] =
    [("pages_to_scan", "5000"), ("sleep_millisecs", "1"), ("run", "1")];

/// A turn with ksmd, for tests with mergeable guests: it keeps out the mergeable guests of other
/// tests, because the program drives ksmd for no domain while there are foreign ones. Make it the
/// first variable of the test, so that it is dropped last: the test's guests have ended by then,
/// also if the test fails.
#[derive(Debug)]
pub struct KsmTurn(KsmLock);

impl KsmTurn {
    /// Waits for the turn. Then unmerges all pages (`run` = 2) and discards ksmd's state, also for
    /// processes that no longer exist, so that earlier tests and guests of tests that wait for
    /// their turn leave no trace of merging.
    pub fn take() -> Self {
        let lock = KsmLock::take();
        let run = read(&format!("{FOLDER}/run"));
        set("run", "2");
        set("run", &run);
        Self(lock)
    }

    /// Makes ksmd scan fast until the returned value is dropped. The turn itself lasts until the
    /// guests have ended.
    #[must_use]
    pub fn scanning(&self) -> Scan<'_> {
        Scan::begin(self)
    }

    /// Whether each setting of ksmd is as it was when the turn began.
    pub fn is_as_before(&self) -> bool {
        self.0.is_as_before()
    }
}

/// A phase in which ksmd scans fast. Dropping it restores the settings.
#[derive(Debug)]
pub struct Scan<'a> {
    before: [(&'static str, String); KNOBS.len()],
    _turn: &'a KsmTurn,
}

impl<'a> Scan<'a> {
    fn begin(turn: &'a KsmTurn) -> Self {
        let before = KNOBS.map(|(knob, _)| (knob, read(&format!("{FOLDER}/{knob}"))));
        KNOBS.iter().for_each(|(knob, value)| set(knob, value));
        Self { before, _turn: turn }
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        self.before.iter().for_each(|(knob, value)| set(knob, value));
    }
}

/// Bytes of a process's memory that ksmd may merge, and bytes in huge pages.
pub fn marked_and_huge(pid: Pid) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/smaps", pid.0)).expect("a process");
    let (mut size, mut marked, mut huge) = (0, 0, 0);
    for line in text.lines() {
        let kib = |name: &str| -> Option<u64> {
            line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
        };
        size = kib("Size:").unwrap_or(size);
        huge += kib("AnonHugePages:").unwrap_or(0);
        if line.starts_with("VmFlags:") && line.contains(" mg") {
            marked += size;
        }
    }
    (marked << 10, huge << 10)
}

/// Number of a process's pages that ksmd has merged.
pub fn merged_pages(pid: Pid) -> u64 {
    let text = read(&format!("/proc/{}/ksm_merging_pages", pid.0));
    text.parse().expect("a number")
}

/// Page frames that a process maps and ksmd has merged (KPF_KSM of `/proc/kpageflags`).
pub fn merged_frames(pid: Pid) -> BTreeSet<u64> {
    const KPF_KSM: u64 = 1 << 21;
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let table = File::open(format!("/proc/{}/pagemap", pid.0)).expect("a process");
    let flags = File::open("/proc/kpageflags").expect("root may read it");
    let word = |file: &File, index: u64| {
        let mut bytes = [0; 8];
        let read = file.read_exact_at(&mut bytes, index * 8);
        read.map(|()| u64::from_le_bytes(bytes)).unwrap_or_default()
    };
    let maps = read(&format!("/proc/{}/maps", pid.0));
    let pages = maps.lines().flat_map(|line| {
        let (begin, rest) = line.split_once('-').expect("a range");
        let end = rest.split(' ').next().expect("its end");
        let page = |text| u64::from_str_radix(text, 16).expect("an address") / 4096;
        page(begin)..page(end)
    });
    let entries = pages.map(|page| word(&table, page)).filter(|entry| entry & PRESENT != 0);
    let frames = entries.map(|entry| entry & FRAME);
    frames.filter(|frame| word(&flags, *frame) & KPF_KSM != 0).collect()
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}
