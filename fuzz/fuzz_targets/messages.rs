//! Control messages of either side of a migration, and requests to a node.

#![no_main]

use fuzz::peer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Input without a byte for the kind contains no message.
    let _none = peer::messages(data);
});
