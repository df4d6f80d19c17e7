//! A writable disk that is being copied at the same time.

#![no_main]

use fuzz::driver::{self, Copier, DiskRequest, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script<DiskRequest, Copier>| {
    driver::run(driver::copied_disk(), &script);
});
