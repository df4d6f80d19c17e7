//! The kernel's samepage merging, for tests that need it to run. It belongs to the whole machine, so they take turns.

use std::fs::{self, File};

use super::process::Pid;

const FOLDER: &str = "/sys/kernel/mm/ksm";

/// Pages that are looked at in a row, with a millisecond between: some hundred MiB a second.
const KNOBS: [(&str, &str); 3] =
    [("pages_to_scan", "5000"), ("sleep_millisecs", "1"), ("run", "1")];

/// A ksmd that scans fast; as it was before when dropped.
#[derive(Debug)]
pub(crate) struct Ksm {
    before: Vec<(&'static str, String)>,
    _turn: File,
}

impl Ksm {
    /// Has ksmd scan.
    pub(crate) fn scanning() -> Self {
        let lock = std::env::temp_dir().join("lighter-tests-ksm.lock");
        let turn = File::create(lock).expect("a lock file");
        turn.lock().expect("a lock");
        let before = KNOBS.map(|(knob, _)| (knob, read(&format!("{FOLDER}/{knob}"))));
        let ksm = Self { before: before.into(), _turn: turn };
        KNOBS.iter().for_each(|(knob, value)| set(knob, value));
        ksm
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        self.before.iter().for_each(|(knob, value)| set(knob, value));
    }
}

/// Pages of a process that are merged with others.
pub(crate) fn merged_pages(pid: Pid) -> u64 {
    let text = read(&format!("/proc/{}/ksm_merging_pages", pid.0));
    text.parse().expect("a number")
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}

fn set(knob: &str, value: &str) {
    fs::write(format!("{FOLDER}/{knob}"), value).expect("this test drives ksmd, which takes root");
}
