//! Whole migrations over loopback, with guests that are nothing but memory.

mod memory;
mod refusals;
mod success;
mod world;
