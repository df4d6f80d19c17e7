//! Templates: a guest in a file from which clones are started, with their memory mapped from the
//! file.
//!
//! Pages that a clone has not written are in the host's page cache, once for all clones. So a clone
//! starts immediately and costs only the memory that it writes. All numbers are little-endian:
//!
//! | what | bytes |
//! |---|---|
//! | magic `LIGHTPL\n`, format version | 8, 4 |
//! | length of the shape, the shape | 4, n |
//! | length of the state, the state | 4, n |
//! | XXH3-64 of everything so far | 8 |
//! | nothing, up to a multiple of 2 MiB | n |
//! | memory, whole; pages that are zero are holes | the shape's |
//!
//! The memory has no checksum: reading all of it would take longer than a template saves. The file
//! is trusted as much as the guest itself, so it must not be writable by another user: see
//! [`Template::open`].

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SnapshotError;
use super::format::{TEMPLATE_MAGIC, TEMPLATE_VERSION};
use super::partial::PartialFile;
use super::read::Input;
use super::write::{SnapshotReport, expect_paused, failure, header, used_pages};
use crate::error::Result;
use crate::labels::Labels;
use crate::memory::{CHUNK_BYTES, MemoryConfig, PAGE_BYTES, TemplateImage, runs};
use crate::virtio::block::{Access, BlockConfig, DiskProof};
use crate::{Vm, VmOptions, VmShape, VmState};

/// Alignment of guest memory in the file, so that huge pages of the page cache fit.
const ALIGNMENT_BYTES: u64 = 2 << 20;

/// Writes a paused guest to `path` as a template, replacing an existing one. The new file appears
/// complete or not at all, and clones of the old file keep using it. The guest stays paused.
///
/// # Errors
/// As [`super::save`]; [`SnapshotError::TemplateNetwork`] if the guest has network devices.
pub fn save_template(vm: &Vm, path: &Path) -> Result<SnapshotReport> {
    let header = template_header(vm)?;
    let write = |cause| SnapshotError::Write { path: path.to_path_buf(), cause };
    let partial = PartialFile::create(path).map_err(write)?;
    let report = fill(partial.file(), vm, &header)
        .map_err(|(cause, written)| failure(path, cause, written, vm))?;
    partial.publish(|| expect_paused(vm)).map_err(write)?;
    Ok(report)
}

/// As [`save_template`], into an empty file that the caller has opened: see [`super::save_into`].
///
/// # Errors
/// As [`save_template`].
pub fn save_template_into(vm: &Vm, file: &File, path: &Path) -> Result<SnapshotReport> {
    let header = template_header(vm)?;
    let report =
        fill(file, vm, &header).map_err(|(cause, written)| failure(path, cause, written, vm))?;
    let write = |cause| SnapshotError::Write { path: path.to_path_buf(), cause };
    file.sync_all().and_then(|()| expect_paused(vm)).map_err(write)?;
    Ok(report)
}

/// Encodes everything before the memory, without proofs of the disks: those that a restored guest
/// came with do not apply to clones.
fn template_header(vm: &Vm) -> Result<Vec<u8>> {
    let mut shape = VmShape::clone(&vm.shape());
    expect_no_network(&shape)?;
    shape.disks_mut().for_each(|disk| *disk = disk.clone().with_proof(DiskProof::Absent));
    header((TEMPLATE_MAGIC, TEMPLATE_VERSION), &shape, &vm.save_state()?)
}

/// Writes the whole file. The error of a write comes with the number of bytes written, including
/// those of the failed write; other errors come with 0.
fn fill(file: &File, vm: &Vm, header: &[u8]) -> Result<SnapshotReport, (io::Error, u64)> {
    let start = image_offset(header.len());
    let file_bytes = start + vm.ram().bytes();
    let mut written = 0;
    let mut pages = 0;
    let mut run = |bytes: &[u8], at: u64| {
        written += bytes.len() as u64;
        file.write_all_at(bytes, at).map_err(|cause| (cause, written))
    };
    file.set_len(file_bytes).map_err(|cause| (cause, 0))?;
    run(header, 0)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in 0..vm.ram().chunks() {
        expect_paused(vm).map_err(|cause| (cause, 0))?;
        vm.ram().copy_out(chunk, 0, &mut buffer).map_err(|error| (io::Error::other(error), 0))?;
        let mask = used_pages(&buffer);
        pages += u64::from(mask.count_ones());
        for used in runs::of_mask(mask) {
            let (first, bytes) = (used.start * PAGE_BYTES, used.len() * PAGE_BYTES);
            run(&buffer[first..][..bytes], start + (chunk * CHUNK_BYTES + first) as u64)?;
        }
    }
    let zero_pages = vm.ram().bytes() / PAGE_BYTES as u64 - pages;
    Ok(SnapshotReport { file_bytes, pages, zero_pages })
}

/// Returns the offset of memory in a file whose header has `bytes`.
fn image_offset(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(ALIGNMENT_BYTES)
}

/// The parts of a clone's configuration that do not come from the template.
#[derive(Debug, Clone, Default)]
pub struct CloneConfig {
    /// How the memory that the clone writes is backed.
    pub memory: MemoryConfig,
    /// Disks instead of the template's, one for each in the same order. If empty, the clone shares
    /// the template's disks, which must then be read-only.
    pub disks: Vec<BlockConfig>,
    /// Labels that the clone's owner attaches to it.
    pub labels: Labels,
    /// Options of the VM in this process.
    pub options: VmOptions,
}

