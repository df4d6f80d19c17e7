//! Rings and descriptor chains of the simplest device, the entropy device.

#![no_main]

use fuzz::driver::{self, Fill, Script};
use libfuzzer_sys::fuzz_target;
use vmm_core::DeviceConfig;

fuzz_target!(|script: Script<Fill>| {
    driver::run(driver::alone(&DeviceConfig::Rng), &script);
});
