//! A network device whose wire is a socket instead of a tap: frames both ways, and commands.

#![no_main]

use fuzz::driver::{self, NetRequest, Network, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script<NetRequest, Network>| {
    driver::run(driver::network(), &script);
});
