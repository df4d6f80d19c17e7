//! Files on disk: saved guests, encoded states and shapes, migration records.

use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use migrate::MigrationId;
use migrate::progress::Role;
use migrate::record::RecordStore;
use tempfile::{NamedTempFile, TempDir};
use vmm_core::cpuid::{CpuidEntry, MsrValue};
use vmm_core::memory::MemoryConfig;
use vmm_core::snapshot::Template;
use vmm_core::state::StateError;
use vmm_core::virtio::balloon::FreePages;
use vmm_core::{DeviceConfig, MachineKind, Slots, VmShape, VmState, snapshot};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::driver::{MEMORY_BYTES, seed};

/// Memory in a template begins at a multiple of this, in bytes.
const TEMPLATE_ALIGNMENT_BYTES: u64 = 2 << 20;

/// An encoded shape or state.
#[derive(Debug, Arbitrary)]
pub enum Encoded {
    /// A valid one, with changes.
    Good(Changed),
    /// Arbitrary bytes.
    AsIs(Vec<u8>),
}

/// Changes to a valid encoding.
#[derive(Debug, Arbitrary)]
pub struct Changed {
    /// Which of the valid encodings to use.
    which: u8,
    /// Offsets, each with a number that is added to the byte there.
    bytes: Vec<(u16, u8)>,
    rest: Vec<u8>,
}

impl Encoded {
    fn of(&self, good: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::AsIs(bytes) => bytes.clone(),
            Self::Good(Changed { which, bytes: changes, rest }) => {
                let mut bytes = good[usize::from(*which) % good.len()].clone();
                for (at, add) in changes {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = bytes[at].wrapping_add(*add);
                }
                bytes.extend(rest);
                bytes
            }
        }
    }
}

/// A saved guest with arbitrary parts but valid checksums, because random damage would not get past
/// those.
#[derive(Debug, Arbitrary)]
pub struct SavedGuest {
    shape: Encoded,
    state: Encoded,
    chunks: Vec<Chunk>,
    /// The number of chunks in the end entry, if it is not the correct one.
    told: Option<u64>,
    /// A byte to damage after the checksums are computed.
    damage: Option<(u32, u8)>,
    rest: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
struct Chunk {
    /// Distance from the previous chunk; 0 repeats its number.
    step: u8,
    mask: u64,
    /// Decides how many pages are missing compared with the mask.
    missing: u8,
    fill: u8,
}

impl SavedGuest {
    fn bytes(&self, good: &Good) -> Vec<u8> {
        let mut file = b"LIGHTER\n".to_vec();
        file.extend(1u32.to_le_bytes());
        for section in [self.shape.of(&good.shapes), self.state.of(&good.states)] {
            file.extend((section.len() as u32).to_le_bytes());
            file.extend(section);
        }
        file.extend(xxh3_64(&file).to_le_bytes());
        let mut number = 0u64;
        for chunk in &self.chunks {
            // 16 chunks fit into memory.
            let mask = chunk.mask & if chunk.fill & 1 == 0 { 0xf } else { u64::MAX };
            let pages = (mask.count_ones() as usize).saturating_sub((chunk.missing / 200).into());
            entry(&mut file, number, mask, &vec![chunk.fill; pages * 4096]);
            number += u64::from(chunk.step % 4);
        }
        entry(&mut file, u64::MAX, self.told.unwrap_or(self.chunks.len() as u64), &[]);
        file.extend(&self.rest);
        if let Some((at, byte)) = self.damage {
            let at = at as usize % file.len();
            file[at] ^= byte;
        }
        file
    }
}

fn entry(file: &mut Vec<u8>, first: u64, second: u64, pages: &[u8]) {
    let words = [first.to_le_bytes(), second.to_le_bytes()].concat();
    let mut sum = Xxh3::new();
    sum.update(&words);
    sum.update(pages);
    file.extend(words);
    file.extend(pages);
    file.extend(sum.digest().to_le_bytes());
}

/// A template file: its head has a valid checksum, and its memory may end anywhere.
#[derive(Debug, Arbitrary)]
pub struct TemplateFile {
    shape: Encoded,
    state: Encoded,
    flaw: Option<Flaw>,
}

/// An error in a template other than in its shape or state.
#[derive(Debug, Arbitrary)]
enum Flaw {
    Version(u32),
    /// Bytes that are missing at the end if negative, or surplus.
    Excess(i32),
    /// A byte to damage after the checksum is computed.
    Damage(u32, u8),
}

impl TemplateFile {
    fn head(&self, good: &Good) -> Vec<u8> {
        let version = if let Some(Flaw::Version(version)) = self.flaw { version } else { 1 };
        let mut head = b"LIGHTPL\n".to_vec();
        head.extend(version.to_le_bytes());
        for section in [self.shape.of(&good.shapes), self.state.of(&good.states)] {
            head.extend((section.len() as u32).to_le_bytes());
            head.extend(section);
        }
        head.extend(xxh3_64(&head).to_le_bytes());
        if let Some(Flaw::Damage(at, byte)) = self.flaw {
            let at = at as usize % head.len();
            head[at] ^= byte;
        }
        head
    }
}

/// Opens a template; returns whether guests could be started from it.
///
/// # Panics
/// If there is no room for temporary files.
pub fn template(template: &TemplateFile) -> bool {
    let head = template.head(good());
    let memory_at = (head.len() as u64).next_multiple_of(TEMPLATE_ALIGNMENT_BYTES);
    let right = (memory_at + MEMORY_BYTES).cast_signed();
    let excess = if let Some(Flaw::Excess(bytes)) = template.flaw { bytes } else { 0 };
    let len = right + i64::from(excess);
    let file = NamedTempFile::new().unwrap_or_else(|error| panic!("no file: {error}"));
    let written = file.as_file().write_all_at(&head, 0);
    let written = written.and_then(|()| file.as_file().set_len(len.max(0).cast_unsigned()));
    written.unwrap_or_else(|error| panic!("no template: {error}"));
    let opened = Template::open(file.path());
    if let Ok(template) = &opened {
        let bytes = memory_at + template.shape().memory_bytes;
        assert_eq!(bytes.cast_signed(), len, "memory beyond the end of the file");
    }
    opened.is_ok()
}

/// Readable shapes and states: of guests of each machine, with a device of each type or with none,
/// and with a vCPU or none.
struct Good {
    shapes: Vec<Vec<u8>>,
    states: Vec<Vec<u8>>,
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| Good {
        shapes: [
            vec![],
            vec![
                DeviceConfig::Rng,
                DeviceConfig::Balloon(FreePages::Reported),
                DeviceConfig::Vsock { cid: 3 },
                seed(),
            ],
        ]
        .map(|devices| [MachineKind::Mmio, MachineKind::Pci].map(|kind| shape(&devices, kind)))
        .concat(),
        states: vec![state(0, 0), state(0, 1), state(1, 1), state(2, 1)],
    })
}

