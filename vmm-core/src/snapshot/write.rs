//! Saving.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::SnapshotError;
use super::format::{END, MAGIC, VERSION};
use crate::error::Result;
use crate::memory::{CHUNK_BYTES, PAGE_BYTES};
use crate::{GuestRam, Vm};

/// What a save has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Length of the file.
    pub file_bytes: u64,
    /// Pages of guest memory in it.
    pub pages: u64,
    /// Pages of guest memory left out because they are zero.
    pub zero_pages: u64,
}

/// Saves a paused guest to `path`, replacing what is there. The file appears complete or not at all.
/// The guest stays paused.
///
/// # Errors
/// [`crate::Error::WrongState`] unless paused; [`SnapshotError`]. After an error nothing is left
/// behind, and a file that was there before is untouched.
pub fn save(vm: &Vm, path: &Path) -> Result<SnapshotReport> {
    let header = header(vm)?;
    let partial = PartialFile::create(path)?;
    let report = partial.fill(vm, &header)?;
    partial.finish()?;
    Ok(report)
}

/// Everything before the memory.
fn header(vm: &Vm) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    for section in [vm.shape().to_bytes()?, vm.save_state()?.to_bytes()?] {
        bytes.extend((section.len() as u32).to_le_bytes());
        bytes.extend(section);
    }
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Writes everything; returns how many pages that was.
fn write_guest(out: &mut impl Write, header: &[u8], ram: &GuestRam) -> io::Result<u64> {
    out.write_all(header)?;
    let (mut chunks, mut pages) = (0u64, 0u64);
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in 0..ram.chunks() {
        ram.copy_out(chunk, 0, &mut buffer).map_err(io::Error::other)?;
        let mask = used_pages(&buffer);
        if mask != 0 {
            write_chunk(out, chunk as u64, mask, &buffer)?;
            chunks += 1;
            pages += u64::from(mask.count_ones());
        }
    }
    write_record(out, END, chunks, &[])?;
    out.flush()?;
    Ok(pages)
}

/// One bit for each page of a chunk that is not zero.
fn used_pages(chunk: &[u8]) -> u64 {
    let pages = chunk.chunks_exact(PAGE_BYTES).enumerate();
    pages.filter(|(_, page)| !is_zero(page)).fold(0, |mask, (index, _)| mask | 1 << index)
}

fn is_zero(page: &[u8]) -> bool {
    page.as_chunks::<64>().0.iter().all(|line| *line == [0; 64])
}

fn write_chunk(out: &mut impl Write, chunk: u64, mask: u64, buffer: &[u8]) -> io::Result<()> {
    let pages: Vec<&[u8]> = buffer
        .chunks_exact(PAGE_BYTES)
        .enumerate()
        .filter(|(index, _)| mask >> index & 1 == 1)
        .map(|(_, page)| page)
        .collect();
    write_record(out, chunk, mask, &pages)
}

fn write_record(out: &mut impl Write, first: u64, second: u64, pages: &[&[u8]]) -> io::Result<()> {
    let mut hash = Xxh3::new();
    for bytes in [&first.to_le_bytes()[..], &second.to_le_bytes()].iter().chain(pages) {
        hash.update(bytes);
        out.write_all(bytes)?;
    }
    out.write_all(&hash.digest().to_le_bytes())
}

/// Counts what was written, for the report and for the message when the disk is full.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A file under a temporary name beside its final one; removed unless finished.
struct PartialFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl PartialFile {
    fn create(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |cause| SnapshotError::Write { path: path.to_path_buf(), cause };
        let name = path.file_name().ok_or_else(|| failed(ErrorKind::InvalidFilename.into()))?;
        // Moving the file into place would replace a device or a pipe, not write to it.
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(failed(io::Error::other("something that is no file has this name")));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = File::create(&temporary).map_err(failed)?;
        Ok(Self { file, temporary, path: path.to_path_buf(), finished: false })
    }

    /// Writes the guest into the file.
    fn fill(&self, vm: &Vm, header: &[u8]) -> Result<SnapshotReport, SnapshotError> {
        let counted = Counted { inner: &self.file, bytes: 0 };
        let mut out = BufWriter::with_capacity(1 << 20, counted);
        match write_guest(&mut out, header, vm.ram()) {
            Ok(pages) => Ok(SnapshotReport {
                file_bytes: out.get_ref().bytes,
                pages,
                zero_pages: vm.ram().bytes() / PAGE_BYTES as u64 - pages,
            }),
            Err(cause) => {
                let (counted, _) = out.into_parts();
                Err(self.failure(cause, counted.bytes, vm))
            }
        }
    }

    fn failure(&self, cause: io::Error, written: u64, vm: &Vm) -> SnapshotError {
        let path = self.path.clone();
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                SnapshotError::DiskFull { path, written, needed: vm.ram().bytes() + (1 << 20) }
            }
            _ => SnapshotError::Write { path, cause },
        }
    }

    /// Brings the file to disk and gives it its name.
    fn finish(mut self) -> Result<(), SnapshotError> {
        self.publish().map_err(|cause| SnapshotError::Write { path: self.path.clone(), cause })?;
        self.finished = true;
        Ok(())
    }

    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::empty_vm;

    #[test]
    fn a_full_disk_is_named_with_what_would_be_needed() {
        let vm = empty_vm(16, 1);
        vm.ram().write(0, &vec![1; 4 << 20]).unwrap();
        let path = PathBuf::from("/dev/full");
        let file = File::options().write(true).open(&path).unwrap();
        let full = PartialFile { file, temporary: PathBuf::new(), path, finished: true };
        let error = full.fill(&vm, &header(&vm).unwrap()).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot save the guest to /dev/full: no space left after 0 bytes; up to 17 MiB may be needed"
        );
    }

    #[test]
    fn used_pages_are_those_with_any_byte_set() {
        let mut chunk = vec![0; CHUNK_BYTES];
        chunk[5 * PAGE_BYTES + 4095] = 1;
        chunk[63 * PAGE_BYTES] = 1;
        assert_eq!(used_pages(&chunk), 1 << 5 | 1 << 63);
    }
}
