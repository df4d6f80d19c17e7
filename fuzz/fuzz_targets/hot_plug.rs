//! A guest's PCI bus, on which devices come and go.

#![no_main]

use fuzz::hot_plug::{self, BusScript};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: BusScript| {
    hot_plug::run(&script);
});
