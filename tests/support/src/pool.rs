//! The host's pool of huge pages, for tests that need one. There is one per machine, so these tests
//! take turns.

use std::fs::{self, File};

use super::wait;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A pool of 2 MiB pages. Dropping it waits until the test's guests have ended, and restores the
/// previous size.
#[derive(Debug)]
pub struct Pool {
    before: u64,
    /// Pages that other processes had before.
    taken: u64,
    /// The lock file is shared with the tests of `vmm-core`, which may run at the same time.
    _turn: File,
}

impl Pool {
    /// Resizes the pool so that exactly `pages` are available.
    pub fn of_2m(pages: u64) -> Self {
        let lock = std::env::temp_dir().join("lighter-tests-hugetlb.lock");
        let turn = File::create(lock).expect("a lock file");
        turn.lock().expect("a lock");
        let before = count("nr_hugepages");
        let taken = taken();
        set(taken + pages);
        assert_eq!(
            count("nr_hugepages"),
            taken + pages,
            "this machine has no memory for huge pages"
        );
        Self { before, taken, _turn: turn }
    }

    /// Number of pages in the pool, used or not.
    pub fn all() -> u64 {
        count("nr_hugepages")
    }

    /// Number of pages that no process has touched.
    pub fn free() -> u64 {
        count("free_hugepages")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A killed process returns its pages with a delay; without this wait, the next test would
        // count them as taken.
        if !std::thread::panicking() {
            wait::until("the test's guests give their huge pages back", || {
                wait::holds(taken() <= self.taken, taken())
            });
        }
        set(self.before);
    }
}

/// Number of pages that processes use or have reserved.
fn taken() -> u64 {
    count("nr_hugepages") - count("free_hugepages") + count("resv_hugepages")
}

fn count(file: &str) -> u64 {
    let text = fs::read_to_string(format!("{POOL}/{file}")).expect("a kernel with huge pages");
    text.trim().parse().expect("a number")
}

fn set(pages: u64) {
    fs::write(format!("{POOL}/nr_hugepages"), pages.to_string())
        .expect("this test makes a pool of huge pages, which takes root");
}
