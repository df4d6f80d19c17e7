//! What a migration asks of a guest, on either side.
//!
//! The program adapts its virtual machine to these traits; the tests of this crate have a simulated
//! guest. All calls may block (they are made from blocking threads) and may come from any thread.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::{CHUNK_BYTES, MAX_MEMORY_BYTES, MemoryLayout};
use crate::text::{Blob, PeerText};

/// Longest name of a guest, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Most disks that a migration copies.
pub const MAX_DISKS: usize = 16;

/// What the destination must know before it can say yes and build the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDescription {
    /// The guest's name, as its users know it; see [`GuestDescription::check_bounds`].
    pub name: String,
    /// The guest's identity; stays with it wherever it runs.
    pub uuid: Uuid,
    /// Where its memory lies.
    pub layout: MemoryLayout,
    /// Number of virtual CPUs.
    pub vcpus: u16,
    /// All that the virtual machine needs to build the same guest elsewhere (CPUID, devices), in
    /// its own versioned encoding; opaque here, checked by [`GuestFactory::check`].
    pub config: Blob,
    /// The disks whose content goes along; those that both hosts share are not among them. Their
    /// chunks follow those of memory, each disk's from a new chunk on. They travel in a message of
    /// their own, [`crate::protocol::SourceMessage::Disks`].
    #[serde(skip)]
    pub disks: Vec<DiskCopy>,
}

/// A disk whose content goes along with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// Which of the guest's devices it is, in the order of [`GuestDescription::config`].
    pub device: u16,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes of it that take up room at the source: what the destination needs at least.
    pub allocated_bytes: u64,
    /// What becomes of a file that is in its place at the destination.
    pub existing: ExistingFile,
}

impl DiskCopy {
    /// Chunks of its content, the last of which may be cut short by the disk's end.
    pub fn chunks(&self) -> usize {
        // At most 2^26 after `check_bounds`.
        self.bytes.div_ceil(CHUNK_BYTES as u64) as usize
    }
}

/// What becomes of a file that has the name of an arriving disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistingFile {
    /// It stays, and the guest is not taken in.
    #[default]
    Keep,
    /// The guest's disk takes its place when the guest is handed over, unless somebody uses it.
    Replace,
}

impl GuestDescription {
    /// Bytes of the disks that go along.
    pub fn disk_bytes(&self) -> u64 {
        self.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.bytes))
    }

    /// Chunks of memory and of the disks that go along: what data streams carry.
    pub fn chunks(&self) -> usize {
        self.layout.chunks() + self.disks.iter().map(DiskCopy::chunks).sum::<usize>()
    }

    /// Checks what can be checked without knowing the virtual machine.
    ///
    /// # Errors
    /// When the name is empty, longer than [`MAX_NAME_BYTES`], has other characters than letters,
    /// digits, `-`, `_` and `.`, or starts with `.` or `-`; when there is no virtual CPU; or when
    /// there are more than [`MAX_DISKS`] disks to be copied, an empty one, or too much in them.
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
                    "`{shown}` is no guest name: 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_`, \
                     `.`, starting with a letter or digit"
                ),
            ));
        }
        if self.vcpus == 0 {
            return Err(Refusal::new(RefusalKind::Guest, "a guest needs at least one vCPU"));
        }
        self.check_disks()
    }

    /// What a copy takes of either host's memory grows with the disks: so do they have bounds.
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

/// Whether a guest executes or is paused by its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It executes.
    Running,
    /// Its user has paused it; a migration keeps it so.
    Paused,
}

/// A guest that did not do what was asked; the message names the operation and the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

impl GuestError {
    /// An error with this message.
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
    /// The CPU lacks what the guest has been using.
    Cpu,
    /// The name or identity is taken there.
    Taken,
    /// No KVM, or not permitted to use it.
    Kvm,
    /// The description makes no sense, or is of an unknown version.
    Guest,
    /// No protocol version in common.
    Version,
    /// The destination takes no guests now (too many migrations, shutting down).
    Busy,
    /// Anything else; the text says it.
    Other,
}

/// Why a destination will not take a guest, as its operator should read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What is lacking.
    pub kind: RefusalKind,
    /// What is lacking on what object, with figures and the way out.
    pub text: PeerText,
}

impl Refusal {
    /// A refusal with this text (bounded and stripped of control characters).
    pub fn new(kind: RefusalKind, text: impl AsRef<str>) -> Self {
        Self { kind, text: PeerText::new(text.as_ref()) }
    }
}

/// How far a guest is with saying which of its pages are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintProgress {
    /// Pages that it has named.
    pub pages: u64,
    /// Nothing more is to come.
    pub complete: bool,
}

/// A guest that is to leave this host.
pub trait SourceGuest: Send + Sync {
    /// What the destination must know to build it.
    fn describe(&self) -> GuestDescription;

    /// Starts to log dirty pages; from then on every page counts as dirty once.
    ///
    /// # Errors
    /// When the log cannot be started; the guest runs on.
    fn start_dirty_log(&self) -> Result<(), GuestError>;

