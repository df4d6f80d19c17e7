//! A disk in a qcow2 image, whose tables may contain anything.

#![no_main]

use fuzz::driver::{self, Damaged};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|damaged: Damaged| {
    driver::image(&damaged);
});
