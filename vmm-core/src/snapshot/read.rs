//! Restores a guest from a file.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::ops::RangeInclusive;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::SnapshotError;
use super::format::{END, MAGIC, SHAPE_BYTES_MAX, STATE_BYTES_MAX, TEMPLATE_MAGIC, VERSIONS};
use crate::error::Result;
use crate::memory::{CHUNK_BYTES, PAGE_BYTES};
use crate::virtio::block::DiskProof;
use crate::{DeviceError, GuestRam, Vm, VmOptions, VmShape, VmState};

/// What is required of the disks of a guest that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedDisks {
    /// They must be unchanged since the guest was saved. [`Vm::resume`] checks it.
    Unwritten,
    /// They are accepted as they are: the user takes responsibility.
    Vouched,
}

impl SavedDisks {
    fn prepare(self, shape: &mut VmShape) -> Result<(), DeviceError> {
        for disk in shape.disks_mut() {
            match self {
                Self::Unwritten => disk.expect_seal()?,
                Self::Vouched => *disk = disk.clone().with_proof(DiskProof::Absent),
            }
        }
        Ok(())
    }
}

/// Creates a paused VM from a file that [`super::save`] has written, with `options` for this
/// process. The guest's serial output goes to `console`, as in [`Vm::create`].
///
/// # Errors
/// [`SnapshotError`] if it is not a regular file or not intact to its end;
/// [`DeviceError::DiskUnsealed`] if the file has no seal for a disk; the errors of
/// [`Vm::create_with`] and [`Vm::load_state`].
pub fn restore(
    path: &Path,
    disks: SavedDisks,
    options: &VmOptions,
    console: Box<dyn Write + Send>,
) -> Result<Vm> {
    let mut input = Input::open(path)?;
    let (shape, state) = input.header(MAGIC, VERSIONS)?;
    let mut shape = VmShape::from_bytes(&shape)?;
    disks.prepare(&mut shape)?;
    let vm = Vm::create_with(&shape, options, console)?;
    input.memory(vm.ram())?;
    vm.load_state(&VmState::from_bytes(&state)?)?;
    vm.renew_generation()?;
    Ok(vm)
}

/// Reads the shape and the state of the guest in the file at `path`, without its memory.
///
/// # Errors
/// [`SnapshotError`] if the file cannot be read or its header is damaged; [`crate::ShapeError`],
/// [`crate::state::StateError`].
pub fn read_guest(path: &Path) -> Result<(VmShape, VmState)> {
    let (shape, state) = Input::open(path)?.header(MAGIC, VERSIONS)?;
    Ok((VmShape::from_bytes(&shape)?, VmState::from_bytes(&state)?))
}

/// Reads a file as [`restore`] does, but without creating a machine: into memory of `memory_bytes`,
/// whatever the shape says.
///
/// # Errors
/// As [`restore`].
#[cfg(feature = "fuzzing")]
pub fn read_into_new(file: &[u8], memory_bytes: u64) -> Result<(VmShape, VmState)> {
    use crate::memory::{MemoryConfig, RamLayout};
    let ram = GuestRam::new(RamLayout::new(memory_bytes)?, &MemoryConfig::default(), None)?;
    let mut input = Input { file: BufReader::new(file), path: Path::new("fuzzed"), position: 0 };
    let (shape, state) = input.header(MAGIC, VERSIONS)?;
    let shape = VmShape::from_bytes(&shape)?;
    input.memory(&ram)?;
    Ok((shape, VmState::from_bytes(&state)?))
}

/// A file being read.
pub(super) struct Input<'a, R> {
    file: BufReader<R>,
    path: &'a Path,
    position: usize,
}

impl<'a> Input<'a, File> {
    /// Opens a regular file.
    pub(super) fn open(path: &'a Path) -> Result<Self, SnapshotError> {
        // This does not block when `path` is a pipe without a writer.
        let file = regular_file::open(path, OpenOptions::new().read(true))
            .map_err(|cause| SnapshotError::Read { path: path.to_path_buf(), cause })?;
        Ok(Self { file: BufReader::with_capacity(1 << 20, file), path, position: 0 })
    }

    /// Returns the file, whose position is undefined.
    pub(super) fn into_file(self) -> File {
        self.file.into_inner()
    }
}

