//! Running totals of the data streams: every stream adds to them, and the driver reads them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::progress::Transfer;

/// Totals over all data streams so far.
#[derive(Debug, Default)]
pub(super) struct Totals {
    wire_bytes: AtomicU64,
    frames: AtomicU64,
    zero_pages: AtomicU64,
    raw_pages: AtomicU64,
    lz4_pages: AtomicU64,
    lz4_bytes: AtomicU64,
    disk_pages: AtomicU64,
    disk_zero_pages: AtomicU64,
    disk_wire_bytes: AtomicU64,
    hinted_pages: AtomicU64,
}

impl Totals {
    pub(super) fn add(&self, frame: &Transfer) {
        self.wire_bytes.fetch_add(frame.wire_bytes, Relaxed);
        self.frames.fetch_add(frame.frames, Relaxed);
        self.zero_pages.fetch_add(frame.zero_pages, Relaxed);
        self.raw_pages.fetch_add(frame.raw_pages, Relaxed);
        self.lz4_pages.fetch_add(frame.lz4_pages, Relaxed);
        self.lz4_bytes.fetch_add(frame.lz4_bytes, Relaxed);
        self.disk_pages.fetch_add(frame.disk_pages, Relaxed);
        self.disk_zero_pages.fetch_add(frame.disk_zero_pages, Relaxed);
        self.disk_wire_bytes.fetch_add(frame.disk_wire_bytes, Relaxed);
        self.hinted_pages.fetch_add(frame.hinted_pages, Relaxed);
    }

    pub(super) fn read(&self) -> Transfer {
        Transfer {
            wire_bytes: self.wire_bytes.load(Relaxed),
            frames: self.frames.load(Relaxed),
            zero_pages: self.zero_pages.load(Relaxed),
            raw_pages: self.raw_pages.load(Relaxed),
            lz4_pages: self.lz4_pages.load(Relaxed),
            lz4_bytes: self.lz4_bytes.load(Relaxed),
            disk_pages: self.disk_pages.load(Relaxed),
            disk_zero_pages: self.disk_zero_pages.load(Relaxed),
            disk_wire_bytes: self.disk_wire_bytes.load(Relaxed),
            hinted_pages: self.hinted_pages.load(Relaxed),
        }
    }
}
