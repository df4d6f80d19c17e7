//! CPUID: what the guest's processor says it can do, and whether another host's can do it too.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// One entry of a CPUID table, as in `struct kvm_cpuid_entry2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// Input EAX, the leaf.
    pub function: u32,
    /// Input ECX, the subleaf; meaningful when bit 0 of `flags` is set.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`.
    pub flags: u32,
    /// Output registers.
    pub eax: u32,
    /// See `eax`.
    pub ebx: u32,
    /// See `eax`.
    pub ecx: u32,
    /// See `eax`.
    pub edx: u32,
}

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidEntry) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            padding: [0; 3],
        }
    }
}

/// A register of CPUID's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// Registers in which each bit is a feature that a guest may come to depend on: leaf, subleaf,
/// register, bits to look at (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
const FEATURE_WORDS: &[(u32, u32, Register, u32)] = &[
    (1, 0, Register::Ecx, !0),
    // Without ACPI (22), HTT (28) and TM (29), which tell of the platform.
    (1, 0, Register::Edx, !(1 << 22 | 1 << 28 | 1 << 29)),
    (7, 0, Register::Ebx, !0),
    (7, 0, Register::Ecx, !0),
    (7, 0, Register::Edx, !0),
    (7, 1, Register::Eax, !0),
    (0xd, 0, Register::Eax, !0),
    (0xd, 1, Register::Eax, !0),
    (0xd, 1, Register::Ecx, !0),
    (0x4000_0001, 0, Register::Eax, !0),
    (0x8000_0001, 0, Register::Ecx, !0),
    (0x8000_0001, 0, Register::Edx, !0),
    (0x8000_0007, 0, Register::Edx, 1 << 8),
    (0x8000_0008, 0, Register::Ebx, !0),
];

/// Names of features that people know by name: leaf, subleaf, register, bit, name in /proc/cpuinfo.
const FEATURE_NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (1, 0, Register::Ecx, 0, "sse3"),
    (1, 0, Register::Ecx, 9, "ssse3"),
    (1, 0, Register::Ecx, 12, "fma"),
    (1, 0, Register::Ecx, 13, "cx16"),
    (1, 0, Register::Ecx, 17, "pcid"),
    (1, 0, Register::Ecx, 19, "sse4_1"),
    (1, 0, Register::Ecx, 20, "sse4_2"),
    (1, 0, Register::Ecx, 21, "x2apic"),
    (1, 0, Register::Ecx, 22, "movbe"),
    (1, 0, Register::Ecx, 23, "popcnt"),
    (1, 0, Register::Ecx, 24, "tsc_deadline_timer"),
    (1, 0, Register::Ecx, 25, "aes"),
    (1, 0, Register::Ecx, 26, "xsave"),
    (1, 0, Register::Ecx, 28, "avx"),
    (1, 0, Register::Ecx, 30, "rdrand"),
    (7, 0, Register::Ebx, 3, "bmi1"),
    (7, 0, Register::Ebx, 5, "avx2"),
    (7, 0, Register::Ebx, 8, "bmi2"),
    (7, 0, Register::Ebx, 16, "avx512f"),
    (7, 0, Register::Ebx, 17, "avx512dq"),
    (7, 0, Register::Ebx, 18, "rdseed"),
    (7, 0, Register::Ebx, 28, "avx512cd"),
    (7, 0, Register::Ebx, 29, "sha_ni"),
    (7, 0, Register::Ebx, 30, "avx512bw"),
    (7, 0, Register::Ebx, 31, "avx512vl"),
    (7, 0, Register::Ecx, 9, "vaes"),
    (7, 0, Register::Edx, 24, "amx_tile"),
    (0x8000_0001, 0, Register::Ecx, 6, "sse4a"),
    (0x8000_0001, 0, Register::Edx, 26, "pdpe1gb"),
    (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
    (0x8000_0007, 0, Register::Edx, 8, "constant_tsc"),
];

/// KVM's paravirtual features that guests are shown (Documentation/virt/kvm/x86/cpuid.rst): the clock
/// in its old and new form, no delay on port access, and that the clock is stable. Left out are those
/// whose state lives in guest memory that KVM writes behind the guest's back (steal time, EOI, async
/// page faults), and hypercalls, which not every KVM completes.
const PARAVIRTUAL_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// What a new guest is shown of what KVM supports. Adds what KVM leaves for the VMM to announce: the
/// hypervisor bit, and the LAPIC's deadline timer, which the in-kernel interrupt controller provides.
pub(crate) fn for_new_guest(mut entries: Vec<CpuidEntry>) -> Vec<CpuidEntry> {
    const TSC_DEADLINE_TIMER: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    for entry in &mut entries {
        match entry.function {
            1 => entry.ecx |= TSC_DEADLINE_TIMER | HYPERVISOR,
            0x4000_0001 => entry.eax &= PARAVIRTUAL_FEATURES,
            _ => {}
        }
    }
    entries
}

