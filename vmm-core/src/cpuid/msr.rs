//! Model-specific registers that report features (`KVM_GET_MSR_FEATURE_INDEX_LIST`): what a guest
//! sees of them, and whether another host provides the same.
//!
//! Not included are the microcode revision, which is no feature and which KVM makes up for guests,
//! and the registers that describe nested virtualisation, which no level has.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::{CpuidEntry, feature, has};
use crate::error::{KvmContext, Result};

/// A model-specific register and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrValue {
    /// The register's number.
    pub index: u32,
    /// The register's value.
    pub value: u64,
}

/// Builds a list of `indices` for `KVM_GET_MSRS`, with room for their values.
pub(crate) fn msr_list(indices: &[u32]) -> Option<Msrs> {
    let entries: Vec<kvm_msr_entry> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    Msrs::from_entries(&entries).ok()
}

/// A register that reports features.
#[derive(Debug)]
pub(super) struct FeatureMsr {
    index: u32,
    /// The CPUID feature that announces the register; a guest without it lacks the register.
    announced_by: Option<&'static str>,
    /// Bits that every host of every level has.
    everywhere: u64,
    /// Bits that report a weakness: guests rely on such a bit being 0. A level may include hosts
    /// with the weakness, so guests of levels always see the bit set, as Intel recommends for RSBA
    /// ("Retpoline: A Branch Target Injection Mitigation", on migration pools).
    warnings: u64,
    /// Bits that form numbers. They must be equal on both hosts, unless they are 0 in the guest,
    /// which then relies on none.
    numbers: u64,
}

const ARCH_CAPABILITIES: u32 = 0x10a;

/// The known registers, in ascending order of their numbers (Intel SDM volume 4; Linux,
/// `arch/x86/include/asm/msr-index.h`).
const FEATURE_MSRS: &[FeatureMsr] = &[
    // MSR_PLATFORM_INFO: faults on CPUID, which KVM emulates on any processor.
    FeatureMsr { index: 0xce, announced_by: None, everywhere: 1 << 31, warnings: 0, numbers: 0 },
    FeatureMsr {
        index: ARCH_CAPABILITIES,
        announced_by: Some("arch_capabilities"),
        everywhere: 0,
        warnings: 1 << 2 | 1 << 19,
        numbers: 0,
    },
    // IA32_PERF_CAPABILITIES: the formats of branch and event records are numbers.
    FeatureMsr {
        index: 0x345,
        announced_by: Some("pdcm"),
        everywhere: 0,
        warnings: 0,
        numbers: 0xf3f,
    },
    // MSR_AMD64_DE_CFG: LFENCE is serializing, or can be made so, on AMD's processors since 2007.
    FeatureMsr {
        index: 0xc001_1029,
        announced_by: None,
        everywhere: 1 << 1,
        warnings: 0,
        numbers: 0,
    },
];

/// Names of the bits of IA32_ARCH_CAPABILITIES, as in Linux.
const NAMES: &[(u32, &str)] = &[
    (0, "rdcl_no"),
    (1, "ibrs_all"),
    (2, "rsba"),
    (3, "skip_vmentry_l1dflush"),
    (4, "ssb_no"),
    (5, "mds_no"),
    (6, "pschange_mc_no"),
    (7, "tsx_ctrl"),
    (8, "taa_no"),
    (13, "sbdr_ssdp_no"),
    (14, "fbsdp_no"),
    (15, "psdp_no"),
    (17, "fb_clear"),
    (19, "rrsba"),
    (20, "bhi_no"),
    (24, "pbrsb_no"),
    (26, "gds_no"),
    (27, "rfds_no"),
    (28, "rfds_clear"),
    (62, "its_no"),
];

/// Returns the bit of IA32_ARCH_CAPABILITIES with this name.
fn bit_by_name(name: &str) -> Option<u64> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(bit, _)| 1 << bit)
}

/// Returns the CPUID feature that announces the register with the bit `name`.
pub(super) fn announced_by(name: &str) -> Option<&'static str> {
    bit_by_name(name)?;
    FEATURE_MSRS.iter().find(|msr| msr.index == ARCH_CAPABILITIES)?.announced_by
}

