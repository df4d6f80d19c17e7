//! The host's pool of huge pages, for tests that need one. It belongs to the whole machine, so they
//! take turns.

use std::fs::{self, File};

use super::wait;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A pool of 2 MiB pages; as it was before when dropped, which is when the test's guests have
/// ended.
#[derive(Debug)]
pub struct Pool {
    before: u64,
    /// Pages that others had before.
    taken: u64,
    /// Shared with the tests of `vmm-core`, which may run at the same time.
    _turn: File,
}

impl Pool {
    /// A pool with exactly `pages` that nobody has.
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

    /// All its pages.
    pub fn all() -> u64 {
        count("nr_hugepages")
    }

    /// Pages that no process has touched.
    pub fn free() -> u64 {
        count("free_hugepages")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A process that was killed gives its pages back in its own time: what the next test
        // counted would not be there any more.
        if !std::thread::panicking() {
            wait::until("the test's guests give their huge pages back", || {
                wait::holds(taken() <= self.taken, taken())
            });
        }
        set(self.before);
    }
}

/// Pages that processes have, or were promised.
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
