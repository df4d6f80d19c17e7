//! Whole migrations over loopback, with guests that consist only of memory.

mod cancel;
mod disks;
mod estimates;
#[cfg(feature = "failpoints")]
mod faults;
mod hints;
mod hostile;
mod links;
mod memory;
mod missing;
mod pool;
mod postcopy;
mod refusals;
mod relay;
mod serving;
mod standstill;
mod success;
mod world;
