//! The kernel's samepage merging, for tests that need it to run. It belongs to the whole machine,
//! so they take turns.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::ksm_turn::{FOLDER, KsmLock, set};
use super::process::Pid;

/// Pages that are looked at in a row, with a millisecond between: some hundred MiB a second.
const KNOBS: [(&str, &str); 3] =
    [("pages_to_scan", "5000"), ("sleep_millisecs", "1"), ("run", "1")];

/// Keeps other tests' ksmd and mergeable guests away, for tests with such guests of their own: the
/// program drives ksmd for no domain as long as there are strangers. A test's first variable, so
/// that it is dropped last: its guests have ended by then, also when the test fails.
#[derive(Debug)]
pub struct KsmTurn(KsmLock);

impl KsmTurn {
    /// Waits for it. What is merged is taken apart (`2`) and forgotten, also what processes had
    /// merged that are gone: guests of tests whose turn it was before, and of tests that only wait
    /// for theirs, are as if nobody had driven ksmd.
    pub fn take() -> Self {
        let lock = KsmLock::take();
        let run = read(&format!("{FOLDER}/run"));
        set("run", "2");
        set("run", &run);
        Self(lock)
    }

    /// Makes ksmd scan fast until the returned value is dropped. The turn lasts until the guests
    /// have ended.
    #[must_use]
    pub fn scanning(&self) -> Scan<'_> {
        Scan::begin(self)
    }

    /// Whether each knob is as it was then.
    pub fn is_as_before(&self) -> bool {
        self.0.is_as_before()
    }
}

/// A ksmd that scans fast. Dropping it restores the knobs.
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

/// Bytes of a process's memory that the kernel may merge, and that are huge pages.
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

/// Pages of a process that are merged with others.
pub fn merged_pages(pid: Pid) -> u64 {
    let text = read(&format!("/proc/{}/ksm_merging_pages", pid.0));
    text.parse().expect("a number")
}

/// Frames of memory that a process maps and the kernel has merged (KPF_KSM of `/proc/kpageflags`).
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
