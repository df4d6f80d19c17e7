//! A balloon: pages, statistics, free page hints, and its operator.

#![no_main]

use fuzz::driver::{self, BalloonRequest, Operator, Script};
use libfuzzer_sys::fuzz_target;
use vmm_core::DeviceConfig;
use vmm_core::virtio::balloon::FreePages;

fuzz_target!(|script: Script<BalloonRequest, Operator>| {
    driver::run(driver::alone(&DeviceConfig::Balloon(FreePages::Reported)), &script);
});
