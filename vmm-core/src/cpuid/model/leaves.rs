//! The allow-list of levels: what a level shows of each output register of CPUID. Everything that
//! is not listed reads as zero.

use std::ops::RangeInclusive;

use super::super::CpuidEntry;
use super::super::feature::{Bit, Register};

/// What a level shows of one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Zero, whatever the host has.
    Nothing,
    /// The host's value: an identity, a size, a cache, a frequency.
    Host,
    /// The host's value, but at most this: the last subleaf.
    AtMost(u32),
    /// The features that the model lists.
    Features,
    /// As [`Shown::Features`], plus the bits that repeat those of leaf 1 (AMD APM volume 3,
    /// Fn8000_0001_EDX).
    FeaturesAndRepeated,
    /// The extended-state components that the model lists.
    Xcr0,
}

use Shown::{AtMost, Features, FeaturesAndRepeated, Host, Nothing, Xcr0};

/// Leaves, subleaves, and what is shown of EAX, EBX, ECX and EDX.
type Leaf = (RangeInclusive<u32>, RangeInclusive<u32>, [Shown; 4]);

const FIRST_SUBLEAF: RangeInclusive<u32> = 0..=0;
const ANY_SUBLEAF: RangeInclusive<u32> = 0..=u32::MAX;

/// The leaves that a level shows; see Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E.
/// The omitted leaves describe counters, tracing, tiles and nested virtualization. The topology
/// leaves pass through here, but `cpuid/topology.rs` replaces their content with the guest's own
/// topology.
const LEAVES: &[Leaf] = &[
    (0..=0, FIRST_SUBLEAF, [Host; 4]),
    (1..=1, FIRST_SUBLEAF, [Host, Host, Features, Features]),
    // Caches.
    (2..=2, ANY_SUBLEAF, [Host; 4]),
    (4..=4, ANY_SUBLEAF, [Host; 4]),
    (6..=6, FIRST_SUBLEAF, [Features, Nothing, Nothing, Nothing]),
    (7..=7, FIRST_SUBLEAF, [AtMost(1), Features, Features, Features]),
    (7..=7, 1..=1, [Features; 4]),
    // Topology.
    (0xb..=0xb, ANY_SUBLEAF, [Host; 4]),
    (0x1f..=0x1f, ANY_SUBLEAF, [Host; 4]),
    // Extended state; EBX and ECX are the sizes of what is enabled.
    (0xd..=0xd, FIRST_SUBLEAF, [Xcr0, Host, Host, Nothing]),
    (0xd..=0xd, 1..=1, [Features, Host, Features, Nothing]),
    (0xd..=0xd, 2..=63, [Host, Host, Host, Nothing]),
    // Frequencies.
    (0x15..=0x16, FIRST_SUBLEAF, [Host; 4]),
    // KVM's own leaves; `for_new_guest` has already restricted the features in them.
    (0x4000_0000..=0x4000_00ff, ANY_SUBLEAF, [Host; 4]),
    (0x8000_0000..=0x8000_0000, FIRST_SUBLEAF, [Host; 4]),
    (0x8000_0001..=0x8000_0001, FIRST_SUBLEAF, [Host, Nothing, Features, FeaturesAndRepeated]),
    // The processor's name; caches.
    (0x8000_0002..=0x8000_0006, FIRST_SUBLEAF, [Host; 4]),
    (0x8000_0007..=0x8000_0007, FIRST_SUBLEAF, [Nothing, Nothing, Nothing, Features]),
    // Address widths; number of cores.
    (0x8000_0008..=0x8000_0008, FIRST_SUBLEAF, [Host, Features, Host, Nothing]),
    // Caches and topology of AMD's processors.
    (0x8000_001d..=0x8000_001e, ANY_SUBLEAF, [Host; 4]),
];

/// Bits of leaf 0x8000_0001, EDX, that repeat those of leaf 1.
const REPEATED: u32 = 0x0183_f3ff;

/// Clears everything in `host` that a level does not show. `kept` are the features of the level,
/// `xcr0` its extended-state components.
pub(super) fn mask(host: &mut Vec<CpuidEntry>, kept: &[Bit], xcr0: u32) {
    host.retain_mut(|entry| {
        let Some(shown) = shown(entry) else { return false };
        let registers = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx];
        for (register, shown) in registers.into_iter().zip(shown) {
            let features = features(kept, entry, register);
            let word = entry.register_mut(register);
            *word = match shown {
                Nothing => 0,
                Host => *word,
                AtMost(limit) => (*word).min(limit),
                Features => *word & features,
                FeaturesAndRepeated => *word & (features | REPEATED),
                Xcr0 => *word & xcr0,
            };
        }
        true
    });
}

fn shown(entry: &CpuidEntry) -> Option<[Shown; 4]> {
    let leaf = LEAVES.iter().find(|(leaves, subleaves, _)| {
        leaves.contains(&entry.function) && subleaves.contains(&entry.index)
    });
    leaf.map(|(.., shown)| *shown)
}

/// Returns the bits of `kept` in a register of `entry`.
fn features(kept: &[Bit], entry: &CpuidEntry, register: Register) -> u32 {
    let place = (entry.function, entry.index, register);
    let here = kept.iter().filter(|(leaf, subleaf, of, _)| (*leaf, *subleaf, *of) == place);
    here.fold(0, |bits, (.., bit)| bits | 1 << bit)
}
