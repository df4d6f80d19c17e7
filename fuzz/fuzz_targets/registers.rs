//! Registers of a device of each type: single reads and writes, not in the order in which a
//! compliant driver uses them.

#![no_main]

use fuzz::driver::{self, RegisterScript};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: RegisterScript| {
    driver::run_registers(&script);
});
