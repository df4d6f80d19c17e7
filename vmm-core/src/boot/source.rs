//! What a guest is booted from, kept so that the guest can be booted again.
//!
//! The first boot opens the files and records a digest of their content. In that process, a reboot
//! reads the same open files, even if their names have changed or are gone. Saved state carries
//! names and digests: a process that loads the state opens the file by name, or has a thread with
//! the permission open it ([`WantedFile`]), and accepts it only if the digest matches. So a guest
//! never reboots into another kernel, and a peer that sends a state cannot make this host load a
//! file whose content the peer does not already know.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{BootError, BootSource};
use crate::workload::WorkloadParams;

/// How long a reboot waits for a file that another thread opens.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// A Linux kernel with its command line and initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource {
    /// A `bzImage` or an uncompressed ELF `vmlinux`, detected by content.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, passed unchanged; see [`super::DEFAULT_CMDLINE`].
    pub cmdline: String,
    /// Whether the guest gets ACPI tables.
    pub acpi: Acpi,
}

/// Whether a guest gets ACPI tables. Without them it finds its processors in an MP table, has no
/// power button and cannot power itself off through ACPI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acpi {
    /// With ACPI tables.
    #[default]
    On,
    /// Without ACPI tables, with an MP table only.
    Off,
}

/// What a guest boots from, as recorded in its saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootRecord {
    /// The embedded workload.
    Workload(WorkloadParams),
    /// A Linux kernel.
    Kernel {
        /// Path and digest of the kernel.
        kernel: FileRecord,
        /// The initial RAM disk.
        initrd: Option<FileRecord>,
        /// The kernel command line.
        cmdline: String,
        /// Whether the guest gets ACPI tables.
        acpi: Acpi,
    },
    /// Path and digest of the firmware.
    Firmware(FileRecord),
}

impl BootRecord {
    /// Returns the files that a reboot of the guest reads.
    pub fn files(&self) -> Vec<&FileRecord> {
        match self {
            Self::Workload(_) => Vec::new(),
            Self::Kernel { kernel, initrd, .. } => {
                [Some(kernel), initrd.as_ref()].into_iter().flatten().collect()
            }
            Self::Firmware(file) => vec![file],
        }
    }

    /// Returns the paths of these files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files().into_iter().map(FileRecord::path).collect()
    }
}

/// A boot file as recorded in a saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path of the file, as bytes.
    pub path: Vec<u8>,
    /// XXH3 of the file's content, 128 bits.
    pub digest: u128,
}

impl FileRecord {
    /// Returns the path of the file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.path))
    }

    /// Returns whether this host has the file, with that content, and may read it. A file of more
    /// than `bytes_max` is not read.
    pub fn is_here(&self, bytes_max: u64) -> bool {
        open_known("file", &self.path(), self.digest, bytes_max).is_ok()
    }
}

/// What a guest was booted from, ready for a reboot.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The embedded workload.
    Workload(WorkloadParams),
    /// A Linux kernel.
    Kernel(KernelFiles),
    /// Firmware.
    Firmware(BootFile),
}

/// The files and options of a Linux kernel.
#[derive(Debug)]
pub(crate) struct KernelFiles {
    /// The kernel, a bzImage or an ELF file.
    pub(super) kernel: BootFile,
    /// The initial RAM disk.
    pub(super) initrd: Option<BootFile>,
    /// The kernel command line.
    pub(super) cmdline: String,
    /// Whether the guest gets ACPI tables.
    pub(super) acpi: Acpi,
}

