//! A guest that arrives: what its source says, in any order.

#![no_main]

use fuzz::arrival::{self, Arrival};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|arrival: Arrival| {
    arrival::arrive(&arrival);
});
