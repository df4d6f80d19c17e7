//! The system calls that the program needs, by number (arch/x86/entry/syscalls/syscall_64.tbl).

use core::arch::asm;
use core::ffi::CStr;

use crate::line::Line;
use crate::stamp::PageWords;

const READ: u64 = 0;
const WRITE: u64 = 1;
const OPEN: u64 = 2;
const CLOSE: u64 = 3;
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const IOCTL: u64 = 16;
const PREAD64: u64 = 17;
const PWRITE64: u64 = 18;
const MADVISE: u64 = 28;
const DUP2: u64 = 33;
const NANOSLEEP: u64 = 35;
const CLONE: u64 = 56;
const SOCKET: u64 = 41;
const BIND: u64 = 49;
const LISTEN: u64 = 50;
const MOUNT: u64 = 165;
const REBOOT: u64 = 169;
const CLOCK_GETTIME: u64 = 228;
const TIMERFD_CREATE: u64 = 283;
const TIMERFD_SETTIME: u64 = 286;
const ACCEPT4: u64 = 288;

const O_RDWR: u64 = 2;
const O_NONBLOCK: u64 = 0o4000;
const O_DSYNC: u64 = 0o10000;
const O_DIRECT: u64 = 0o40000;
const PROT_READ: u64 = 1;
const PROT_READ_WRITE: u64 = 3;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_FIXED: u64 = 0x11;
/// Private, anonymous, without a claim on memory (`MAP_NORESERVE`).
const MAP_RESERVE: u64 = 0x4022;
const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const AF_VSOCK: u64 = 40;
const SOCK_STREAM_NONBLOCK: u64 = 1 | O_NONBLOCK;
const ERROR_MAX: u64 = 4095;
/// The error of a read or accept that would have to wait (`EAGAIN`).
pub const WOULD_BLOCK: u64 = 11;
/// The errors of a reset connection (`ECONNRESET`, `ENOTCONN`): Linux returns the second one for
/// vsock.
pub const RESETS: [u64; 2] = [104, 107];
const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Where memory below the devices' addresses ends and where it goes on, in guests of lighter and of
/// QEMU's microvm.
const LOW_MEMORY_END: u64 = 3 << 30;
const HIGH_MEMORY_START: u64 = 4 << 30;
const STACK_BYTES: u64 = 64 << 10;

/// A clock, by its number for `clock_gettime`.
#[derive(Clone, Copy)]
pub enum Clock {
    /// Time of day.
    Realtime = 0,
    /// Time since boot.
    Monotonic = 1,
}

/// Reads the time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC touches no memory, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Converts ticks of the time stamp counter, which has `hz` per second, into microseconds.
pub fn microseconds(ticks: u64, hz: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(hz)) as u64
}

/// Opens the console as standard input and output, unbuffered, and mounts what that needs.
pub fn open_console() {
    // An init script may have done any of these before; then they fail, which is fine.
    let _ = mount(c"devtmpfs", c"/dev");
    let _ = mount(c"proc", c"/proc");
    let Ok(console) = open(c"/dev/console", O_RDWR | O_NONBLOCK) else { return };
    for standard in 0..3 {
        let _ = call(DUP2, [console, standard, 0, 0, 0, 0]);
    }
    let mut settings = [0u32; 16];
    if call(IOCTL, [0, TCGETS, settings.as_mut_ptr() as u64, 0, 0, 0]).is_ok() {
        // Fourth word of `struct termios`: ICANON (2) and ECHO (8).
        settings[3] &= !(2 | 8);
        let _ = call(IOCTL, [0, TCSETS, settings.as_ptr() as u64, 0, 0, 0]);
    }
}

/// Returns a byte that was typed on the console, if any; never waits.
pub fn typed() -> Option<u8> {
    let mut byte = 0u8;
    let read = call(READ, [0, &raw mut byte as u64, 1, 0, 0, 0]);
    (read == Ok(1)).then_some(byte)
}

/// Writes all of `bytes` to the console, waiting for room.
pub fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match call(WRITE, [1, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0]) {
            Ok(count) => bytes = &bytes[count as usize..],
            Err(_) => sleep(1_000_000),
        }
    }
}

/// Prints `what` and `number`, and resets the machine.
pub fn fail(what: &str, number: u64) -> ! {
    let mut line = Line::new(what);
    line.number(number);
    line.print();
    sleep(1_000_000_000);
    reset()
}

/// Resets the machine.
pub fn reset() -> ! {
    const RESTART: u64 = 0x0123_4567;
    reboot(RESTART)
}