impl Origin {
    /// Opens the files of `source`, each of at most `bytes_max`.
    ///
    /// # Errors
    /// [`BootError::Read`] if a file cannot be opened or read; [`BootError::FileTooLarge`] if it is
    /// longer than `bytes_max`.
    pub(crate) fn open(source: &BootSource, bytes_max: u64) -> Result<Self, BootError> {
        let kernel = match source {
            BootSource::Workload(params) => return Ok(Self::Workload(params.clone())),
            BootSource::Firmware(path) => {
                return Ok(Self::Firmware(BootFile::open("firmware", path, bytes_max)?));
            }
            BootSource::Kernel(kernel) => kernel,
        };
        let initrd = kernel.initrd.as_deref();
        Ok(Self::Kernel(KernelFiles {
            kernel: BootFile::open("kernel", &kernel.kernel, bytes_max)?,
            initrd: initrd.map(|path| BootFile::open("initrd", path, bytes_max)).transpose()?,
            cmdline: kernel.cmdline.clone(),
            acpi: kernel.acpi,
        }))
    }

    /// Returns the record for a saved state.
    pub(crate) fn record(&self) -> BootRecord {
        match self {
            Self::Workload(params) => BootRecord::Workload(params.clone()),
            Self::Kernel(files) => BootRecord::Kernel {
                kernel: files.kernel.record(),
                initrd: files.initrd.as_ref().map(BootFile::record),
                cmdline: files.cmdline.clone(),
                acpi: files.acpi,
            },
            Self::Firmware(file) => BootRecord::Firmware(file.record()),
        }
    }

    /// Returns a request for each file that is not open yet. A reboot then waits for the holder of
    /// the requests to open the files.
    pub(crate) fn wanted_files(&self, bytes_max: u64) -> Vec<WantedFile> {
        self.files().filter_map(|file| file.wanted(bytes_max)).collect()
    }

    /// Checks that a reboot could read all files.
    ///
    /// # Errors
    /// As for [`BootFile::read`].
    pub(crate) fn expect_files(&self, bytes_max: u64) -> Result<(), BootError> {
        self.files().try_for_each(|file| file.read(bytes_max).map(drop))
    }

    fn files(&self) -> impl Iterator<Item = &BootFile> {
        let files = match self {
            Self::Workload(_) => [None, None],
            Self::Kernel(files) => [Some(&files.kernel), files.initrd.as_ref()],
            Self::Firmware(file) => [Some(file), None],
        };
        files.into_iter().flatten()
    }

    /// Restores the origin from a saved state. No file is opened before the guest reboots.
    pub(crate) fn from_record(record: &BootRecord) -> Self {
        match record {
            BootRecord::Workload(params) => Self::Workload(params.clone()),
            BootRecord::Kernel { kernel, initrd, cmdline, acpi } => Self::Kernel(KernelFiles {
                kernel: BootFile::from_record("kernel", kernel),
                initrd: initrd.as_ref().map(|file| BootFile::from_record("initrd", file)),
                cmdline: cmdline.clone(),
                acpi: *acpi,
            }),
            BootRecord::Firmware(file) => Self::Firmware(BootFile::from_record("firmware", file)),
        }
    }
}

/// A file that is loaded into guest memory.
#[derive(Debug)]
pub(crate) struct BootFile {
    what: &'static str,
    path: PathBuf,
    digest: u128,
    content: Mutex<Content>,
}

/// How a reboot gets at the file.
#[derive(Debug)]
enum Content {
    /// From the open file.
    Open(File),
    /// By opening its name: a saved state has nothing else.
    ByName,
    /// From another thread, which may open the file where this process may not.
    Wanted(Receiver<Result<File, BootError>>),
    /// Not at all: the other thread has refused the file.
    Refused(Arc<BootError>),
}

/// A request to open a file that a reboot needs, for a thread that has the permission.
#[derive(Debug)]
pub struct WantedFile {
    what: &'static str,
    path: PathBuf,
    digest: u128,
    bytes_max: u64,
    opened: SyncSender<Result<File, BootError>>,
}

impl WantedFile {
    /// Opens the file and sends it to the guest, or the error if it cannot be opened or its content
    /// differs from what the guest was started with.
    pub fn open(self) {
        let Self { what, path, digest, bytes_max, opened } = self;
        let file = open_known(what, &path, digest, bytes_max);
        if let Err(error) = &file {
            tracing::warn!("the guest cannot boot again on this host: {error}");
        }
        // The guest may be gone: then nothing receives the file.
        let _ = opened.send(file);
    }
}

