//! The file of a saved guest.

#![no_main]

use fuzz::file::{self, SavedGuest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|saved: SavedGuest| {
    file::saved_guest(&saved);
});
