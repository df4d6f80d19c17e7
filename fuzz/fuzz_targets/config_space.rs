//! The PCI configuration space of a device of each type: any offset, in any width.

#![no_main]

use fuzz::driver::{self, ConfigScript};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: ConfigScript| {
    driver::run_config(&script);
});
