//! A guest's shape and state, from a peer or a file.

#![no_main]

use fuzz::file::{self, Encoded};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|both: (Encoded, Encoded)| {
    file::shape_and_state(&both);
});
