//! What a migration needs from a guest, on either side.
//!
//! The program implements these traits for its virtual machine; the tests of this crate use a
//! simulated guest. All calls may block (they are made from blocking threads) and may come from any
//! thread.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::{CHUNK_BYTES, MAX_MEMORY_BYTES, MemoryLayout};
use crate::text::{Blob, PeerText};

/// Longest guest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// How long a guest stays slowed down by one call of [`SourceGuest::throttle`]: a migration that
/// hangs does not leave it slow.
pub const THROTTLE_LEASE: Duration = Duration::from_secs(5);
/// Most disks that one migration copies.
pub const MAX_DISKS: usize = 16;

/// What the destination must know before it can accept and build the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDescription {
    /// The guest's name; see [`GuestDescription::check_bounds`].
    pub name: String,
    /// The guest's identity; it stays the same wherever the guest runs.
    pub uuid: Uuid,
    /// The regions of its memory.
    pub layout: MemoryLayout,
    /// Number of virtual CPUs.
    pub vcpus: u16,
    /// Everything the virtual machine needs to build the same guest elsewhere (CPUID, devices), in
    /// its own versioned encoding; opaque here, checked by [`GuestFactory::check`].
    pub config: Blob,
    /// The disks whose content is copied with the guest; disks that both hosts share are not
    /// listed. Their chunks follow those of memory, and each disk starts on a new chunk. They are
    /// sent in a separate message, [`crate::protocol::SourceMessage::Disks`].
    #[serde(skip)]
    pub disks: Vec<DiskCopy>,
    /// Whether the guest has a PCI bus. Only the source uses this: it does not describe such a
    /// guest to a destination without [`crate::protocol::FEATURE_PCI`].
    #[serde(skip)]
    pub has_pci: bool,
}

/// A disk whose content is copied with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// Index of the disk among the guest's devices, in the order of [`GuestDescription::config`].
    pub device: u16,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes allocated for it at the source: the least that the destination needs.
    pub allocated_bytes: u64,
    /// What happens to a file that is already in its place at the destination.
    pub existing: ExistingFile,
}

impl DiskCopy {
    /// Returns the number of its chunks; the last may be shorter than a full one.
    pub fn chunks(&self) -> usize {
        // At most 2^26 after `check_bounds`.
        self.bytes.div_ceil(CHUNK_BYTES as u64) as usize
    }
}

/// What happens to a file that has the name of an arriving disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistingFile {
    /// The file is kept, and the guest is refused.
    #[default]
    Keep,
    /// The guest's disk replaces it at hand-over, unless the file is in use.
    Replace,
}

impl GuestDescription {
    /// Returns the size of the disks that are copied.
    pub fn disk_bytes(&self) -> u64 {
        self.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.bytes))
    }

    /// Returns the chunks of memory and of copied disks: what the data streams carry.
    pub fn chunks(&self) -> usize {
        self.layout.chunks() + self.disks.iter().map(DiskCopy::chunks).sum::<usize>()
    }

    /// Checks everything that does not depend on the virtual machine.
    ///
    /// # Errors
    /// If the name is empty, longer than [`MAX_NAME_BYTES`], has characters other than letters,
    /// digits, `-`, `_` and `.`, or starts with `.` or `-`; if there is no virtual CPU; or if there
    /// are more than [`MAX_DISKS`] disks to copy, an empty one, or more than `MAX_MEMORY_BYTES` in
    /// memory and disks together.
    pub fn check_bounds(&self) -> Result<(), Refusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &self.name;
        if name.is_empty()
            || name.len() > MAX_NAME_BYTES
            || !name.chars().all(plain)
            || name.starts_with(['.', '-'])
        {
            let shown = PeerText::new(name);
            return Err(Refusal::new(
                RefusalKind::Guest,
                format!(
                    "`{shown}` is not a guest name: 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_`, \
                     `.`, starting with a letter or digit"
                ),
            ));
        }
        if self.vcpus == 0 {
            return Err(Refusal::new(RefusalKind::Guest, "a guest needs at least one vCPU"));
        }
        self.check_disks()
    }

    /// Bounds the copied disks: the memory that a copy takes on either host grows with them.
    fn check_disks(&self) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal::new(RefusalKind::Guest, text));
        if self.disks.len() > MAX_DISKS {
            let count = self.disks.len();
            return refuse(format!("{count} disks cannot be copied, at most {MAX_DISKS} can"));
        }
        if self.disks.iter().any(|disk| disk.bytes == 0) {
            return refuse("a disk without a size cannot be copied".to_owned());
        }
        let bytes = self.layout.bytes().saturating_add(self.disk_bytes());
        if bytes > MAX_MEMORY_BYTES {
            return refuse(format!(
                "memory and copied disks of {bytes} bytes are above the {MAX_MEMORY_BYTES} that are \
                 accepted: share the disks between the hosts instead"
            ));
        }
        Ok(())
    }
}

