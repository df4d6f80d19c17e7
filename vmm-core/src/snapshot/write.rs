//! Saves a guest to a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::SnapshotError;
use super::format::{END, MAGIC, VERSION};
use super::partial::PartialFile;
use crate::error::Result;
use crate::memory::{CHUNK_BYTES, PAGE_BYTES};
use crate::virtio::block::{DiskProof, Seal};
use crate::{DeviceConfig, RunState, Vm, VmShape, VmState};

/// Result of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Pages of guest memory in the file.
    pub pages: u64,
    /// Pages of guest memory that were omitted because they are zero.
    pub zero_pages: u64,
}

/// Copies of a guest's disks that the caller makes after the guest has been saved, and with which
/// it will be restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskCopies {
    /// Path of the copy, for each path of a disk.
    pub paths: BTreeMap<PathBuf, PathBuf>,
    /// The modification time that the copies will have, in seconds since 1970.
    pub modified_unix_s: i64,
}

impl DiskCopies {
    fn seal(&self) -> DiskProof {
        DiskProof::Sealed(Seal::File(self.modified_unix_s, 0))
    }
}

/// Saves a paused guest to `path`, replacing an existing file. The new file appears complete or not
/// at all. The guest stays paused. It will be restored with those `copies` of its disks that are
/// given.
///
/// # Errors
/// [`crate::Error::WrongState`] unless paused; [`SnapshotError`] if the file cannot be written.
/// After an error no partial file is left, and an existing file is untouched.
pub fn save(vm: &Vm, path: &Path, copies: &DiskCopies) -> Result<SnapshotReport> {
    let header = guest_header(vm, copies)?;
    let write = |cause| SnapshotError::Write { path: path.to_path_buf(), cause };
    let partial = PartialFile::create(path).map_err(write)?;
    let report = fill(partial.file(), path, vm, &header)?;
    partial.publish(|| expect_paused(vm)).map_err(write)?;
    Ok(report)
}

/// As [`save`], into an empty file that the caller has opened; the file is on disk when this
/// returns. `path` is its name in messages. After an error the caller must remove the file.
///
/// # Errors
/// As [`save`].
pub fn save_into(vm: &Vm, file: &File, path: &Path, copies: &DiskCopies) -> Result<SnapshotReport> {
    let write = |cause| SnapshotError::Write { path: path.to_path_buf(), cause };
    let report = fill(file, path, vm, &guest_header(vm, copies)?)?;
    file.sync_all().and_then(|()| expect_paused(vm)).map_err(write)?;
    Ok(report)
}

/// Encodes everything before the memory of a guest, with the current seals of its disks.
fn guest_header(vm: &Vm, copies: &DiskCopies) -> Result<Vec<u8>> {
    let state = vm.save_state()?;
    let mut shape = VmShape::clone(&vm.shape());
    for (index, content) in vm.disks() {
        if let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(index) {
            *disk = match copies.paths.get(disk.path()) {
                Some(copy) => disk.at(copy).with_proof(copies.seal()),
                None => disk.clone().with_proof(content.seal()?),
            };
        }
    }
    header((MAGIC, VERSION), &shape, &state)
}

/// Encodes everything before the memory.
pub(super) fn header(
    (magic, version): ([u8; 8], u32),
    shape: &VmShape,
    state: &VmState,
) -> Result<Vec<u8>> {
    let mut bytes = magic.to_vec();
    bytes.extend(version.to_le_bytes());
    for section in [shape.to_bytes()?, state.to_bytes()?] {
        bytes.extend((section.len() as u32).to_le_bytes());
        bytes.extend(section);
    }
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Writes the whole file; returns the number of pages in it.
fn write_guest(out: &mut impl Write, header: &[u8], vm: &Vm) -> io::Result<u64> {
    let ram = vm.ram();
    out.write_all(header)?;
    let (mut chunks, mut pages) = (0u64, 0u64);
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in 0..ram.chunks() {
        expect_paused(vm)?;
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

/// Returns one bit for each page of a chunk that is not zero.
pub(super) fn used_pages(chunk: &[u8]) -> u64 {
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

/// Counts the bytes written, for the report and for the message when the disk is full.
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

/// Writes the guest into `file`, which is or will be at `path`.
fn fill(file: &File, path: &Path, vm: &Vm, header: &[u8]) -> Result<SnapshotReport, SnapshotError> {
    let counted = Counted { inner: file, bytes: 0 };
    let mut out = BufWriter::with_capacity(1 << 20, counted);
    match write_guest(&mut out, header, vm) {
        Ok(pages) => Ok(SnapshotReport {
            file_bytes: out.get_ref().bytes,
            pages,
            zero_pages: vm.ram().bytes() / PAGE_BYTES as u64 - pages,
        }),
        Err(cause) => {
            let (counted, _) = out.into_parts();
            Err(failure(path, cause, counted.bytes, vm))
        }
    }
}

/// Returns the error for a failure to write to `path`.
pub(super) fn failure(path: &Path, cause: io::Error, written: u64, vm: &Vm) -> SnapshotError {
    let path = path.to_path_buf();
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            SnapshotError::DiskFull { path, written, needed: vm.ram().bytes() + (1 << 20) }
        }
        _ => SnapshotError::Write { path, cause },
    }
}

/// Fails if the guest is no longer paused: a guest that ends while it is saved, for example with
/// its process, is not saved.
pub(super) fn expect_paused(vm: &Vm) -> io::Result<()> {
    match vm.run_state() {
        RunState::Paused => Ok(()),
        RunState::Running | RunState::Stopped => {
            Err(io::Error::other("the guest ended before it was saved"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::empty_vm;
    use std::fs;

    #[test]
    fn a_guest_that_ends_meanwhile_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        let vm = empty_vm(16, 1);
        let header = guest_header(&vm, &DiskCopies::default()).unwrap();
        let partial = PartialFile::create(&path).unwrap();
        fill(partial.file(), &path, &vm, &header).unwrap();
        vm.stop();

        let late = partial.publish(|| expect_paused(&vm)).unwrap_err().to_string();
        let partial = PartialFile::create(&path).unwrap();
        let early = fill(partial.file(), &path, &vm, &header).unwrap_err().to_string();

        assert!(late.contains("the guest ended"), "{late}");
        assert!(early.contains("the guest ended"), "{early}");
        drop(partial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_named_with_what_would_be_needed() {
        let vm = empty_vm(16, 1);
        vm.ram().write(0, &vec![1; 4 << 20]).unwrap();
        let file = File::options().write(true).open("/dev/full").unwrap();
        let error = save_into(&vm, &file, Path::new("/dev/full"), &DiskCopies::default())
            .unwrap_err()
            .to_string();
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
