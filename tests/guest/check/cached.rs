//! A program that lives from the kernel's cache: it reads pages of `/dev/vda` at random through a mapping. What the cache holds is read
//! at the speed of memory; for all else it waits for the disk, at a page fault each.

use core::ffi::CStr;
use core::hint::black_box;

use crate::line::Line;
use crate::linux::{self, File, tsc};
use crate::random::Random;

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

/// Reads for some seconds, after it has had every page read into the cache if it shall be `warm`; prints a line each tenth of a second.
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
