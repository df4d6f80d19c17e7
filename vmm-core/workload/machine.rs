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
