//! An incoming guest: messages of its source, in any order.

#![no_main]

use fuzz::arrival::{self, Arrival};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|arrival: Arrival| {
    arrival::arrive(&arrival);
});
