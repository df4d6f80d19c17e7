//! Registers of a device of each type: single reads and writes, with no driver by the rules in
//! between.

#![no_main]

use fuzz::driver::{self, RegisterScript};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: RegisterScript| {
    driver::run_registers(&script);
});
