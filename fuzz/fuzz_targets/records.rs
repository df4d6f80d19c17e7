//! A migration's record, which decides who may run the guest.

#![no_main]

use fuzz::file::{self, Line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: Vec<Line>| {
    file::record(&lines);
});
