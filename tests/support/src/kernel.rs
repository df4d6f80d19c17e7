//! Kernels and firmware of a few instructions, for guests that need to do nothing more.

use std::fs;
use std::path::{Path, PathBuf};

/// Guest physical address at which a kernel's code is loaded and entered.
const ADDRESS: u64 = 2 << 20;
/// Size of an ELF header (elf(5)), in bytes.
const HEADER_BYTES: u16 = 64;
/// Size of an ELF program header, in bytes.
const SEGMENT_BYTES: u16 = 56;
/// Types of program headers.
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Type of the note with the entry by PVH (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u32 = 18;
/// Sleeps forever: `hlt; jmp`.
const SLEEPER: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// Where [`SPEAKER`] has the address of its text.
const TEXT_AT: usize = 1;
/// Writes the text behind it to the serial port, and sleeps forever; of 32 bits.
const SPEAKER: [u8; 20] = [
    0xbe, 0, 0, 0, 0, // mov esi, text
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, 0x84, 0xc0, // next: lodsb; test al, al
    0x74, 0x03, // jz sleep
    0xee, 0xeb, 0xf8, // out dx, al; jmp next
    0xf4, 0xeb, 0xfd, // sleep: hlt; jmp sleep
];

/// Writes a kernel that sleeps forever into `folder`, and returns its path.
pub fn sleeper(folder: &Path) -> PathBuf {
    kernel(&folder.join("sleeper"), &SLEEPER)
}

/// Writes `code` to `path` as a kernel: an ELF file with one segment.
pub fn kernel(path: &Path, code: &[u8]) -> PathBuf {
    fs::write(path, elf(&[(PT_LOAD, code)])).expect("a kernel");
    path.to_owned()
}

/// Writes firmware that says `text` on the serial port, and nothing more, to `path`.
pub fn firmware(path: &Path, text: &str) -> PathBuf {
    let mut code = SPEAKER.to_vec();
    let text_address = ADDRESS as u32 + SPEAKER.len() as u32;
    code[TEXT_AT..TEXT_AT + 4].copy_from_slice(&text_address.to_le_bytes());
    code.extend(text.bytes());
    code.push(0);
    let mut note = [4, 8, PHYS32_ENTRY].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(ADDRESS.to_le_bytes());
    fs::write(path, elf(&[(PT_LOAD, &code), (PT_NOTE, &note)])).expect("firmware");
    path.to_owned()
}

/// Returns an ELF file with these segments, each of a type.
fn elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_X86_64, version; entry; program headers follow this one; no section headers.
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1_u32.to_le_bytes());
    elf.extend([ADDRESS, HEADER_BYTES.into(), 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    let count = segments.len() as u16;
    elf.extend([HEADER_BYTES, SEGMENT_BYTES, count, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = u64::from(HEADER_BYTES + count * SEGMENT_BYTES);
    for (kind, content) in segments {
        // Readable and executable: offset, addresses, sizes, alignment.
        elf.extend([*kind, 5].map(u32::to_le_bytes).concat());
        let (bytes, align) = (content.len() as u64, if *kind == PT_LOAD { 4096 } else { 4 });
        elf.extend([offset, ADDRESS, ADDRESS, bytes, bytes, align].map(u64::to_le_bytes).concat());
        offset += bytes;
    }
    segments.iter().for_each(|(_, content)| elf.extend(*content));
    elf
}
