//! The speed of `/dev/vda`, for the benchmark: a number of reads or writes, one after the other,
//! bypassing the guest's cache.

use crate::line::Line;
use crate::linux::{self, File, tsc};
use crate::random::Random;

/// Bytes of the disk that are used.
const DISK_BYTES: u64 = 64 << 20;
/// Size of a request at a random offset, in bytes.
const SMALL_BYTES: u64 = 4 << 10;
/// Size of a sequential request, in bytes.
const LARGE_BYTES: u64 = 256 << 10;
/// Number of requests at random offsets.
const SMALL_COUNT: u64 = 1000;

/// Measures what `letter` selects and prints a line, which may take several seconds.
///
/// | letter | does |
/// |---|---|
/// | `R` | reads 4 KiB at random places |
/// | `W` | writes 4 KiB at random places |
/// | `S` | reads 64 MiB sequentially |
/// | `T` | writes 64 MiB sequentially |
pub fn measure(letter: u8, hz: u64) {
    let opened = File::open_past_cache(c"/dev/vda");
    let (Ok(file), Ok(buffer)) = (opened, linux::allocate(LARGE_BYTES)) else {
        return Line::new("disk cannot be measured").print();
    };
    let is_random = matches!(letter, b'R' | b'W');
    let (bytes, count) =
        if is_random { (SMALL_BYTES, SMALL_COUNT) } else { (LARGE_BYTES, DISK_BYTES / LARGE_BYTES) };
    let buffer = &mut buffer[..bytes as usize];
    buffer.fill(letter);
    let (mut errors, mut random) = (0, Random::new());
    let start = tsc();
    for index in 0..count {
        let place = if is_random { random.below(DISK_BYTES / bytes) } else { index };
        let done = match letter {
            b'R' | b'S' => file.read_at(place * bytes, buffer),
            _ => file.write_at(place * bytes, buffer),
        };
        errors += u64::from(!done);
    }
    let took = tsc().wrapping_sub(start);
    let mut line = Line::new("disk");
    line.field("count", count);
    line.field("bytes", count * bytes);
    line.field("errors", errors);
    line.field("us", linux::microseconds(took, hz));
    line.print();
}