/// Powers the machine off.
pub fn power_off() -> ! {
    const POWER_OFF: u64 = 0x4321_fedc;
    reboot(POWER_OFF)
}

fn reboot(command: u64) -> ! {
    loop {
        // LINUX_REBOOT_MAGIC1, _MAGIC2
        let _ = call(REBOOT, [0xfee1_dead, 0x2812_1969, command, 0, 0, 0]);
    }
}

/// An I/O port, through `/dev/port`.
pub struct Port {
    file: u64,
    number: u64,
}

impl Port {
    /// Opens the port `number`.
    pub fn open(number: u16) -> Option<Self> {
        let file = open(c"/dev/port", O_RDWR).ok()?;
        Some(Self { file, number: number.into() })
    }

    /// Reads a byte.
    pub fn read(&self) -> u8 {
        let mut byte = 0u8;
        let _ = call(PREAD64, [self.file, &raw mut byte as u64, 1, self.number, 0, 0]);
        byte
    }

    /// Writes a byte.
    pub fn write(&self, byte: u8) {
        let _ = call(PWRITE64, [self.file, &raw const byte as u64, 1, self.number, 0, 0]);
    }
}

/// The beginning of a file, as much as fits into `buffer`; empty if the file cannot be read.
pub fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let Ok(file) = open(path, 0) else { return &[] };
    let at = buffer.as_mut_ptr() as u64;
    let count = call(READ, [file, at, buffer.len() as u64, 0, 0, 0]).unwrap_or(0);
    let _ = call(CLOSE, [file, 0, 0, 0, 0, 0]);
    &buffer[..count as usize]
}

/// Maps physical memory from `address` on, without the addresses of devices: a ledger with one word
/// per page, followed by `count` pages.
///
/// Call it once: what it returns must be the only reference to that memory.
///
/// # Errors
/// The kernel's error number, if a system call fails.
pub fn map_physical(
    address: u64,
    count: u64,
) -> Result<(&'static mut [u32], &'static mut [PageWords]), u64> {
    let ledger_bytes = (count * 4).next_multiple_of(PAGE_BYTES);
    let bytes = ledger_bytes + count * PAGE_BYTES;
    let memory = open(c"/dev/mem", O_RDWR)?;
    let start = call(MMAP, [0, bytes, 0, MAP_RESERVE, u64::MAX, 0])?;
    let low_bytes = bytes.min(LOW_MEMORY_END.saturating_sub(address));
    let high_address = address.max(LOW_MEMORY_END) - LOW_MEMORY_END + HIGH_MEMORY_START;
    let pieces = [(0, low_bytes, address), (low_bytes, bytes - low_bytes, high_address)];
    for (offset, length, address) in pieces.into_iter().filter(|piece| piece.1 > 0) {
        let place = [start + offset, length, PROT_READ_WRITE, MAP_SHARED_FIXED, memory, address];
        let _ = call(MMAP, place)?;
    }
    let ledger = start as *mut u32;
    let pages = (start + ledger_bytes) as *mut PageWords;
    // SAFETY: the kernel has just created a mapping of `bytes` at `start`, page-aligned, to which
    // nothing else refers; the two slices fit into it and do not overlap, and every bit pattern is
    // a valid integer.
    unsafe {
        Ok((
            core::slice::from_raw_parts_mut(ledger, count as usize),
            core::slice::from_raw_parts_mut(pages, count as usize),
        ))
    }
}

/// Allocates `bytes` of private memory, in whole pages.
///
/// # Errors
/// The kernel's error number, if a system call fails.
pub fn allocate(bytes: u64) -> Result<&'static mut [u8], u64> {
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    let start = call(MMAP, [0, bytes, PROT_READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0])?;
    // SAFETY: the kernel has just created a zero-filled mapping of `bytes` at `start`, to which
    // nothing else refers.
    Ok(unsafe { core::slice::from_raw_parts_mut(start as *mut u8, bytes as usize) })
}

/// Maps the beginning of a file for random reads, without readahead.
///
/// # Errors
/// The kernel's error number, if a system call fails.
pub fn map_to_read(path: &CStr, bytes: u64) -> Result<&'static [u8], u64> {
    const RANDOM: u64 = 1;
    let file = open(path, 0)?;
    let start = call(MMAP, [0, bytes, PROT_READ, MAP_SHARED, file, 0])?;
    let _ = call(CLOSE, [file, 0, 0, 0, 0, 0]);
    call(MADVISE, [start, bytes, RANDOM, 0, 0, 0])?;
    // SAFETY: the kernel has just mapped `bytes` at `start`, and no process writes to the file.
    Ok(unsafe { core::slice::from_raw_parts(start as *const u8, bytes as usize) })
}