impl BootFile {
    fn open(what: &'static str, path: &Path, bytes_max: u64) -> Result<Self, BootError> {
        let file = open(what, path, bytes_max)?;
        let digest = digest(&file).map_err(unreadable(what, path))?;
        let content = Mutex::new(Content::Open(file));
        Ok(Self { what, path: path.to_path_buf(), digest, content })
    }

    fn record(&self) -> FileRecord {
        let path = self.path.as_os_str().as_bytes().to_vec();
        FileRecord { path, digest: self.digest }
    }

    fn from_record(what: &'static str, record: &FileRecord) -> Self {
        let path = PathBuf::from(OsStr::from_bytes(&record.path));
        Self { what, path, digest: record.digest, content: Mutex::new(Content::ByName) }
    }

    fn wanted(&self, bytes_max: u64) -> Option<WantedFile> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*content, Content::ByName) {
            return None;
        }
        let (opened, wanted) = sync_channel(1);
        *content = Content::Wanted(wanted);
        let (what, path, digest) = (self.what, self.path.clone(), self.digest);
        Some(WantedFile { what, path, digest, bytes_max, opened })
    }

    /// The path at which the file was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file, at its beginning, after checking that its content is unchanged.
    ///
    /// # Errors
    /// [`BootError::Read`] if it cannot be read; [`BootError::FileTooLarge`];
    /// [`BootError::Changed`] if its digest differs; [`BootError::Refused`] if one of these was
    /// the answer of the thread that opens it.
    pub(super) fn read(&self, bytes_max: u64) -> Result<File, BootError> {
        let unreadable = unreadable(self.what, &self.path);
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if let Content::Wanted(wanted) = &*content {
            let late = |_| unreadable(std::io::Error::other("this process may not open it"));
            let opened = wanted.recv_timeout(OPENED_WITHIN).map_err(late)?;
            *content = opened.map_or_else(|error| Content::Refused(error.into()), Content::Open);
        }
        match &*content {
            Content::Open(file) => {
                let file = file.try_clone().map_err(&unreadable)?;
                expect_content(file, self.what, &self.path, self.digest)
            }
            Content::Refused(error) => Err(BootError::Refused(Arc::clone(error))),
            Content::ByName | Content::Wanted(_) => {
                open_known(self.what, &self.path, self.digest, bytes_max)
            }
        }
    }
}

fn open_known(
    what: &'static str,
    path: &Path,
    digest: u128,
    bytes_max: u64,
) -> Result<File, BootError> {
    expect_content(open(what, path, bytes_max)?, what, path, digest)
}

/// Returns the file, at its beginning, if it has the digest `known`.
fn expect_content(
    mut file: File,
    what: &'static str,
    path: &Path,
    known: u128,
) -> Result<File, BootError> {
    if digest(&file).map_err(unreadable(what, path))? != known {
        return Err(BootError::Changed { what, path: path.to_path_buf() });
    }
    file.rewind().map_err(unreadable(what, path))?;
    Ok(file)
}