fn shape(devices: &[DeviceConfig], machine: MachineKind) -> Vec<u8> {
    let entry = CpuidEntry { function: 1, index: 0, flags: 0, eax: 1, ebx: 2, ecx: 3, edx: 4 };
    let memory_bytes = MEMORY_BYTES;
    let (cpuid, tsc_khz, xsave_bytes) = (vec![entry; 2], 1_000_000, 4096);
    let (cpu_model, memory) = ("host".to_owned(), MemoryConfig::default());
    // Only for shapes with devices: a shape without labels is encoded in another version.
    let label = || ("team".to_owned(), "shop".to_owned());
    let labels = devices.first().map(|_| label()).into_iter().collect();
    // IA32_ARCH_CAPABILITIES.
    let feature_msrs = vec![MsrValue { index: 0x10a, value: 1 }];
    let shape = VmShape {
        memory_bytes,
        vcpus: 1,
        cpu_model,
        cpuid,
        feature_msrs,
        tsc_khz,
        xsave_bytes,
        memory,
        devices: devices.to_vec(),
        labels,
        machine,
        slots: Slots::default(),
    };
    shape.to_bytes().unwrap_or_else(|error| panic!("no shape: {error}"))
}

/// A state that is all zeros, in whatever length the decoder accepts for its version, of those it
/// knows the one of this number; found by trying.
fn state(version: usize, vcpus: u64) -> Vec<u8> {
    let head = |version: u16| {
        let architecture = 0x8664_u16.to_le_bytes();
        [b"LVMS".as_slice(), &version.to_le_bytes(), &architecture, &vcpus.to_le_bytes()].concat()
    };
    let is_known = |version: &u16| {
        !matches!(VmState::from_bytes(&head(*version)), Err(StateError::Version { .. }))
    };
    let mut known = (0..1000).filter(is_known);
    let version = known.nth(version).unwrap_or_else(|| panic!("no such version of a state"));
    let mut bytes = head(version);
    while VmState::from_bytes(&bytes).is_err() {
        bytes.push(0);
        assert!(bytes.len() < 64 << 10, "no state of zeros is a state");
    }
    bytes
}

/// Reads a saved guest; returns whether it is valid.
pub fn saved_guest(saved: &SavedGuest) -> bool {
    snapshot::read_into_new(&saved.bytes(good()), MEMORY_BYTES).is_ok()
}

/// Reads a shape and a state, which peers also send; returns how many of them are valid.
///
/// # Panics
/// If a valid one cannot be encoded again.
pub fn shape_and_state((shape, state): &(Encoded, Encoded)) -> u64 {
    let mut understood = 0;
    if let Ok(shape) = VmShape::from_bytes(&shape.of(&good().shapes)) {
        understood += 1;
        assert!(shape.layout().is_ok(), "{shape:?}");
        let bytes = shape.to_bytes();
        assert!(bytes.is_ok_and(|bytes| VmShape::from_bytes(&bytes).is_ok_and(|it| it == shape)));
    }
    if let Ok(state) = VmState::from_bytes(&state.of(&good().states)) {
        understood += 1;
        assert!(state.to_bytes().is_ok_and(|bytes| VmState::from_bytes(&bytes).is_ok()));
    }
    understood
}

/// Lines of a migration's record.
#[derive(Debug, Arbitrary)]
pub enum Line {
    /// Arbitrary bytes.
    AsIs(Vec<u8>),
    /// A record with its valid checksum and line end.
    Checked(Vec<u8>),
}

/// Reads `lines` as a migration's record; returns whether they contain a valid one.
///
/// # Panics
/// If there is no temporary folder.
pub fn record(lines: &[Line]) -> bool {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder =
        FOLDER.get_or_init(|| tempfile::tempdir().unwrap_or_else(|error| panic!("{error}")));
    let store = RecordStore::open(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    let bytes: Vec<u8> = lines.iter().flat_map(Line::bytes).collect();
    let migration = MigrationId(Default::default());
    let file = folder.path().join(format!("{migration}.source.json"));
    std::fs::write(&file, bytes).unwrap_or_else(|error| panic!("{error}"));
    // A file without a valid record must not be reported as a missing file.
    let read = store.read(migration, Role::Source, |_| true);
    assert!(!matches!(read, Ok(None)));
    read.is_ok()
}

impl Line {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::AsIs(bytes) => bytes.clone(),
            Self::Checked(bytes) => {
                let sum = format!("{:016x} ", xxh3_64(bytes));
                [sum.as_bytes(), bytes, b"\n"].concat()
            }
        }
    }
}