    /// Takes those pages out of `words` (one word for each chunk, all bits set at first) that need
    /// not be sent before they are written: the destination has zeros there, and so has the guest.
    /// Called once, after the log was started.
    ///
    /// # Errors
    /// When it cannot be told.
    fn leave_out(&self, _words: &mut [u64]) -> Result<(), GuestError> {
        Ok(())
    }

    /// Whether it runs, and would say which of its pages are free.
    fn gives_hints(&self) -> bool {
        false
    }

    /// Asks which pages are free; the guest takes them all, until [`SourceGuest::end_hints`]. It
    /// may take one back and write it at any time, so every page of memory must have been re-armed
    /// before this call: then a hint holds for as long as the log does not show its page.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn begin_hints(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// How far it is.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn hint_progress(&self) -> Result<HintProgress, GuestError> {
        Ok(HintProgress { pages: 0, complete: true })
    }

    /// Lets the guest have its pages back, and adds (by OR) those that it named to `words`, one
    /// word for each chunk of memory. Harmless when it was not asked.
    ///
    /// # Errors
    /// When it cannot be told.
    fn end_hints(&self, _words: &mut [u64]) -> Result<(), GuestError> {
        Ok(())
    }

    /// Stops the log. Harmless when it was not started.
    ///
    /// # Errors
    /// When the log cannot be stopped.
    fn stop_dirty_log(&self) -> Result<(), GuestError>;

    /// Adds (by OR) every page dirtied since it was last re-armed to `words`, one word for each
    /// chunk of memory. Does not re-arm.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError>;

    /// Has exactly these pages logged again when they are written; `words[0]` is chunk
    /// `first_chunk`. Called right *before* the pages are copied, so no write is missed.
    ///
    /// # Errors
    /// When the log cannot be changed.
    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError>;

    /// Copies memory into `buf` (whole pages) from page `first_page` of `chunk` on.
    ///
    /// # Errors
    /// When the range is outside of memory.
    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError>;

    /// Makes durable what the guest has written to its disks, whether it runs or is paused. May be
    /// called beside any other call, and holds none of them up: [`SourceGuest::resume`] comes while
    /// a disk hangs.
    ///
    /// # Errors
    /// When a disk cannot be flushed.
    fn flush(&self) -> Result<(), GuestError>;

    /// Stops all vCPUs and devices; returns when they stand. Harmless when they do already.
    ///
    /// # Errors
    /// When a vCPU does not stop.
    fn pause(&self) -> Result<(), GuestError>;

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// When a vCPU does not start.
    fn resume(&self) -> Result<(), GuestError>;

    /// Whether it runs; false when paused by its user.
    fn is_running(&self) -> bool;

    /// Gives up what only one copy of the guest may have, such as the locks on its disks: the
    /// decision is recorded, and the destination is about to take it. [`SourceGuest::resume`] takes
    /// it back, should the guest be given back.
    ///
    /// # Errors
    /// When it cannot be given up; the destination then waits in vain, and says so.
    fn release(&self) -> Result<(), GuestError> {
        Ok(())
    }

    /// The state of vCPUs and devices of the paused guest. May dirty memory. Flushes no disk: see
    /// [`SourceGuest::flush`].
    ///
    /// # Errors
    /// When a piece of state cannot be read.
    fn save_state(&self) -> Result<Vec<u8>, GuestError>;
}

/// A guest that has been built to receive another one's memory and state.
pub trait DestinationGuest: Send + Sync {
    /// Writes whole pages into memory, from page `first_page` of `chunk` on.
    ///
    /// # Errors
    /// When the range is outside of memory.
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError>;

    /// Zeroes the pages of `chunk` in `mask`. Only called for pages written before in this
    /// migration: memory is zero when the guest is created.
    ///
    /// # Errors
    /// When the chunk is outside of memory.
    fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError>;

    /// Loads the state of vCPUs and devices. Memory and disks are complete by then, and what came
    /// for the disks is durable when this returns.
    ///
    /// # Errors
    /// When the state is not understood or cannot be loaded.
    fn load_state(&self, state: &[u8]) -> Result<(), GuestError>;

    /// Makes the guest this host's, with the locks and networks that only one copy of it may have;
    /// from now on, what was built for it outlives this process. None of it runs yet. The source
    /// gives those up in this moment, so wait for them a little.
    ///
    /// # Errors
    /// When another process has one of them, or the guest cannot be kept; it then has none of them,
    /// and may be adopted later.
    fn adopt(&self) -> Result<(), GuestError>;

    /// Lets the guest run, which has been adopted.
    ///
    /// # Errors
    /// When a vCPU does not start.
    fn resume(&self) -> Result<(), GuestError>;
}

/// Builds guests for incoming migrations.
pub trait GuestFactory: Send + Sync {
    /// Checks everything that can be checked before anything is created.
    ///
    /// # Errors
    /// Why this host cannot run the guest, and what to do about it.
    fn check(&self, guest: &GuestDescription) -> Result<(), Refusal>;

    /// Builds the guest, paused, with its memory reserved.
    ///
    /// # Errors
    /// Why it could not be built; nothing is left behind.
    fn create(&self, guest: &GuestDescription) -> Result<Arc<dyn DestinationGuest>, Refusal>;
}