/// Fills `bytes` of memory with noise and returns them to the kernel, so that its free memory is
/// not zero.
///
/// # Errors
/// The kernel's error number, if a system call fails.
pub fn litter(bytes: u64) -> Result<(), u64> {
    const PRIVATE_ANONYMOUS_POPULATED: u64 = 0x8022;
    let flags = PRIVATE_ANONYMOUS_POPULATED;
    let start = call(MMAP, [0, bytes, PROT_READ_WRITE, flags, u64::MAX, 0])?;
    // SAFETY: the kernel has just created a mapping of `bytes` at `start`, page-aligned, to which
    // nothing else refers; the slice is not used after the unmapping.
    let words = unsafe { core::slice::from_raw_parts_mut(start as *mut u64, bytes as usize / 8) };
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for word in words {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        *word = noise;
    }
    call(MUNMAP, [start, bytes, 0, 0, 0, 0]).map(drop)
}

/// The time on `clock`, in nanoseconds.
pub fn now(clock: Clock) -> u64 {
    let mut time = [0u64; 2];
    let _ = call(CLOCK_GETTIME, [clock as u64, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
    time[0] * 1_000_000_000 + time[1]
}

/// Sleeps for `ns` nanoseconds.
pub fn sleep(ns: u64) {
    let time = [ns / 1_000_000_000, ns % 1_000_000_000];
    let _ = call(NANOSLEEP, [time.as_ptr() as u64, 0, 0, 0, 0, 0]);
}

/// Starts a thread that calls `run` with `work`.
///
/// # Errors
/// The kernel's error number, if a system call fails.
pub fn start_thread<T: Send + 'static>(work: T, run: fn(T) -> !) -> Result<(), u64> {
    /// What the thread takes over, at the lower end of its stack.
    struct Start<T> {
        work: T,
        run: fn(T) -> !,
    }
    extern "C" fn enter<T>(start: *const Start<T>) -> ! {
        // SAFETY: the caller wrote it there for this thread, which reads it once.
        let Start { work, run } = unsafe { start.read() };
        run(work)
    }
    // CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD, _SYSVSEM
    const THREAD: u64 = 0x5_0f00;
    let stack = allocate(STACK_BYTES)?;
    let start = stack.as_mut_ptr().cast::<Start<T>>();
    // SAFETY: the stack is page-aligned, far larger than a `Start`, and nothing else refers to it.
    unsafe { start.write(Start { work, run }) };
    let top = stack.as_mut_ptr() as u64 + STACK_BYTES;
    let result: u64;
    // SAFETY: the new thread runs on a stack of its own, aligned as the ABI wants it, and never
    // returns from `enter`. R8 is the thread pointer, which the kernel ignores without
    // CLONE_SETTLS. For this thread, the kernel changes only RAX, RCX and R11.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r8", "call r9", "ud2", "2:",
            inlateout("rax") CLONE => result, in("rdi") THREAD, in("rsi") top, in("rdx") 0, in("r10") 0,
            in("r8") start, in("r9") enter::<T> as extern "C" fn(*const Start<T>) -> !,
            lateout("rcx") _, lateout("r11") _);
    }
    as_result(result).map(drop)
}

/// A periodic timer on the monotonic clock.
pub struct Timer(u64);

impl Timer {
    /// Creates a timer that expires every `period_ns` from now on.
    pub fn every(period_ns: u64) -> Self {
        let spec = [0, period_ns, 0, period_ns];
        match call(TIMERFD_CREATE, [Clock::Monotonic as u64, O_NONBLOCK, 0, 0, 0, 0]) {
            Ok(timer) => {
                let _ = call(TIMERFD_SETTIME, [timer, 0, spec.as_ptr() as u64, 0, 0, 0]);
                Self(timer)
            }
            Err(error) => fail("check: cannot make a timer, error ", error),
        }
    }

    /// How often the timer has expired since the last call.
    pub fn expiries(&self) -> u64 {
        let mut count = 0u64;
        match call(READ, [self.0, &raw mut count as u64, 8, 0, 0, 0]) {
            Ok(8) => count,
            _ => 0,
        }
    }
}

/// A sector, aligned for direct I/O.
#[repr(C, align(512))]
pub struct Sector(pub [u64; 64]);

/// An open block device.
pub struct File(u64);