impl FeatureMsr {
    fn of(index: u32) -> Option<&'static Self> {
        FEATURE_MSRS.iter().find(|msr| msr.index == index)
    }

    /// Returns the bits of this register that `names` lists.
    fn bits(&self, names: &[String]) -> u64 {
        let named = names.iter().filter_map(|name| bit_by_name(name));
        if self.index == ARCH_CAPABILITIES { named.fold(0, |bits, bit| bits | bit) } else { 0 }
    }

    fn is_announced(&self, cpuid: &[CpuidEntry]) -> bool {
        let feature = self.announced_by.map(feature::by_name);
        feature.is_none_or(|feature| feature.is_some_and(|bit| has(cpuid, bit)))
    }

    fn bit_name(&self, bit: u32) -> String {
        let known = NAMES.iter().find(|(known, _)| *known == bit);
        match known.filter(|_| self.index == ARCH_CAPABILITIES) {
            Some((_, name)) => format!("{name} (msr {:#x})", self.index),
            None => format!("msr {:#x} bit {bit}", self.index),
        }
    }

    /// Returns what a guest with the value `guest` relies on and a host with the value `host`
    /// lacks. `host` is `None` if the host does not have the register.
    fn missing(&self, guest: u64, host: Option<u64>) -> Vec<String> {
        let is_there = if host.is_some() { !0 } else { 0 };
        let host = host.unwrap_or_default();
        let bits = |bits: u64| (0..64).filter(move |bit| bits >> bit & 1 == 1);
        let lacking = bits(guest & !host & !(self.warnings & is_there) & !self.numbers);
        let unsaid = bits(host & !guest & self.warnings);
        let mut missing: Vec<_> = lacking.map(|bit| self.bit_name(bit)).collect();
        missing.extend(unsaid.map(|bit| format!("no {}", self.bit_name(bit))));
        let (guest, host) = (guest & self.numbers, host & self.numbers);
        if guest != 0 && guest != host {
            missing.push(format!("{guest:#x} for the numbers in msr {:#x}", self.index));
        }
        missing
    }
}

/// Whether a guest with the table `cpuid` has register `index`; true for a register that no feature
/// announces.
pub(super) fn is_announced(cpuid: &[CpuidEntry], index: u32) -> bool {
    FeatureMsr::of(index).is_none_or(|msr| msr.is_announced(cpuid))
}

/// Returns the feature registers that KVM provides to guests on this host, with all bits that it
/// supports. KVM may list registers that it then withholds from guests, so this sets each one on
/// `vcpu`, which has everything in its CPUID that KVM supports, to find out.
pub(crate) fn of_host(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<MsrValue>> {
    let listed = kvm.get_msr_feature_index_list().call("KVM_GET_MSR_FEATURE_INDEX_LIST")?;
    let there = FEATURE_MSRS.iter().filter(|msr| listed.as_slice().contains(&msr.index));
    let values = there.filter_map(|msr| {
        let mut one = msr_list(&[msr.index])?;
        let is_read = kvm.get_msrs(&mut one).is_ok_and(|count| count == 1);
        let is_given = is_read && vcpu.set_msrs(&one).is_ok_and(|count| count == 1);
        is_given.then(|| MsrValue { index: msr.index, value: one.as_slice()[0].data })
    });
    Ok(values.collect())
}

/// Returns the registers of `host` as a guest with the table `cpuid` sees them: all bits, or those
/// of every host of a level; plus the bits named in `add`, minus those named in `remove`.
pub(super) fn shown(
    host: &[MsrValue],
    cpuid: &[CpuidEntry],
    extent: Extent,
    (add, remove): (&[String], &[String]),
) -> Vec<MsrValue> {
    let known = host.iter().filter_map(|value| Some((FeatureMsr::of(value.index)?, value)));
    let masked = known.map(|(msr, &MsrValue { index, value })| {
        let (added, removed) = (msr.bits(add), msr.bits(remove));
        let (kept, warned) = match extent {
            Extent::Host => (!0, value),
            Extent::Level => (msr.everywhere | added, !0),
        };
        let announced = value & kept & !msr.warnings | (warned | added) & msr.warnings;
        // A register that the guest does not see is set too, to 0: KVM uses its value to decide
        // what else to allow.
        MsrValue { index, value: if msr.is_announced(cpuid) { announced & !removed } else { 0 } }
    });
    masked.collect()
}

/// How much of a host's registers a model shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All bits that the host has.
    Host,
    /// The bits that every host of a level has.
    Level,
}

/// Returns the bits in `names` that the registers of `host` lack. A weakness is never missing.
pub(super) fn missing_names(names: &[String], host: &[MsrValue]) -> Vec<String> {
    let Some(msr) = FeatureMsr::of(ARCH_CAPABILITIES) else { return Vec::new() };
    let value = host.iter().find(|value| value.index == msr.index).map_or(0, |value| value.value);
    let has = value | msr.warnings;
    names
        .iter()
        .filter(|name| bit_by_name(name).is_some_and(|bit| has & bit == 0))
        .cloned()
        .collect()
}

/// Returns, for people, what a guest with the table `cpuid` and the registers `guest` relies on and
/// `host` lacks.
pub(crate) fn missing(guest: &[MsrValue], cpuid: &[CpuidEntry], host: &[MsrValue]) -> Vec<String> {
    let known = guest.iter().filter_map(|value| Some((FeatureMsr::of(value.index)?, value.value)));
    let announced = known.filter(|(msr, _)| msr.is_announced(cpuid));
    let of_host = |index| host.iter().find(|msr| msr.index == index).map(|msr| msr.value);
    announced.flat_map(|(msr, value)| msr.missing(value, of_host(msr.index))).collect()
}

/// Returns the first of `msrs` that is not a feature register or is out of order.
pub(crate) fn misplaced(msrs: &[MsrValue]) -> Option<u32> {
    let mut expected = FEATURE_MSRS.iter();
    msrs.iter().map(|msr| msr.index).find(|index| !expected.any(|msr| msr.index == *index))
}

#[cfg(test)]
mod tests;
