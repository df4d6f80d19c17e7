//! The MSI-X table of a device that interrupts while its driver writes nonsense there.

#![no_main]

use fuzz::driver::{self, MsixScript};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: MsixScript| {
    driver::run_msix(&script);
});
