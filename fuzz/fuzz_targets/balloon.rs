//! A balloon: pages, statistics, free memory, and its operator.

#![no_main]

use fuzz::driver::{self, BalloonRequest, Script};
use libfuzzer_sys::fuzz_target;
use vmm_core::DeviceConfig;

fuzz_target!(|script: Script<BalloonRequest>| {
    driver::run(&DeviceConfig::Balloon, &script);
});
