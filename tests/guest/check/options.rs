//! Options from the kernel command line.
//!
//! | option | default | is |
//! |---|---|---|
//! | `mem=N[KMG]` | (needed) | the kernel's limit; memory is taken above it |
//! | `check.mib=N` | 64 | memory that is filled and checked, MiB |
//! | `check.ws=N` | all | part of it that is rewritten, MiB |
//! | `check.hot=N` | all | part of it that is rewritten as fast as the program can, on command, MiB |
//! | `check.rate=N` | 1000 | pages rewritten per second |
//! | `check.sweep=N` | 2000 | pages checked in the background per second |
//! | `check.random=N` | 100 | share of incompressible pages, percent |
//! | `check.text=N` | 0 | share of compressible pages, percent; the rest are zero |
//! | `check.sparse=1` | 0 | rewrites change 8 bytes of a page |
//! | `check.zeroing=N` | 0 | share of rewrites that clear the page, percent |
//! | `check.own=N` | 1 | seed of the pages: guests with the same seed have the same pages |
//! | `check.cache=N` | 0 | part of `/dev/vda` that is read into the cache and mapped first, MiB |
//! | `check.order=N` | 1 | seed of the order in which it is read |
//! | `check.litter=N` | 0 | memory filled with noise and returned to the kernel first, MiB |
//! | `check.button=1` | 0 | switch off when the power button is pressed |
//! | `check.halt=1` | 0 | sleep between turns (so that the vCPU halts) instead of spinning |
//! | `check.threads=N` | 1 | threads that share the memory and the rewrites, 8 at most |
//! | `check.vsock=N` | 0 | say back what is said at this vsock port |
//! | `check.disk=1` | 0 | write a record to `/dev/vda` for each line, and ask `/dev/hwrng` once |

/// The options from the command line.
#[derive(Clone, Copy)]
pub struct Options {
    /// Address of the first byte of memory that does not belong to the kernel.
    pub base: u64,
    /// Number of pages that are filled and checked.
    pub pages: u64,
    /// Number of pages that are rewritten.
    pub working_set_pages: u64,
    /// Number of pages that are rewritten as fast as the program can, on command.
    pub hot_pages: u64,
    /// Pages rewritten per second.
    pub rate: u64,
    /// Pages checked in the background per second.
    pub sweep: u64,
    /// Share of incompressible pages, in percent.
    pub random: u64,
    /// Share of compressible pages, in percent.
    pub text: u64,
    /// Share of rewrites that clear the page, in percent.
    pub zeroing: u64,
    /// Whether rewrites change 8 bytes of a page only.
    pub sparse: bool,
    /// Seed of the pages.
    pub own_seed: u64,
    /// Part of the disk that is read into the cache, in bytes.
    pub cache: u64,
    /// Seed of the order in which that part is read.
    pub cache_order: u64,
    /// Memory that is filled with noise and returned to the kernel at first, in bytes.
    pub litter: u64,
    /// Whether to power off when the power button is pressed.
    pub button: bool,
    /// Whether to sleep between iterations.
    pub halt: bool,
    /// Whether to write records to the disk.
    pub disk: bool,
    /// Number of threads that share the memory and the rewrites.
    pub threads: u64,
    /// Vsock port to listen at; 0 for none.
    pub vsock: u32,
}

const PAGES_PER_MIB: u64 = 256;
/// Most threads that share the memory.
pub const THREADS_MAX: u64 = 8;

impl Options {
    /// Reads the known options from `cmdline` and ignores the rest.
    pub fn parse(cmdline: &[u8]) -> Self {
        let value = |name: &[u8]| {
            let words = cmdline.split(|byte| byte.is_ascii_whitespace());
            words.filter_map(|word| word.strip_prefix(name)?.strip_prefix(b"=")).last().map(number)
        };
        let pages = value(b"check.mib").unwrap_or(64) * PAGES_PER_MIB;
        let part = |name: &[u8]| value(name).map_or(pages, |mib: u64| mib * PAGES_PER_MIB).min(pages);
        Self {
            base: value(b"mem").unwrap_or(0),
            pages,
            working_set_pages: part(b"check.ws"),
            hot_pages: part(b"check.hot"),
            rate: value(b"check.rate").unwrap_or(1000),
            sweep: value(b"check.sweep").unwrap_or(2000),
            random: value(b"check.random").unwrap_or(100),
            text: value(b"check.text").unwrap_or(0),
            zeroing: value(b"check.zeroing").unwrap_or(0),
            sparse: value(b"check.sparse").unwrap_or(0) != 0,
            own_seed: value(b"check.own").unwrap_or(1),
            cache: value(b"check.cache").unwrap_or(0) << 20,
            cache_order: value(b"check.order").unwrap_or(1),
            litter: value(b"check.litter").unwrap_or(0) << 20,
            button: value(b"check.button").unwrap_or(0) != 0,
            halt: value(b"check.halt").unwrap_or(0) != 0,
            disk: value(b"check.disk").unwrap_or(0) != 0,
            threads: value(b"check.threads").unwrap_or(1).clamp(1, THREADS_MAX),
            vsock: value(b"check.vsock").unwrap_or(0) as u32,
        }
    }
}

/// Digits, optionally followed by K, M or G. Anything else ends the number.
fn number(text: &[u8]) -> u64 {
    let mut value: u64 = 0;
    for byte in text {
        match byte {
            b'0'..=b'9' => value = value * 10 + u64::from(byte - b'0'),
            b'k' | b'K' => return value << 10,
            b'm' | b'M' => return value << 20,
            b'g' | b'G' => return value << 30,
            _ => return value,
        }
    }
    value
}
