//! A test's turn with the host's ksmd: a lock of the whole host, across checkouts. The lock file
//! holds the original settings, so that the next test can restore what a killed test left changed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};

/// The kernel's folder of ksmd settings.
pub const FOLDER: &str = "/sys/kernel/mm/ksm";

/// The settings that a test must leave unchanged; older kernels lack some of them. In the order in
/// which they can be restored: while the advisor is on, it sets others itself.
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

/// The settings that this kernel has, one per line: name and value.
fn settings() -> String {
    let setting = |knob| {
        let text = fs::read_to_string(format!("{FOLDER}/{knob}")).ok()?;
        // Of the advisor's choices, the one in brackets is active.
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Some(format!("{knob} {}\n", chosen.map_or(text.trim(), |(chosen, _)| chosen)))
    };
    KNOBS.into_iter().filter_map(setting).collect()
}

/// The lock on the host's ksmd, held by one test at a time.
#[derive(Debug)]
pub struct KsmLock {
    file: File,
    before: String,
}

impl KsmLock {
    /// Waits for the lock, and restores the settings that a killed test left changed.
    pub fn take() -> Self {
        let path = std::env::temp_dir().join("lighter-tests-ksm.lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).expect("a lock file");
        file.lock().expect("a lock");
        let mut left = String::new();
        file.read_to_string(&mut left).expect("the file of the lock can be read");
        if !left.is_empty() && left != settings() {
            set("run", "2"); // the kernel refuses to change some settings while pages are merged
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

    /// Whether each setting is as it was when the lock was taken.
    pub fn is_as_before(&self) -> bool {
        settings() == self.before
    }
}

impl Drop for KsmLock {
    /// Keeps the original settings in the file if the test left some changed: the next test
    /// restores them.
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