/// Whether a guest is running or paused by its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// Its user has paused it; it stays paused after a migration.
    Paused,
}

/// A failed call to the guest; the message names the operation and the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

impl GuestError {
    /// Creates an error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// What a destination lacks: a bounded set, used as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Not enough memory.
    Memory,
    /// The CPU lacks features that the guest uses.
    Cpu,
    /// Another guest there has the name or identity.
    Taken,
    /// KVM is missing, or access to it is denied.
    Kvm,
    /// The description is invalid, or of an unknown version.
    Guest,
    /// The two sides have no protocol version in common.
    Version,
    /// The destination accepts no guests now (too many migrations, shutting down).
    Busy,
    /// Any other reason, given in the text.
    Other,
}

/// Why a destination refuses a guest, for its operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The kind of problem.
    pub kind: RefusalKind,
    /// What is lacking, on which object, with figures and what to do about it.
    pub text: PeerText,
}

impl Refusal {
    /// Creates a refusal with this text (bounded and stripped of control characters).
    pub fn new(kind: RefusalKind, text: impl AsRef<str>) -> Self {
        Self { kind, text: PeerText::new(text.as_ref()) }
    }
}

/// How much of its free memory a guest has reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintProgress {
    /// Pages that it has reported so far.
    pub pages: u64,
    /// Whether it has reported all of them.
    pub complete: bool,
}

/// How much a guest is to be slowed down; by default, not at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttle {
    /// By how much its vCPUs, all together, are to run less, in percent; at most 99.
    pub percent: u8,
    /// The most that it may write to the disks that are copied, all together, in bytes per second;
    /// none: as much as it can.
    pub disk_bytes_per_second: Option<NonZeroU64>,
}

/// How much a guest is slowed down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Number of vCPUs that rest for a share of the time.
    pub vcpus: u16,
    /// The largest share of the time that one of them rests, in percent.
    pub percent: u8,
}

/// A guest that is to leave this host.
pub trait SourceGuest: Send + Sync {
    /// Returns what the destination must know to build the guest.
    fn describe(&self) -> GuestDescription;

    /// Starts the dirty log; every page then counts as dirty once.
    ///
    /// # Errors
    /// If the log cannot be started; the guest keeps running.
    fn start_dirty_log(&self) -> Result<(), GuestError>;

    /// Clears the pages in `words` (one word per chunk, all bits set at first) that need not be
    /// sent until they are written: they are zero both in the guest and at the destination. Called
    /// once, after the dirty log was started.
    ///
    /// # Errors
    /// If the pages cannot be determined.
    fn leave_out(&self, _words: &mut [u64]) -> Result<(), GuestError> {
        Ok(())
    }

    /// Returns whether the guest is running and can report its free pages.
    fn gives_hints(&self) -> bool {
        false
    }