impl<R: Read> Input<'_, R> {
    /// Number of bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.position += bytes.len();
        self.file.read_exact(bytes).map_err(|cause| match cause.kind() {
            ErrorKind::UnexpectedEof => SnapshotError::Truncated { path: self.path.to_path_buf() },
            _ => SnapshotError::Read { path: self.path.to_path_buf(), cause },
        })
    }

    fn word(&mut self) -> Result<u64, SnapshotError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn damaged(&self, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: self.path.to_path_buf(), what: what.into() }
    }

    /// Reads the encoded shape and state of a file that must begin with this magic and one of the
    /// `known` versions.
    pub(super) fn header(
        &mut self,
        magic: [u8; 8],
        known: RangeInclusive<u32>,
    ) -> Result<(Vec<u8>, Vec<u8>), SnapshotError> {
        let mut start = [0; 12];
        let path = self.path.to_path_buf();
        let foreign = || SnapshotError::Foreign { path: path.clone() };
        match self.fill(&mut start) {
            Err(SnapshotError::Truncated { .. }) => return Err(foreign()),
            result => result?,
        }
        let (found_magic, version) = start.split_at(magic.len());
        if found_magic != magic {
            return Err(match found_magic {
                found if found == MAGIC => SnapshotError::Guest { path },
                found if found == TEMPLATE_MAGIC => SnapshotError::Template { path },
                _ => foreign(),
            });
        }
        let found = version.try_into().map_or(0, u32::from_le_bytes);
        if !known.contains(&found) {
            let known = *known.end();
            return Err(SnapshotError::Version { path: self.path.to_path_buf(), found, known });
        }
        let mut all = start.to_vec();
        let shape = self.section(&mut all, SHAPE_BYTES_MAX)?;
        let state = self.section(&mut all, STATE_BYTES_MAX)?;
        if self.word()? != xxh3_64(&all) {
            return Err(self.damaged("the description of the guest does not match its checksum"));
        }
        Ok((shape, state))
    }

    /// Reads a section of at most `bytes_max` with its length, and appends both to `all` for the
    /// checksum.
    fn section(&mut self, all: &mut Vec<u8>, bytes_max: u32) -> Result<Vec<u8>, SnapshotError> {
        let mut len = [0; 4];
        self.fill(&mut len)?;
        all.extend(len);
        let len = u32::from_le_bytes(len);
        if len > bytes_max {
            return Err(self.damaged(format!("a section of {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        all.extend(&bytes);
        Ok(bytes)
    }

    /// Reads memory into `ram`, which must be zero, up to the end of the file.
    fn memory(&mut self, ram: &GuestRam) -> Result<(), SnapshotError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut chunks = 0;
        let mut next = 0;
        loop {
            let (number, mask) = (self.word()?, self.word()?);
            if number == END {
                self.check(number, mask, &[])?;
                return if mask == chunks {
                    self.end()
                } else {
                    Err(self.damaged(format!("{chunks} chunks of memory instead of {mask}")))
                };
            }
            if number < next || number >= ram.chunks() as u64 {
                return Err(self.damaged(format!("chunk {number} where it cannot be")));
            }
            let pages = &mut buffer[..mask.count_ones() as usize * PAGE_BYTES];
            self.fill(pages)?;
            self.check(number, mask, pages)?;
            self.place(ram, number as usize, mask, pages)?;
            (chunks, next) = (chunks + 1, number + 1);
        }
    }

    /// Compares the record's checksum, which follows in the file.
    fn check(&mut self, first: u64, second: u64, pages: &[u8]) -> Result<(), SnapshotError> {
        let mut hash = Xxh3::new();
        hash.update(&first.to_le_bytes());
        hash.update(&second.to_le_bytes());
        hash.update(pages);
        if self.word()? == hash.digest() {
            return Ok(());
        }
        let what = if first == END { "the end".into() } else { format!("chunk {first}") };
        Err(self.damaged(format!("{what} does not match its checksum")))
    }

    fn place(
        &self,
        ram: &GuestRam,
        chunk: usize,
        mask: u64,
        pages: &[u8],
    ) -> Result<(), SnapshotError> {
        let places = (0..64).filter(|page| mask >> page & 1 == 1);
        for (page, bytes) in places.zip(pages.chunks_exact(PAGE_BYTES)) {
            ram.copy_in(chunk, page, bytes).map_err(|error| self.damaged(error.to_string()))?;
        }
        Ok(())
    }

    /// Checks that nothing follows the end record.
    fn end(&mut self) -> Result<(), SnapshotError> {
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its end")),
            Err(cause) => Err(SnapshotError::Read { path: self.path.to_path_buf(), cause }),
        }
    }
}
