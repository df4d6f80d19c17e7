//! A program that lives from the kernel's cache: it reads pages of `/dev/vda` at random through a
//! mapping. What the cache holds is read at the speed of memory; for all else it waits for the
//! disk, at a page fault each.

use core::ffi::CStr;
use core::hint::black_box;

use crate::line::Line;
use crate::linux::{self, File, tsc};
use crate::random::Random;
use crate::stamp::Shuffle;

const DISK: &CStr = c"/dev/vda";
/// Bytes of the disk that it reads, over and over.
const BYTES: u64 = 16 << 20;
const PAGE_BYTES: u64 = 4096;
const PIECE_BYTES: u64 = 64 << 10;
/// How long it reads, and how often it says how many pages it has read, in lines each second.
const SECONDS: u64 = 10;
const LINES_PER_S: u64 = 10;
/// Pages between two looks at the clock.
const STRIDE: u64 = 8;
/// Pages that [`Cached::turn`] reads.
const TURN: u64 = 256;

/// A part of the disk that the cache holds all of, mapped.
pub struct Cached {
    bytes: &'static [u8],
    random: Random,
    is_reading: bool,
    read: u64,
    sum: u64,
}

impl Cached {
    /// Reads the first `bytes` of the disk, in pieces whose order follows from `seed`: guests that
    /// read the same disk have its pages at different addresses.
    ///
    /// # Errors
    /// The number of the kernel's error.
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

    /// Reads some pages at random if it is to; returns whether it is.
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

    /// Begins to read pages, or ends.
    pub fn toggle(&mut self) {
        self.is_reading = !self.is_reading;
    }

    /// Sums up all that is mapped.
    pub fn check(&mut self) {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let words = self.bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        self.sum = words.fold(0, |sum: u64, word| (sum.rotate_left(29) ^ word).wrapping_mul(FACTOR));
    }

    /// Pages read.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The last sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Reads for some seconds, after it has had every page read into the cache if it shall be `warm`;
/// prints a line each tenth of a second.
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

/// Reads all of it once, in large pieces.
fn fill_cache() {
    if let (Ok(file), Ok(buffer)) = (File::open(DISK), linux::allocate(PIECE_BYTES)) {
        for piece in 0..BYTES / PIECE_BYTES {
            file.read_at(piece * PIECE_BYTES, buffer);
        }
    }
}
