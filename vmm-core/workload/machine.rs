//! The few things that Rust cannot say: time stamps, ports, guest physical memory.

use core::arch::asm;

use crate::abi::DOORBELL_PORT;
use crate::stamp::PageWords;

/// The time stamp counter, read after everything before it.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC touches no memory; the VMM leaves CR4.TSD clear, so it is allowed at CPL 3.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Tells the host that `code` has happened on `vcpu`.
pub fn ring(vcpu: u64, code: u8) {
    let value = (vcpu as u32) << 8 | u32::from(code);
    // SAFETY: writes no memory; the VMM grants ports with IOPL 3. It orders all earlier stores.
    unsafe { asm!("out dx, eax", in("dx") DOORBELL_PORT, in("eax") value, options(nostack)) };
}

/// Runs until the VMM ends the guest: HLT is not allowed at CPL 3.
pub fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Reads the word at `gpa`, which the host may be writing.
pub fn read_word(gpa: u64) -> u64 {
    // SAFETY: all of RAM is mapped one to one, and addresses come from `abi` or the parameters.
    unsafe { (gpa as *const u64).read_volatile() }
}

/// Writes the word at `gpa`, which the host may be reading.
pub fn write_word(gpa: u64, word: u64) {
    // SAFETY: as in `read_word`; no Rust reference to these words exists.
    unsafe { (gpa as *mut u64).write_volatile(word) }
}

/// Reads `N` words from `gpa` on.
pub fn read_words<const N: usize>(gpa: u64) -> [u64; N] {
    core::array::from_fn(|index| read_word(gpa + index as u64 * 8))
}

/// Reads the `u32` at `gpa`.
pub fn read_u32(gpa: u64) -> u32 {
    // SAFETY: as in `read_word`.
    unsafe { (gpa as *const u32).read_volatile() }
}

/// Writes the `u32` at `gpa`.
pub fn write_u32(gpa: u64, value: u32) {
    // SAFETY: as in `write_word`.
    unsafe { (gpa as *mut u32).write_volatile(value) }
}

/// The page at `gpa`.
///
/// # Safety
/// The page is RAM of this vCPU's part, and no other reference to it is alive.
pub unsafe fn page<'a>(gpa: u64) -> &'a mut PageWords {
    // SAFETY: aligned, mapped, and exclusive by this function's contract.
    unsafe { &mut *(gpa as *mut PageWords) }
}

// Without a C library, these are ours: the compiler calls them for copies and comparisons.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid and do not overlap; the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's range is valid; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") count => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller's ranges are valid for `count` bytes.
        let (a, b) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: a forward copy never overwrites what it has yet to read here.
        return unsafe { memcpy(to, from, count) };
    }
    for index in (0..count).rev() {
        // SAFETY: the caller's ranges are valid for `count` bytes.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
    }
    to
}