    /// Asks the guest which pages are free; it holds all of them until [`SourceGuest::end_hints`].
    /// It may take one back and write it at any time, so every page of memory must have been
    /// re-armed before this call: then a hint holds as long as the dirty log does not show its
    /// page.
    ///
    /// # Errors
    /// If the guest cannot be asked.
    fn begin_hints(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Returns how much the guest has reported.
    ///
    /// # Errors
    /// If the progress cannot be read.
    fn hint_progress(&self) -> Result<HintProgress, GuestError> {
        Ok(HintProgress { pages: 0, complete: true })
    }

    /// Returns the held pages to the guest, and adds (by OR) those that it reported to `words`, one
    /// word per chunk of memory. Harmless if it was not asked.
    ///
    /// # Errors
    /// If the guest cannot be told.
    fn end_hints(&self, _words: &mut [u64]) -> Result<(), GuestError> {
        Ok(())
    }

    /// Stops the dirty log. Harmless if it was not started.
    ///
    /// # Errors
    /// If the log cannot be stopped.
    fn stop_dirty_log(&self) -> Result<(), GuestError>;

    /// Adds (by OR) every page dirtied since it was last re-armed to `words`, one word per chunk of
    /// memory. Does not re-arm.
    ///
    /// # Errors
    /// If the log cannot be read.
    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError>;

    /// Re-arms the dirty log for exactly these pages, so that it shows their next write; `words[0]`
    /// is chunk `first_chunk`. Called right *before* the pages are copied, so no write is missed.
    ///
    /// # Errors
    /// If the log cannot be changed.
    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError>;

    /// Copies memory into `buf` (whole pages), starting at page `first_page` of `chunk`.
    ///
    /// # Errors
    /// If the range is outside of memory.
    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError>;

    /// Slows the guest down until the next call or for [`THROTTLE_LEASE`]: vCPUs rest for a share
    /// of the time, preferably those that write, and what it writes to copied disks is limited.
    /// [`Throttle::default`] ends both. Returns how much vCPUs rest as of now.
    ///
    /// # Errors
    /// If it cannot be slowed down.
    fn throttle(&self, _throttle: Throttle) -> Result<Throttled, GuestError> {
        Ok(Throttled::default())
    }

    /// Flushes what the guest has written to its disks, whether it runs or is paused. May be called
    /// during any other call and must delay none of them: [`SourceGuest::resume`] is called while a
    /// disk hangs.
    ///
    /// # Errors
    /// If a disk cannot be flushed.
    fn flush(&self) -> Result<(), GuestError>;

    /// Stops all vCPUs and devices; returns once they have stopped. Harmless if they already have.
    ///
    /// # Errors
    /// If a vCPU does not stop.
    fn pause(&self) -> Result<(), GuestError>;

    /// Resumes a paused guest. Harmless if it already runs, as after a failed dry run.
    ///
    /// # Errors
    /// If a vCPU does not start.
    fn resume(&self) -> Result<(), GuestError>;

    /// Returns whether the guest runs; false if its user has paused it.
    fn is_running(&self) -> bool;

    /// Releases what only one copy of the guest may hold, such as the locks on its disks: the
    /// commit is recorded, and the destination is about to acquire them. [`SourceGuest::resume`]
    /// acquires them again if the guest comes back.
    ///
    /// # Errors
    /// If they cannot be released; the destination then waits for them, fails, and says so.
    fn release(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Returns the state of vCPUs and devices of the paused guest. May dirty memory. Does not flush
    /// disks: see [`SourceGuest::flush`].
    ///
    /// # Errors
    /// If a part of the state cannot be read.
    fn save_state(&self) -> Result<Vec<u8>, GuestError>;
}

/// A guest built to receive the memory and state of the migrating one.
pub trait DestinationGuest: Send + Sync {
    /// Writes whole pages into memory, starting at page `first_page` of `chunk`.
    ///
    /// # Errors
    /// If the range is outside of memory.
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError>;

    /// Zeroes the pages of `chunk` in `mask`. Called only for pages written earlier in this
    /// migration: memory is zero when the guest is created.
    ///
    /// # Errors
    /// If the chunk is outside of memory.
    fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError>;

    /// Loads the state of vCPUs and devices. Memory and disks are complete by then, and all data
    /// received for the disks is durable when this returns.
    ///
    /// # Errors
    /// If the state is not understood or cannot be loaded.
    fn load_state(&self, state: &[u8]) -> Result<(), GuestError>;

    /// Makes this host the owner of the guest, with the locks and networks that only one copy may
    /// hold; from now on, what was built for it outlives this process. The guest does not run yet.
    /// The source releases those locks at the same time, so implementations wait for them for a
    /// short time.
    ///
    /// # Errors
    /// If another process holds one of them, or the guest cannot be kept; it then holds none of
    /// them, and may be adopted later.
    fn adopt(&self) -> Result<(), GuestError>;

    /// Starts the guest, which has been adopted.
    ///
    /// # Errors
    /// If a vCPU does not start.
    fn resume(&self) -> Result<(), GuestError>;

    /// Prepares memory for pages that arrive after the guest. From now on, a thread that accesses
    /// an absent page waits until it is placed, or until [`MissingMemory::wanted`] finds that it is
    /// not missing. Called once, before the state is loaded, when all other pages are there.
    ///
    /// # Errors
    /// If this host or this guest cannot.
    fn follow_with_memory(&self) -> Result<Arc<dyn MissingMemory>, GuestError> {
        Err(GuestError::new("this host cannot run a guest before its memory is there"))
    }

    /// Stops the vCPUs of the guest for good: pages that it lacks will never come. What waits for
    /// one goes on waiting, as anything else would have it read zeros.
    ///
    /// # Errors
    /// If a vCPU does not stop.
    fn strand(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// Pages of one chunk of memory: its number, and the mask of the pages.
pub type ChunkPages = (usize, u64);

/// How long threads wait for missing pages, each from when its page was returned as wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits {
    /// How long those took that have ended since the last call.
    pub ended: Vec<Duration>,
    /// How long the oldest of those that go on has lasted.
    pub oldest: Option<Duration>,
}

/// The memory of a guest at the destination, of which pages are missing. Implementations never
/// access that memory themselves, so no call waits for a page. The guest holds it too: once both
/// have dropped it, those who wait continue with zeros.
pub trait MissingMemory: Send + Sync {
    /// Drops the pages in `words`, one word per chunk of memory: they are missing from now on.
    /// Neither the guest nor its devices run.
    ///
    /// # Errors
    /// If they cannot be dropped.
    fn clear(&self, words: &[u64]) -> Result<(), GuestError>;

    /// Waits until threads wait for missing pages, and returns those for which they have begun to
    /// since the last call. Returns earlier, perhaps with none, once the last missing page has
    /// arrived, and after [`MissingMemory::interrupt`]. Pages that are absent without being missing
    /// get zeros. Called again and again by one thread, as long as pages may be missing.
    ///
    /// # Errors
    /// If that cannot be determined: the guest cannot continue.
    fn wanted(&self) -> Result<Vec<ChunkPages>, GuestError>;

    /// Ends the call of [`MissingMemory::wanted`] that is under way, or else the next one.
    fn interrupt(&self);

    /// Places those of these whole pages that are missing, starting at page `first_page` of
    /// `chunk`; others are not affected.
    ///
    /// # Errors
    /// If the range is outside of memory, or the host has no memory for them: they may be placed
    /// later.
    fn place(&self, chunk: usize, first_page: usize, content: &[u8]) -> Result<(), GuestError>;

    /// As [`MissingMemory::place`], with zeros as the pages of `chunk` in `mask`.
    ///
    /// # Errors
    /// As [`MissingMemory::place`].
    fn place_zeros(&self, chunk: usize, mask: u64) -> Result<(), GuestError>;

    /// Returns the number of missing pages.
    fn left(&self) -> u64;

    /// Returns the missing pages.
    fn missing(&self) -> Vec<ChunkPages>;

    /// Returns the missing pages that [`MissingMemory::wanted`] has returned before.
    fn waited_for(&self) -> Vec<ChunkPages>;

    /// Returns how long threads wait for missing pages: those waits that have ended only once.
    fn waits(&self) -> Waits;

    /// Ends this: no access to memory waits any more, and missing pages read as zeros.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn end(&self) -> Result<(), GuestError>;
}

/// Builds guests for incoming migrations.
pub trait GuestFactory: Send + Sync {
    /// Checks everything that can be checked before anything is created.
    ///
    /// # Errors
    /// If this host cannot run the guest; the refusal says why and what to do about it.
    fn check(&self, guest: &GuestDescription) -> Result<(), Refusal>;

    /// Builds the guest, paused, with its memory reserved.
    ///
    /// # Errors
    /// If it could not be built; nothing is left behind.
    fn create(&self, guest: &GuestDescription) -> Result<Arc<dyn DestinationGuest>, Refusal>;
}
