//! The allow-list of levels: what of each register of CPUID's output a level shows. What is not
//! listed is zero.

use std::ops::RangeInclusive;

use super::super::CpuidEntry;
use super::super::feature::{Bit, Register};

/// What a level shows in one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Zero.
    Nothing,
    /// The host's value: an identity, a size, a cache, a frequency.
    Host,
    /// The host's value, but not more than this: the last subleaf.
    AtMost(u32),
    /// The features that the model names.
    Features,
    /// As [`Shown::Features`], with the bits that repeat those of leaf 1 (AMD APM volume 3,
    /// Fn8000_0001_EDX).
    FeaturesAndRepeated,
    /// The components of extended state that the model names.
    Xcr0,
}

use Shown::{AtMost, Features, FeaturesAndRepeated, Host, Nothing, Xcr0};

/// A leaf, its subleaves, and what is shown in EAX, EBX, ECX and EDX.
type Leaf = (RangeInclusive<u32>, RangeInclusive<u32>, [Shown; 4]);

const FIRST_SUBLEAF: RangeInclusive<u32> = 0..=0;
const ANY_SUBLEAF: RangeInclusive<u32> = 0..=u32::MAX;

/// See Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E. What is missing tells of
/// counters, tracing, tiles and nested virtualization. The topology is the guest's own, whatever
/// the host shows (`cpuid/topology.rs`).
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
    // Extended state; the sizes in EBX and ECX are those of what is enabled.
    (0xd..=0xd, FIRST_SUBLEAF, [Xcr0, Host, Host, Nothing]),
    (0xd..=0xd, 1..=1, [Features, Host, Features, Nothing]),
    (0xd..=0xd, 2..=63, [Host, Host, Host, Nothing]),
    // Frequencies.
    (0x15..=0x16, FIRST_SUBLEAF, [Host; 4]),
    // KVM's own, of which `for_new_guest` has taken the features that a guest is shown.
    (0x4000_0000..=0x4000_00ff, ANY_SUBLEAF, [Host; 4]),
    (0x8000_0000..=0x8000_0000, FIRST_SUBLEAF, [Host; 4]),
    (0x8000_0001..=0x8000_0001, FIRST_SUBLEAF, [Host, Nothing, Features, FeaturesAndRepeated]),
    // The processor's name; caches.
    (0x8000_0002..=0x8000_0006, FIRST_SUBLEAF, [Host; 4]),
    (0x8000_0007..=0x8000_0007, FIRST_SUBLEAF, [Nothing, Nothing, Nothing, Features]),
    // The width of addresses; the number of cores.
    (0x8000_0008..=0x8000_0008, FIRST_SUBLEAF, [Host, Features, Host, Nothing]),
    // Caches and topology of AMD's processors.
    (0x8000_001d..=0x8000_001e, ANY_SUBLEAF, [Host; 4]),
];

/// Bits of leaf 0x8000_0001, EDX, that repeat those of leaf 1.
const REPEATED: u32 = 0x0183_f3ff;

/// Clears everything in `host` that a level does not show. `kept` are the level's features, `xcr0`
/// its components of extended state.
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

/// The bits of `kept` in a register of `entry`.
fn features(kept: &[Bit], entry: &CpuidEntry, register: Register) -> u32 {
    let place = (entry.function, entry.index, register);
    let here = kept.iter().filter(|(leaf, subleaf, of, _)| (*leaf, *subleaf, *of) == place);
    here.fold(0, |bits, (.., bit)| bits | 1 << bit)
}
