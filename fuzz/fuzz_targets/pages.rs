//! Page frames, as they arrive on the data streams of a migration.

#![no_main]

use fuzz::peer::{self, PageStream};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frames: PageStream| {
    peer::pages(&frames);
});
