//! vsock connections between the guest and programs on its host.

#![no_main]

use fuzz::driver::{self, Program, Script, VsockRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script<VsockRequest, Program>| {
    driver::run(driver::sockets(), &script);
});
