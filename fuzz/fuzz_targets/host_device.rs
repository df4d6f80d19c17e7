//! The configuration space of a device of the host, in the hands of a guest.

#![no_main]

use fuzz::host_device::{self, HostDevice};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|device: HostDevice| {
    host_device::see(&device);
});