/// A template that has been opened, with an intact description.
#[derive(Debug)]
pub struct Template {
    path: PathBuf,
    shape: VmShape,
    state: VmState,
    image: TemplateImage,
}

impl Template {
    /// Opens the template at `path`. Its file must be a regular file, belong to this user or to
    /// root, and not be writable by anyone else: clones would see what is written to it, and die if
    /// it is truncated.
    ///
    /// # Errors
    /// [`SnapshotError`] if the file cannot be read, is damaged, or others can write it;
    /// [`crate::ShapeError`], [`crate::state::StateError`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut input = Input::open(path)?;
        let (shape, state) = input.header(TEMPLATE_MAGIC, TEMPLATE_VERSION..=TEMPLATE_VERSION)?;
        let (shape, state) = (VmShape::from_bytes(&shape)?, VmState::from_bytes(&state)?);
        let offset = image_offset(input.position());
        let file = input.into_file();
        let there = file
            .metadata()
            .map_err(|cause| SnapshotError::Read { path: path.to_path_buf(), cause })?;
        // All mapped memory must exist in the file: access beyond a file's end kills the process.
        check_owner(path, there.uid(), there.mode(), nix::unistd::geteuid().as_raw())?;
        if there.len() != offset + shape.memory_bytes {
            let path = path.to_path_buf();
            return Err(match there.len() < offset + shape.memory_bytes {
                true => SnapshotError::Truncated { path }.into(),
                false => {
                    SnapshotError::Damaged { path, what: "something follows its end".into() }.into()
                }
            });
        }
        let image = TemplateImage { file: Arc::new(file), offset };
        Ok(Self { path: path.to_path_buf(), shape, state, image })
    }

    /// Path of the template's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shape of its clones, apart from what a `CloneConfig` replaces.
    pub fn shape(&self) -> &VmShape {
        &self.shape
    }

    /// The state in which its clones start.
    pub fn state(&self) -> &VmState {
        &self.state
    }

    /// Returns the shape of a clone with this configuration.
    ///
    /// # Errors
    /// [`SnapshotError::TemplateDisk`] if clones would share a disk that the guest writes;
    /// [`SnapshotError::TemplateDisks`] if the given disks do not match the template's;
    /// [`SnapshotError::TemplateNetwork`] if the guest has network devices.
    fn clone_shape(&self, own: &CloneConfig) -> Result<VmShape, SnapshotError> {
        expect_no_network(&self.shape)?;
        let (memory, labels) = (own.memory.clone(), own.labels.clone());
        let mut shape = VmShape { memory, labels, ..self.shape.clone() };
        let mut disks: Vec<&mut BlockConfig> = shape.disks_mut().collect();
        if own.disks.is_empty() {
            return match disks.iter().find(|disk| disk.access() == Access::ReadWrite) {
                None => Ok(shape),
                Some(disk) => Err(SnapshotError::TemplateDisk {
                    template: self.path.clone(),
                    disk: disk.path().to_path_buf(),
                }),
            };
        }
        let fits = disks.len() == own.disks.len()
            && disks.iter().zip(&own.disks).all(|(disk, own)| disk.bytes() == own.bytes());
        if !fits {
            let sizes: Vec<String> = disks.iter().map(|disk| disk.bytes().to_string()).collect();
            return Err(SnapshotError::TemplateDisks {
                template: self.path.clone(),
                wanted: if sizes.is_empty() {
                    "no disks".into()
                } else {
                    format!("disks of {} bytes", sizes.join(", "))
                },
            });
        }
        for (disk, own) in disks.iter_mut().zip(&own.disks) {
            // The guest's driver has already set up the template's number of queues.
            **disk = own.clone().with_queues(disk.queues());
        }
        Ok(shape)
    }

    /// Creates a paused VM that continues where the template's guest was saved. The clone's serial
    /// output goes to `console`, as in [`Vm::create`].
    ///
    /// # Errors
    /// [`SnapshotError`] if the disks do not fit; [`crate::memory::MemoryError::TemplateBacking`];
    /// the errors of [`Vm::create`] and [`Vm::load_state`].
    pub fn start(&self, own: &CloneConfig, console: Box<dyn Write + Send>) -> Result<Vm> {
        let shape = self.clone_shape(own)?;
        let vm = Vm::create_from(&shape, &own.options, Some(&self.image), console)?;
        vm.load_state(&self.state)?;
        vm.renew_generation()?;
        Ok(vm)
    }
}

/// Refuses network devices: the guest's driver keeps using its MAC address, which two guests cannot
/// share.
fn expect_no_network(shape: &VmShape) -> Result<(), SnapshotError> {
    if shape.nets().next().is_some() { Err(SnapshotError::TemplateNetwork) } else { Ok(()) }
}

/// Checks that only this user and root can write the file, since its content runs as their guest.
fn check_owner(path: &Path, owner: u32, mode: u32, own: u32) -> Result<(), SnapshotError> {
    const OTHERS_WRITE: u32 = 0o022;
    let is_ours = owner == own || owner == 0;
    if is_ours && mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    let text = "other users can write it, and could change what its clones run: make it yours, `chmod 600`";
    let cause = io::Error::new(ErrorKind::PermissionDenied, text);
    Err(SnapshotError::Read { path: path.to_path_buf(), cause })
}

#[cfg(test)]
mod tests;
