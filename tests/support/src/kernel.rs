//! Kernels of a few instructions, for guests that need to do nothing more.

use std::fs;
use std::path::{Path, PathBuf};

/// Guest physical address at which a kernel's code is loaded and entered.
const ADDRESS: u64 = 2 << 20;
/// Size of an ELF header (elf(5)), in bytes.
const HEADER_BYTES: u16 = 64;
/// Size of an ELF program header, in bytes.
const SEGMENT_BYTES: u16 = 56;
/// Sleeps forever: `hlt; jmp`.
const SLEEPER: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// Writes a kernel that sleeps forever into `folder`, and returns its path.
pub fn sleeper(folder: &Path) -> PathBuf {
    kernel(&folder.join("sleeper"), &SLEEPER)
}

/// Writes `code` to `path` as a kernel: an ELF file with one segment.
pub fn kernel(path: &Path, code: &[u8]) -> PathBuf {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_X86_64, version; entry; program headers follow this one; no section headers.
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1_u32.to_le_bytes());
    elf.extend([ADDRESS, HEADER_BYTES.into(), 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    elf.extend([HEADER_BYTES, SEGMENT_BYTES, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // PT_LOAD, readable and executable: offset, addresses, sizes, alignment.
    elf.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    let offset = u64::from(HEADER_BYTES + SEGMENT_BYTES);
    let bytes = code.len() as u64;
    elf.extend([offset, ADDRESS, ADDRESS, bytes, bytes, 4096].map(u64::to_le_bytes).concat());
    elf.extend(code);
    fs::write(path, elf).expect("a kernel");
    path.to_owned()
}
