//! Whole migrations over loopback, with guests that consist only of memory.

mod cancel;
mod disks;
mod estimates;
#[cfg(feature = "failpoints")]
mod faults;
mod hints;
mod memory;
mod refusals;
mod relay;
mod standstill;
mod success;
mod world;
