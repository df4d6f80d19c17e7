//! Saves a guest to a file and restores it: [`save`] and [`restore`]. [`save_template`] and
//! [`Template`] do so for files from which many guests are started.
//!
//! The file holds what a migration sends: the guest's [`crate::VmShape`], its [`crate::VmState`],
//! and its memory in chunks, without those that are zero. All numbers are little-endian:
//!
//! | what | bytes |
//! |---|---|
//! | magic `LIGHTER\n`, format version | 8, 4 |
//! | length of the shape, the shape | 4, n |
//! | length of the state, the state | 4, n |
//! | XXH3-64 of everything so far | 8 |
//! | per non-zero chunk: number, mask of non-zero pages, these, XXH3-64 of the three | 8, 8, n, 8 |
//! | end: number 2^64 - 1, number of chunks written, XXH3-64 of the two | 8, 8, 8 |
//!
//! A file appears under its name only when it is complete and on disk. A guest is restored only
//! from a file that is intact to its end, and by default only if its disks have not been written
//! since ([`crate::virtio::block::Seal`]).

mod format;
mod partial;
mod read;
mod template;
mod write;

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use partial::PartialFile;
#[cfg(feature = "fuzzing")]
pub use read::read_into_new;
pub use read::{SavedDisks, read_guest, restore};
pub use template::{CloneConfig, Template, save_template, save_template_into};
pub use write::{DiskCopies, SnapshotReport, save, save_into};

/// Versions of the format of saved guests that can be read; the last one is written.
pub const SAVED_VERSIONS: RangeInclusive<u32> = format::VERSIONS;

/// Version of the templates' format, the only one that is read and written.
pub const TEMPLATE_VERSION: u32 = format::TEMPLATE_VERSION;

/// Failure to save a guest to a file or to restore it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file could not be written.
    #[error("cannot save the guest to {}: {cause}", path.display())]
    Write {
        /// Path of the file to be written.
        path: PathBuf,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "cannot save the guest to {}: no space left after {written} bytes; up to {} MiB may be needed",
        path.display(), needed >> 20
    )]
    DiskFull {
        /// Path of the file to be written.
        path: PathBuf,
        /// Bytes written before the disk was full.
        written: u64,
        /// Largest possible size of the file, in bytes.
        needed: u64,
    },
    /// The file could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Path of the saved guest or template.
        path: PathBuf,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The file was not written by [`save`] or `save_template`.
    #[error("{} is neither a saved guest nor a template", path.display())]
    Foreign {
        /// Path of the file that was given.
        path: PathBuf,
    },
    /// The file is a template, and a saved guest was wanted.
    #[error("{0} is a template: `lighter run --template {0}` starts a guest from it", path.display())]
    Template {
        /// Path of the template.
        path: PathBuf,
    },
    /// The file is a saved guest, and a template was wanted.
    #[error("{0} is a saved guest: `lighter restore {0}` continues it", path.display())]
    Guest {
        /// Path of the saved guest.
        path: PathBuf,
    },
    /// The file has a format version that this program does not know.
    #[error(
        "{} has snapshot format {found}, this program knows {known}; use the version of lighter that wrote it",
        path.display()
    )]
    Version {
        /// Path of the saved guest or template.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// The file is cut off.
    #[error("{} is cut off: it was not copied or written completely", path.display())]
    Truncated {
        /// Path of the incomplete file.
        path: PathBuf,
    },
    /// The file's content differs from what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Path of the damaged file.
        path: PathBuf,
        /// The part that is damaged.
        what: String,
    },
    /// The template's guest writes a disk, which its clones cannot share.
    #[error(
        "clones of {} would all write its disk {}: give each a copy of that disk with --disk, or make a template \
         of a guest that only reads it",
        template.display(), disk.display()
    )]
    TemplateDisk {
        /// Path of the template.
        template: PathBuf,
        /// Path of the first disk that the template's guest writes.
        disk: PathBuf,
    },
    /// The template's guest has a MAC address, which its clones cannot share.
    #[error(
        "a guest with network devices makes no template: its clones would all have its address"
    )]
    TemplateNetwork,
    /// The clone's disks do not match the template's.
    #[error("a clone of {} needs {wanted}, copies of those that its guest had, in the same order", template.display())]
    TemplateDisks {
        /// Path of the template.
        template: PathBuf,
        /// The disks that the template requires.
        wanted: String,
    },
}
