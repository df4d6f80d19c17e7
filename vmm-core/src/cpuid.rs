//! CPUID: the features that a guest's processor reports, and whether another host has them too.

mod feature;
mod model;
pub(crate) mod msr;
mod topology;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use feature::{Bit, FEATURE_WORDS, Register};
pub(crate) use model::check_name;
pub use model::{CpuModel, ModelError, Nested};
pub use msr::MsrValue;

/// One entry of a CPUID table, as in `struct kvm_cpuid_entry2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// Input EAX, the leaf.
    pub function: u32,
    /// Input ECX, the subleaf; meaningful when bit 0 of `flags` is set.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`; bit 0: the entry is for one subleaf.
    pub flags: u32,
    /// EAX that the guest's CPUID instruction returns.
    pub eax: u32,
    /// EBX that it returns.
    pub ebx: u32,
    /// ECX that it returns.
    pub ecx: u32,
    /// EDX that it returns.
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

impl CpuidEntry {
    fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// KVM's paravirtual features that guests see (Documentation/virt/kvm/x86/cpuid.rst): the clock in
/// its old and new form, no delay on port access, and the clock's stability. Hidden are those whose
/// state lives in guest memory that KVM writes behind the guest's back (steal time, EOI, async page
/// faults), and hypercalls, which not every KVM completes.
const PARAVIRTUAL_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// Returns the part of KVM's supported CPUID that a new guest sees. Adds what KVM leaves for the
/// VMM to announce: the hypervisor bit, and the features of the in-kernel interrupt controller that
/// exist on any host, which are the LAPIC's deadline timer and the x2APIC (KVM reports the latter
/// itself, too). Hides features whose state is not saved: shadow stacks, whose pointer is not an
/// MSR (`KVM_REG_GUEST_SSP`, since Linux 6.18), and with them indirect-branch tracking.
pub(crate) fn for_new_guest(mut entries: Vec<CpuidEntry>) -> Vec<CpuidEntry> {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE_TIMER: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const SHSTK: u32 = 1 << 7;
    const IBT: u32 = 1 << 20;
    /// The states of both features in IA32_XSS.
    const CET: u32 = 0b11 << 11;
    for entry in &mut entries {
        match entry.function {
            7 if entry.index == 0 => {
                entry.ecx &= !SHSTK;
                entry.edx &= !IBT;
            }
            0xd if entry.index == 1 => entry.ecx &= !CET,
            1 => entry.ecx |= X2APIC | TSC_DEADLINE_TIMER | HYPERVISOR,
            0x4000_0001 => entry.eax &= PARAVIRTUAL_FEATURES,
            _ => {}
        }
    }
    entries
}

/// Returns the table for vCPU `vcpu` of `vcpus` in KVM's format, with the vCPU's APIC ID and its
/// place in one socket with one thread per core. `None` if there are more entries than KVM accepts.
pub(crate) fn table(entries: &[CpuidEntry], vcpu: u8, vcpus: u8) -> Option<CpuId> {
    let entries: Vec<_> =
        topology::for_vcpu(entries, vcpu, vcpus).iter().map(kvm_cpuid_entry2::from).collect();
    CpuId::from_entries(&entries).ok()
}

/// Returns the names of the features in `guest` that `host` lacks, in the order of
/// `FEATURE_WORDS`.
pub(crate) fn missing_features(guest: &[CpuidEntry], host: &[CpuidEntry]) -> Vec<String> {
    feature_bits(guest)
        .filter(|(leaf, subleaf, register, bit)| {
            word(host, *leaf, *subleaf, *register) >> bit & 1 == 0
        })
        .map(feature::name)
        .collect()
}

fn feature_bits(entries: &[CpuidEntry]) -> impl Iterator<Item = Bit> {
    FEATURE_WORDS.iter().flat_map(|(leaf, subleaf, register, mask)| {
        let bits = word(entries, *leaf, *subleaf, *register) & mask;
        (0..32).filter(move |bit| bits >> bit & 1 == 1).map(|bit| (*leaf, *subleaf, *register, bit))
    })
}

fn word(entries: &[CpuidEntry], leaf: u32, subleaf: u32, register: Register) -> u32 {
    entries
        .iter()
        .find(|entry| entry.function == leaf && entry.index == subleaf)
        .map_or(0, |entry| entry.register(register))
}

/// Returns the processor's vendor: `GenuineIntel`, `AuthenticAMD`. Empty when the table has no leaf
/// 0.
pub(crate) fn vendor(entries: &[CpuidEntry]) -> String {
    let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else { return String::new() };
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    bytes.into_iter().filter(u8::is_ascii_graphic).map(char::from).collect()
}

/// Returns the number of bits of physical addresses; 36, as all have, when the table does not say.
pub(crate) fn address_bits(entries: &[CpuidEntry]) -> u32 {
    const LEAF: u32 = 0x8000_0008;
    entries.iter().find(|entry| entry.function == LEAF).map_or(36, |leaf| leaf.eax & 0xff)
}

/// Whether the processor is AMD's or derived from AMD's (Hygon).
pub(crate) fn is_amd(entries: &[CpuidEntry]) -> bool {
    ["AuthenticAMD", "HygonGenuine"].contains(&vendor(entries).as_str())
}

fn has(entries: &[CpuidEntry], (leaf, subleaf, register, bit): Bit) -> bool {
    word(entries, leaf, subleaf, register) >> bit & 1 == 1
}

/// Whether a guest with this table has the model-specific register `msr`. Some registers report
/// features beyond CPUID's words; a guest has such a register only if a CPUID feature announces it.
pub(crate) fn has_msr(entries: &[CpuidEntry], msr: u32) -> bool {
    msr::is_announced(entries, msr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, ebx: u32, ecx: u32) -> CpuidEntry {
        CpuidEntry { function, index, flags: 0, eax: 0, ebx, ecx, edx: 0 }
    }

    #[test]
    fn missing_features_are_named_and_extra_ones_do_not_matter() {
        let guest = [entry(1, 0, 0, 1 << 28 | 1 << 0), entry(7, 0, 1 << 16 | 1 << 22, 0)];
        let host = [entry(1, 0, 0, 1 << 0 | 1 << 5), entry(7, 0, 0, 0)];
        assert_eq!(missing_features(&guest, &host), ["avx", "avx512f", "cpuid 0x7 ebx bit 22"]);
        assert!(missing_features(&guest, &guest).is_empty());
    }

    #[test]
    fn features_with_unsaved_state_are_hidden() {
        let all =
            |function, index| CpuidEntry { eax: !0, edx: !0, ..entry(function, index, !0, !0) };
        let shown = for_new_guest(vec![all(7, 0), all(0xd, 1)]);
        assert!(["shstk", "ibt"].iter().all(|name| !has(&shown, feature::by_name(name).unwrap())));
        assert_eq!(word(&shown, 0xd, 1, Register::Ecx), !0x1800);
        assert_eq!(word(&shown, 7, 0, Register::Ebx), !0);
    }

    #[test]
    fn vendors_are_recognized_by_name() {
        let mut leaf = entry(0, 0, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"));
        leaf.edx = u32::from_le_bytes(*b"enti");
        assert_eq!(vendor(&[leaf]), "AuthenticAMD");
        assert_eq!(vendor(&[]), "");
    }

    #[test]
    fn registers_of_hidden_features_are_not_available_to_the_guest() {
        let shown = [CpuidEntry { edx: 1 << 29, ..entry(7, 0, 0, 0) }];
        assert!(has_msr(&shown, 0x10a) && !has_msr(&[], 0x10a) && !has_msr(&shown, 0x345));
        assert!(has_msr(&[entry(1, 0, 0, 1 << 15)], 0x345) && has_msr(&[], 0x10));
    }
}
