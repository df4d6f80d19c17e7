//! Loads a kernel of either format into guest memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::GuestAddress;

use super::layout::{CMDLINE_BYTES_MAX, HIGH_MEMORY};
use super::{BootError, bzimage};
use crate::memory::GuestRam;

/// How a kernel is entered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Through its PVH note, in 32-bit protected mode.
    Pvh {
        /// Its first instruction.
        at: u64,
    },
    /// By the 64-bit boot protocol.
    Boot64 {
        /// Its first instruction.
        at: u64,
        /// The kernel's own setup header; empty for an ELF image.
        setup: Vec<u8>,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    /// How it is entered.
    pub(super) entry: Entry,
    /// End of the memory that the kernel itself needs.
    pub(super) end: u64,
    /// End of the memory in which its initrd may lie.
    pub(super) initrd_end_max: u64,
    /// Longest command line that the kernel accepts, without the final zero.
    pub(super) cmdline_bytes_max: usize,
}

/// The format of a kernel file, detected by content.
enum Format {
    Elf,
    BzImage,
}

impl Format {
    fn of(file: &File) -> Option<Self> {
        let holds = |at: usize, wanted: &[u8; 4]| {
            let mut found = [0; 4];
            file.read_exact_at(&mut found, at as u64).is_ok() && found == *wanted
        };
        if holds(0, b"\x7fELF") {
            Some(Self::Elf)
        } else if holds(bzimage::MAGIC_OFFSET, b"HdrS") {
            Some(Self::BzImage)
        } else {
            None
        }
    }
}

/// Loads the kernel in `file`, which was opened at `path`.
///
/// # Errors
/// [`BootError::Kernel`] if the file is no kernel that can be started or does not fit;
/// `BootError::Read` if its length cannot be read.
pub(super) fn load(ram: &GuestRam, path: &Path, file: &mut File) -> Result<Kernel, BootError> {
    let refused = |reason: String| BootError::Kernel { path: path.to_path_buf(), reason };
    let unreadable = |cause| BootError::Read { what: "kernel", path: path.to_path_buf(), cause };
    let bytes = file.metadata().map_err(unreadable)?.len();
    let low_end = ram.layout().regions()[0].bytes;
    let kernel = match Format::of(file) {
        Some(Format::Elf) => load_elf(ram, low_end, file),
        Some(Format::BzImage) => bzimage::load(ram, low_end, file, bytes),
        None => Err("it is neither an ELF vmlinux nor a bzImage: give one for x86-64".into()),
    };
    kernel.map_err(refused)
}

/// Loads the ELF image in `file` to the addresses that it names, which must be below `low_end`.
///
/// # Errors
/// Why it cannot be loaded.
pub(super) fn load_image(
    ram: &GuestRam,
    low_end: u64,
    file: &mut File,
) -> Result<KernelLoaderResult, String> {
    let high_memory = Some(GuestAddress(HIGH_MEMORY));
    let loaded =
        Elf::load(ram.memory(), None, file, high_memory).map_err(|error| error.to_string())?;
    if loaded.kernel_end > low_end {
        let need = loaded.kernel_end >> 20;
        return Err(format!("it needs the guest to have more than {need} MiB of memory"));
    }
    Ok(loaded)
}

fn load_elf(ram: &GuestRam, low_end: u64, file: &mut File) -> Result<Kernel, String> {
    let loaded = load_image(ram, low_end, file)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Entry::Pvh { at: entry.0 },
        _ => Entry::Boot64 { at: loaded.kernel_load.0, setup: Vec::new() },
    };
    Ok(Kernel {
        entry,
        end: loaded.kernel_end,
        initrd_end_max: low_end,
        cmdline_bytes_max: CMDLINE_BYTES_MAX,
    })
}
