//! Rings and descriptor chains, in front of the simplest device: a source of entropy.

#![no_main]

use fuzz::driver::{self, Fill, Script};
use libfuzzer_sys::fuzz_target;
use vmm_core::DeviceConfig;

fuzz_target!(|script: Script<Fill>| {
    driver::run(driver::alone(&DeviceConfig::Rng), &script);
});
