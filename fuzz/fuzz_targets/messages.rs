//! Control messages of either side of a migration, and what is said at a node's door.

#![no_main]

use fuzz::peer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Without a byte for the kind there is no message.
    let _none = peer::messages(data);
});
