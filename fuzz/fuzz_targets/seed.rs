//! Documents of a seed disk, from a user or a peer.

#![no_main]

use fuzz::seed::{self, Documents};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|documents: Documents| {
    seed::seed(&documents);
});
