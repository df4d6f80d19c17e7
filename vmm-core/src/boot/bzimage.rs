//! Loads a bzImage: checks the setup header first, then loads the compressed kernel that follows
//! it.
//!
//! This uses the 64-bit boot protocol (Documentation/arch/x86/boot.rst), which skips the real-mode
//! part. The file may be hostile: the header is read at fixed offsets, and every number in it is
//! checked against the guest's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{ByteValued, GuestAddress};

use super::kernel::{Entry, Kernel};
use super::layout::HIGH_MEMORY;
use crate::memory::GuestRam;

/// Offset of the setup header, in the file and in `boot_params` alike.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// Offset of the magic "HdrS".
pub(super) const MAGIC_OFFSET: usize = 0x202;
/// "HdrS", little-endian.
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Version 2.12, the first with a 64-bit entry (Linux 3.8).
const VERSION_MIN: u16 = 0x020c;
/// `loadflags`: the kernel is loaded above 1 MiB, as every bzImage is.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: the kernel has a 64-bit entry.
const KERNEL_64: u16 = 1 << 0;
/// Offset of the 64-bit entry in the loaded kernel.
const ENTRY_64: u64 = 0x200;
const SECTOR_BYTES: u64 = 512;
/// Sectors of the real-mode part when the header says 0.
const SETUP_SECTORS_DEFAULT: u8 = 4;

/// Loads the bzImage in `file`, `bytes` long, into memory that ends at `low_end`.
///
/// # Errors
/// A description of what is wrong with the file, as the end of a sentence.
pub(super) fn load(
    ram: &GuestRam,
    low_end: u64,
    file: &mut File,
    bytes: u64,
) -> Result<Kernel, String> {
    let mut head = [0; SETUP_HEADER + size_of::<setup_header>()];
    file.read_exact_at(&mut head, 0).map_err(|error| format!("its header: {error}"))?;
    let plan = Plan::new(&head, bytes, low_end)?;
    BzImage::load(ram.memory(), Some(GuestAddress(plan.load)), file, None)
        .map_err(|error| error.to_string())?;
    Ok(Kernel {
        entry: Entry::Boot64 { at: plan.load + ENTRY_64, setup: plan.setup },
        end: plan.end,
        initrd_end_max: plan.initrd_end_max,
        cmdline_bytes_max: plan.cmdline_bytes_max,
    })
}

/// Where a bzImage is loaded, and what it requires.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Where the compressed kernel is loaded.
    load: u64,
    /// End of the memory that the kernel needs before it has read its memory map.
    end: u64,
    /// End of the memory in which the initrd may lie.
    initrd_end_max: u64,
    /// Longest command line that the kernel accepts, without the final zero.
    cmdline_bytes_max: usize,
    /// The setup header for `boot_params`, with the length that the kernel declares.
    setup: Vec<u8>,
}

impl Plan {
    /// Plans the load from `head`, the first bytes of a file of `file_bytes`, into memory that ends
    /// at `low_end`.
    fn new(head: &[u8], file_bytes: u64, low_end: u64) -> Result<Self, String> {
        let header = head.get(SETUP_HEADER..).unwrap_or_default();
        let header = header.get(..size_of::<setup_header>()).unwrap_or_default();
        let header = setup_header::from_slice(header).copied().ok_or("it ends in its header")?;
        check(&header)?;
        let sectors =
            if header.setup_sects == 0 { SETUP_SECTORS_DEFAULT } else { header.setup_sects };
        let kernel_bytes = file_bytes
            .checked_sub((u64::from(sectors) + 1) * SECTOR_BYTES)
            .filter(|bytes| *bytes > ENTRY_64)
            .ok_or("it ends before its kernel begins")?;
        let (load, runs_at) = places(&header)?;
        let ends = [load.checked_add(kernel_bytes), runs_at.checked_add(header.init_size.into())];
        let end = ends.into_iter().flatten().max().filter(|_| !ends.contains(&None));
        let end = end.ok_or("it wants to be at an impossible address")?;
        if end > low_end {
            let need = end.div_ceil(1 << 20);
            return Err(format!("it needs the guest to have at least {need} MiB of memory"));
        }
        Ok(Self {
            load,
            end,
            initrd_end_max: low_end.min(u64::from(header.initrd_addr_max) + 1),
            cmdline_bytes_max: header.cmdline_size as usize,
            setup: own_part(head),
        })
    }
}

/// Refuses a kernel that has no 64-bit entry to start at.
fn check(header: &setup_header) -> Result<(), String> {
    let (magic, flag, version) = (header.header, header.boot_flag, header.version);
    if magic != MAGIC || flag != BOOT_FLAG {
        return Err("it has no setup header".into());
    }
    if version < VERSION_MIN {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(format!(
            "it speaks boot protocol {major}.{minor:02}, at least 2.12 (Linux 3.8) is needed"
        ));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err("it is a zImage".into());
    }
    let xloadflags = header.xloadflags;
    if xloadflags & KERNEL_64 == 0 {
        return Err("it is a 32-bit kernel".into());
    }
    Ok(())
}

/// Returns where the compressed kernel is loaded, and where it runs after unpacking itself: at its
/// preferred address or, if it is relocatable, at the first aligned address at or above the load
/// address, whichever is higher.
fn places(header: &setup_header) -> Result<(u64, u64), String> {
    let (preferred, alignment) = (header.pref_address, u64::from(header.kernel_alignment));
    if header.relocatable_kernel == 0 {
        if preferred < HIGH_MEMORY {
            return Err(format!("it wants to be at {preferred:#x}, which is not free"));
        }
        return Ok((preferred, preferred));
    }
    if !alignment.is_power_of_two() {
        return Err(format!("its alignment is {alignment:#x}, which is not a power of two"));
    }
    Ok((HIGH_MEMORY, HIGH_MEMORY.next_multiple_of(alignment).max(preferred)))
}

/// The part of the setup header that this kernel defines: it ends at the target of the header's
/// jump.
fn own_part(head: &[u8]) -> Vec<u8> {
    let jump = head.get(MAGIC_OFFSET - 1).copied().unwrap_or(0);
    let end = (MAGIC_OFFSET + usize::from(jump)).min(SETUP_HEADER + size_of::<setup_header>());
    head.get(SETUP_HEADER..end).unwrap_or_default().to_vec()
}

#[cfg(test)]
#[path = "bzimage/tests.rs"]
mod tests;
