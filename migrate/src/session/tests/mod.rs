//! Whole migrations over loopback, with guests that consist only of memory.

mod cancel;
mod disks;
mod estimates;
#[cfg(feature = "failpoints")]
mod faults;
mod free_pages;
mod hints;
mod hostile;
mod links;
mod memory;
mod missing;
mod pool;
mod postcopy;
mod reconnect;
mod refusals;
mod relay;
mod serving;
mod standstill;
mod success;
mod world;

use std::sync::Arc;

use super::journal::Journal;
use super::limiter::Limiter;
use super::stream_sender::StreamContext;
use crate::failpoint::Failpoints;
use crate::guest::SourceGuest;
use crate::pages::{BufferPool, Compression};

/// What streams of `guest`, whose first `memory_chunks` chunks are memory, share.
fn context(guest: Arc<dyn SourceGuest>, memory_chunks: usize) -> StreamContext {
    StreamContext {
        journal: Arc::new(Journal::new(memory_chunks)),
        guest,
        limiter: Arc::new(Limiter::new(None)),
        totals: Arc::default(),
        pool: BufferPool::new(),
        compression: Compression::Off,
        failpoints: Failpoints::default(),
        memory_chunks,
        is_ending: Arc::default(),
        heat: Arc::default(),
        links: Arc::default(),
    }
}