fn unreadable(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BootError {
    let path = path.to_path_buf();
    move |cause| BootError::Read { what, path: path.clone(), cause }
}

/// Opens a regular file and refuses anything else: reading a folder would fail later with a useless
/// message, and reading a device might never end.
fn open(what: &'static str, path: &Path, bytes_max: u64) -> Result<File, BootError> {
    let unreadable = unreadable(what, path);
    let file = regular_file::open(path, File::options().read(true)).map_err(&unreadable)?;
    let bytes = file.metadata().map_err(&unreadable)?.len();
    if bytes > bytes_max {
        return Err(BootError::FileTooLarge { what, path: path.to_path_buf(), bytes });
    }
    Ok(file)
}

/// Returns the XXH3 of a file's whole content, 128 bits.
fn digest(mut file: &File) -> std::io::Result<u128> {
    const BUFFER_BYTES: usize = 256 << 10;
    file.rewind()?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(bytes) => hash.update(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u64 = 1 << 20;

    fn kernel_at(path: &Path) -> BootSource {
        let (kernel, cmdline) = (path.to_path_buf(), String::from("quiet"));
        BootSource::Kernel(KernelSource { kernel, initrd: None, cmdline, acpi: Acpi::On })
    }

    fn content(origin: &Origin) -> Result<String, BootError> {
        let Origin::Kernel(files) = origin else { panic!("{origin:?}") };
        let mut text = String::new();
        files.kernel.read(BYTES_MAX)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn the_file_of_the_first_boot_is_read_again_although_another_has_its_name_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, "old").unwrap();
        let origin = Origin::open(&kernel_at(&path), BYTES_MAX).unwrap();
        std::fs::write(folder.path().join("new"), "new").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(content(&origin).unwrap(), "old");
        assert_eq!(content(&origin).unwrap(), "old", "as often as needed");
    }

    #[test]
    fn a_file_of_another_host_is_taken_with_the_same_content_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, "same").unwrap();
        let record = Origin::open(&kernel_at(&path), BYTES_MAX).unwrap().record();
        let elsewhere = Origin::from_record(&record);
        assert_eq!(elsewhere.record(), record);
        assert_eq!(content(&elsewhere).unwrap(), "same");
        let is_here = |bytes_max| {
            let files: Vec<_> =
                record.files().into_iter().map(|it| it.is_here(bytes_max)).collect();
            files == [true]
        };
        assert!(is_here(BYTES_MAX) && !is_here(3));
        std::fs::write(&path, "diff").unwrap();
        assert!(!is_here(BYTES_MAX));
        let changed = content(&elsewhere).unwrap_err().to_string();
        assert!(
            changed.ends_with("is not the kernel that the guest was started with"),
            "{changed}"
        );
        std::fs::remove_file(&path).unwrap();
        let missing = content(&elsewhere).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read kernel"), "{missing}");
    }

    #[test]
    fn a_file_that_another_opens_is_taken_with_the_same_content_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, "same").unwrap();
        let record = Origin::open(&kernel_at(&path), BYTES_MAX).unwrap().record();
        let elsewhere = || {
            let origin = Origin::from_record(&record);
            let wanted = origin.wanted_files(BYTES_MAX);
            assert!(wanted.len() == 1 && origin.wanted_files(BYTES_MAX).is_empty());
            (origin, wanted)
        };
        let (arrived, wanted) = elsewhere();
        wanted.into_iter().for_each(WantedFile::open);
        std::fs::write(folder.path().join("new"), "diff").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(content(&arrived).unwrap(), "same");
        assert_eq!(content(&arrived).unwrap(), "same", "as often as needed");
        let (changed, wanted) = elsewhere();
        wanted.into_iter().for_each(WantedFile::open);
        for _ in 0..2 {
            let error = content(&changed).unwrap_err().to_string();
            assert!(
                error.ends_with("is not the kernel that the guest was started with"),
                "{error}"
            );
        }
        let (unopened, wanted) = elsewhere();
        drop(wanted);
        let error = content(&unopened).unwrap_err();
        assert!(error.to_string().contains("cannot read kernel"), "{error}");
    }

    #[test]
    fn special_files_and_files_larger_than_the_guest_are_not_opened() {
        let device = Origin::open(&kernel_at(Path::new("/dev/zero")), BYTES_MAX);
        assert!(device.unwrap_err().to_string().contains("not a file"));
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len(BYTES_MAX + 1).unwrap();
        let large = Origin::open(&kernel_at(large.path()), BYTES_MAX).unwrap_err().to_string();
        assert!(large.ends_with("more than the guest has memory"), "{large}");
    }
}
