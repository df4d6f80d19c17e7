//! A disk that may be written.

#![no_main]

use fuzz::driver::{self, DiskRequest, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script<DiskRequest>| {
    driver::run(driver::alone(&driver::disk()), &script);
});