impl File {
    /// Opens the device for reading through the page cache.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn open(path: &CStr) -> Result<Self, u64> {
        open(path, 0).map(Self)
    }

    /// Opens the device so that reads and writes bypass every cache.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn open_direct(path: &CStr) -> Result<Self, u64> {
        open(path, O_RDWR | O_DIRECT | O_DSYNC).map(Self)
    }

    /// Opens the device so that reads and writes bypass the guest's cache and complete once they
    /// are in the disk's.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn open_past_cache(path: &CStr) -> Result<Self, u64> {
        open(path, O_RDWR | O_DIRECT).map(Self)
    }

    /// Fills `buffer` from byte `offset` on; false if that fails.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let (at, length) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
        call(PREAD64, [self.0, at, length, offset, 0, 0]) == Ok(length)
    }

    /// Writes `buffer` from byte `offset` on; false if that fails.
    pub fn write_at(&self, offset: u64, buffer: &[u8]) -> bool {
        let (at, length) = (buffer.as_ptr() as u64, buffer.len() as u64);
        call(PWRITE64, [self.0, at, length, offset, 0, 0]) == Ok(length)
    }

    /// Reads a sector; false if that fails.
    pub fn read_sector(&self, number: u64, sector: &mut Sector) -> bool {
        let at = (&raw mut sector.0) as u64;
        let read = call(PREAD64, [self.0, at, SECTOR_BYTES, number * SECTOR_BYTES, 0, 0]);
        read == Ok(SECTOR_BYTES)
    }

    /// Writes a sector; false if that fails.
    pub fn write_sector(&self, number: u64, sector: &Sector) -> bool {
        let at = (&raw const sector.0) as u64;
        let written = call(PWRITE64, [self.0, at, SECTOR_BYTES, number * SECTOR_BYTES, 0, 0]);
        written == Ok(SECTOR_BYTES)
    }
}

/// A nonblocking vsock socket: a call that would have to wait is an error.
pub struct VsockSocket(u64);

impl VsockSocket {
    /// Listens at `port`.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn listen(port: u32) -> Result<Self, u64> {
        let socket = call(SOCKET, [AF_VSOCK, SOCK_STREAM_NONBLOCK, 0, 0, 0, 0])?;
        // `struct sockaddr_vm`: family, port, address (any), rest.
        let address = [AF_VSOCK as u32, port, u32::MAX, 0];
        let _ = call(BIND, [socket, address.as_ptr() as u64, 16, 0, 0, 0])?;
        let _ = call(LISTEN, [socket, 8, 0, 0, 0, 0])?;
        Ok(Self(socket))
    }

    /// Accepts a connection, if there is one.
    pub fn accept(&self) -> Option<Self> {
        call(ACCEPT4, [self.0, 0, 0, O_NONBLOCK, 0, 0]).ok().map(Self)
    }

    /// Reads the data that has arrived.
    ///
    /// # Errors
    /// The kernel's error number; [`WOULD_BLOCK`] if no data has arrived.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, u64> {
        let at = buffer.as_mut_ptr() as u64;
        call(READ, [self.0, at, buffer.len() as u64, 0, 0, 0]).map(|count| count as usize)
    }

    /// Writes `bytes` or the first of them; returns how many.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let at = bytes.as_ptr() as u64;
        call(WRITE, [self.0, at, bytes.len() as u64, 0, 0, 0]).unwrap_or(0) as usize
    }
}

impl Drop for VsockSocket {
    fn drop(&mut self) {
        let _ = call(CLOSE, [self.0, 0, 0, 0, 0, 0]);
    }
}

fn open(path: &CStr, flags: u64) -> Result<u64, u64> {
    call(OPEN, [path.as_ptr() as u64, flags, 0, 0, 0, 0])
}

fn mount(kind: &CStr, folder: &CStr) -> Result<u64, u64> {
    let kind = kind.as_ptr() as u64;
    call(MOUNT, [kind, folder.as_ptr() as u64, kind, 0, 0, 0])
}

fn call(number: u64, arguments: [u64; 6]) -> Result<u64, u64> {
    let [a, b, c, d, e, f] = arguments;
    let result: u64;
    // SAFETY: every caller passes pointers to its own memory, which outlives the call and is as
    // large as the call says; the kernel changes only RAX, RCX and R11.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    as_result(result)
}

fn as_result(answer: u64) -> Result<u64, u64> {
    let error = answer.wrapping_neg();
    if (1..=ERROR_MAX).contains(&error) { Err(error) } else { Ok(answer) }
}
