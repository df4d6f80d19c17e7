//! A network device on a wire that is no tap: frames both ways, and commands.

#![no_main]

use fuzz::driver::{self, NetRequest, Network, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script<NetRequest, Network>| {
    driver::run(driver::network(), &script);
});
