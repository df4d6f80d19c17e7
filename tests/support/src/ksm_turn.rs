//! A test's turn with the host's ksmd: a lock of the host, also for other checkouts. The file of
//! the lock holds the settings as they were, so that a test that was killed leaves nothing changed
//! for the next.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};

/// Where the kernel has the settings of ksmd.
pub const FOLDER: &str = "/sys/kernel/mm/ksm";

/// What must be as before when a program has driven ksmd; older kernels do not have all of them.
/// In an order in which they can be put back: the advisor would decide about others.
const KNOBS: [&str; 8] = [
    "advisor_mode",
    "max_page_sharing",
    "merge_across_nodes",
    "pages_to_scan",
    "sleep_millisecs",
    "smart_scan",
    "use_zero_pages",
    "run",
];

/// The settings that there are, one a line: its name and its value.
fn settings() -> String {
    let setting = |knob| {
        let text = fs::read_to_string(format!("{FOLDER}/{knob}")).ok()?;
        // The choices of the advisor: the one in brackets is on.
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Some(format!("{knob} {}\n", chosen.map_or(text.trim(), |(chosen, _)| chosen)))
    };
    KNOBS.into_iter().filter_map(setting).collect()
}

/// The lock.
#[derive(Debug)]
pub struct KsmLock {
    file: File,
    before: String,
}

impl KsmLock {
    /// Waits for it, and puts back what a test has left changed that was killed.
    pub fn take() -> Self {
        let path = std::env::temp_dir().join("lighter-tests-ksm.lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).expect("a lock file");
        file.lock().expect("a lock");
        let mut left = String::new();
        file.read_to_string(&mut left).expect("the file of the lock can be read");
        if !left.is_empty() && left != settings() {
            set("run", "2"); // what is merged keeps some settings from being changed
            left.lines()
                .filter_map(|line| line.split_once(' '))
                .for_each(|(knob, value)| set(knob, value));
            assert_eq!(settings(), left, "the settings of ksmd are put back");
        }
        file.set_len(0).and_then(|()| file.rewind()).expect("the file of the lock can be written");
        let before = settings();
        file.write_all(before.as_bytes()).expect("the file of the lock can be written");
        Self { file, before }
    }

    /// Whether each setting is as it was then.
    pub fn is_as_before(&self) -> bool {
        settings() == self.before
    }
}

impl Drop for KsmLock {
    /// What a test that fails has left changed is put back by the next.
    fn drop(&mut self) {
        if self.is_as_before() {
            let _ = self.file.set_len(0);
        }
    }
}

/// Changes a setting.
pub fn set(knob: &str, value: &str) {
    fs::write(format!("{FOLDER}/{knob}"), value).expect("this test drives ksmd, which takes root");
}
