//! Writes records to `/dev/vda` one after the other, bypassing every cache, and reads each back
//! before it writes the next.
//!
//! Record `n` is sector `n` of the disk, filled with its number in every word.

use crate::linux::{File, Sector};

const WORDS: usize = 64;

/// The disk, with counters.
pub struct Disk {
    file: File,
    written: u64,
    errors: u64,
}

impl Disk {
    /// Opens the disk.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
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

    /// Number of records written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Number of failed writes, and of records that were not read back as written.
    pub fn errors(&self) -> u64 {
        self.errors
    }
}
