//! A record after the other on `/dev/vda`, past every cache, and each read back before the next is
//! written.
//!
//! Record `n` is sector `n` of the disk: its number, in every word.

use crate::linux::{File, Sector};

const WORDS: usize = 64;

/// The disk.
pub struct Disk {
    file: File,
    written: u64,
    errors: u64,
}

impl Disk {
    /// Opens the disk.
    ///
    /// # Errors
    /// The number of the kernel's error.
    pub fn open() -> Result<Self, u64> {
        Ok(Self { file: File::open_direct(c"/dev/vda")?, written: 0, errors: 0 })
    }

    /// Reads the last record back and writes the next.
    pub fn turn(&mut self) {
        let mut sector = Sector([0; WORDS]);
        if self.written > 0 {
            let read = self.file.read_sector(self.written, &mut sector);
            self.errors += u64::from(!read || sector.0 != [self.written; WORDS]);
        }
        let next = self.written + 1;
        sector.0 = [next; WORDS];
        if self.file.write_sector(next, &sector) {
            self.written = next;
        } else {
            self.errors += 1;
        }
    }

    /// Records written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes that failed, and records that were not read back as they were written.
    pub fn errors(&self) -> u64 {
        self.errors
    }
}
