//! A program that depends on the kernel's page cache: it reads random pages of `/dev/vda` through a
//! mapping. Cached pages are read at the speed of memory; each other page costs a page fault that
//! waits for the disk.

use core::ffi::CStr;
use core::hint::black_box;

use crate::line::Line;
use crate::linux::{self, File, tsc};
use crate::random::Random;
use crate::stamp::Shuffle;

const DISK: &CStr = c"/dev/vda";
/// Bytes of the disk that the program reads over and over.
const BYTES: u64 = 16 << 20;
const PAGE_BYTES: u64 = 4096;
const PIECE_BYTES: u64 = 64 << 10;
/// How long it reads, in seconds, and how many lines with its progress it prints per second.
const SECONDS: u64 = 10;
const LINES_PER_S: u64 = 10;
/// Pages read between two readings of the clock.
const STRIDE: u64 = 8;
/// Pages that one call of [`Cached::turn`] reads.
const TURN: u64 = 256;

/// A mapped part of the disk that fits into the cache.
pub struct Cached {
    bytes: &'static [u8],
    random: Random,
    is_reading: bool,
    read: u64,
    sum: u64,
}

impl Cached {
    /// Reads the first `bytes` of the disk into the cache, in pieces whose order depends on `seed`:
    /// guests that read the same disk then have its pages at different addresses.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn fill(bytes: u64, seed: u64) -> Result<Self, u64> {
        let (file, buffer) = (File::open(DISK)?, linux::allocate(PIECE_BYTES)?);
        let pieces = bytes / PIECE_BYTES;
        let order = Shuffle::new(1, pieces, seed);
        for piece in 0..pieces {
            file.read_at(order.source(piece) * PIECE_BYTES, buffer);
        }
        let mut cached = Self {
            bytes: linux::map_to_read(DISK, bytes)?,
            random: Random::new(),
            is_reading: false,
            read: 0,
            sum: 0,
        };
        cached.check();
        Ok(cached)
    }

    /// Reads some random pages if reading is on; returns whether it is.
    pub fn turn(&mut self) -> bool {
        if self.is_reading {
            let pages = self.bytes.len() as u64 / PAGE_BYTES;
            for _ in 0..TURN {
                let page = self.random.below(pages);
                let _ = black_box(self.bytes[(page * PAGE_BYTES) as usize]);
            }
            self.read += TURN;
        }
        self.is_reading
    }

    /// Turns reading on or off.
    pub fn toggle(&mut self) {
        self.is_reading = !self.is_reading;
    }

    /// Computes the checksum of the whole mapping.
    pub fn check(&mut self) {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let words = self.bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        self.sum = words.fold(0, |sum: u64, word| (sum.rotate_left(29) ^ word).wrapping_mul(FACTOR));
    }

    /// Number of pages read.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The last checksum.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Reads for some seconds and prints a line every tenth of a second. If `is_warm`, it first reads
/// every page into the cache.
pub fn read(is_warm: bool, hz: u64) {
    let Ok(pages) = linux::map_to_read(DISK, BYTES) else {
        return Line::new("cached nothing: the disk cannot be mapped").print();
    };
    let touch = |page: u64| {
        let _ = black_box(pages[(page * PAGE_BYTES) as usize]);
    };
    if is_warm {
        fill_cache();
        (0..BYTES / PAGE_BYTES).for_each(touch);
    }
    Line::new("cached begins").print();
    let (mut random, mut count) = (Random::new(), 0);
    let start = tsc();
    for tenth in 1..=SECONDS * LINES_PER_S {
        while tsc() < start + tenth * hz / LINES_PER_S {
            for _ in 0..STRIDE {
                touch(random.below(BYTES / PAGE_BYTES));
            }
            count += STRIDE;
        }
        let mut line = Line::new("cached");
        line.field("pages", count);
        line.field("us", linux::microseconds(tsc() - start, hz));
        line.print();
    }
    Line::new("cached ends").print();
}

/// Reads all of it once, in large pieces, to fill the cache.
fn fill_cache() {
    if let (Ok(file), Ok(buffer)) = (File::open(DISK), linux::allocate(PIECE_BYTES)) {
        for piece in 0..BYTES / PIECE_BYTES {
            file.read_at(piece * PIECE_BYTES, buffer);
        }
    }
}
