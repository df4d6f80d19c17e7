//! Requests for certificates, and certificates that a host installs.

#![no_main]

use fuzz::certificate::{self, Text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: Text| {
    certificate::read(&text);
});