/// The table for vCPU `vcpu` of `vcpus`: its APIC id, and one socket with one thread per core.
pub(crate) fn for_vcpu(entries: &[CpuidEntry], vcpu: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let adjusted = entries.iter().copied().map(|mut entry| {
        adjust(&mut entry, vcpu, vcpus);
        kvm_cpuid_entry2::from(&entry)
    });
    adjusted.collect()
}

fn adjust(entry: &mut CpuidEntry, vcpu: u8, vcpus: u8) {
    const HTT: u32 = 1 << 28;
    let (id, count) = (u32::from(vcpu), u32::from(vcpus));
    let core_bits = u32::from(vcpus).next_power_of_two().ilog2();
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | id << 24 | count << 16;
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Cache topology: private to a core, cores in the package.
        4 => entry.eax = entry.eax & 0x0000_3fff | (count - 1) << 26,
        // Extended topology: level 0 is the thread, level 1 the package.
        0xb | 0x1f => {
            let (shift, processors, level) = match entry.index {
                0 => (0, 1, 1),
                1 => (core_bits, count, 2),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx) = (shift, processors);
            entry.ecx = entry.index & 0xff | level << 8;
            entry.edx = id;
        }
        0x8000_0008 => entry.ecx = core_bits << 12 | (count - 1),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Names of the features in `guest` that `host` does not have, in order.
pub(crate) fn missing_features(guest: &[CpuidEntry], host: &[CpuidEntry]) -> Vec<String> {
    feature_bits(guest)
        .filter(|(leaf, subleaf, register, bit)| {
            word(host, *leaf, *subleaf, *register) >> bit & 1 == 0
        })
        .map(|(leaf, subleaf, register, bit)| name(leaf, subleaf, register, bit))
        .collect()
}

fn feature_bits(entries: &[CpuidEntry]) -> impl Iterator<Item = (u32, u32, Register, u32)> {
    FEATURE_WORDS.iter().flat_map(|(leaf, subleaf, register, mask)| {
        let bits = word(entries, *leaf, *subleaf, *register) & mask;
        (0..32).filter(move |bit| bits >> bit & 1 == 1).map(|bit| (*leaf, *subleaf, *register, bit))
    })
}

fn word(entries: &[CpuidEntry], leaf: u32, subleaf: u32, register: Register) -> u32 {
    entries
        .iter()
        .find(|entry| entry.function == leaf && entry.index == subleaf)
        .map_or(0, |entry| register.of(entry))
}

fn name(leaf: u32, subleaf: u32, register: Register, bit: u32) -> String {
    let known = FEATURE_NAMES
        .iter()
        .find(|(l, s, r, b, _)| (*l, *s, *r, *b) == (leaf, subleaf, register, bit));
    match known {
        Some((.., name)) => (*name).to_string(),
        None if subleaf == 0 => format!("cpuid {leaf:#x} {} bit {bit}", register.name()),
        None => format!("cpuid {leaf:#x}.{subleaf} {} bit {bit}", register.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, ebx: u32, ecx: u32) -> CpuidEntry {
        CpuidEntry { function, index, flags: 0, eax: 0, ebx, ecx, edx: 0 }
    }

    #[test]
    fn missing_features_are_named_and_extra_ones_do_not_matter() {
        let guest = [entry(1, 0, 0, 1 << 28 | 1 << 0), entry(7, 0, 1 << 16 | 1 << 21, 0)];
        let host = [entry(1, 0, 0, 1 << 0 | 1 << 5), entry(7, 0, 0, 0)];
        assert_eq!(missing_features(&guest, &host), ["avx", "avx512f", "cpuid 0x7 ebx bit 21"]);
        assert!(missing_features(&guest, &guest).is_empty());
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let entries = [entry(1, 0, 0xff00_1234, 0), entry(0xb, 1, 0, 0)];
        for vcpu in 0..3 {
            let table = for_vcpu(&entries, vcpu, 3);
            assert_eq!(table[0].ebx, u32::from(vcpu) << 24 | 3 << 16 | 0x1234);
            assert_eq!((table[1].eax, table[1].ebx, table[1].edx), (2, 3, u32::from(vcpu)));
        }
    }
}
