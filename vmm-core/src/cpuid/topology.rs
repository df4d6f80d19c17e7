//! The topology that CPUID reports to a vCPU: one socket, with one core for each vCPU.
//!
//! All vCPUs are cores of one socket, with one thread each, and share the last level of cache. The
//! APIC ID is the vCPU's index. KVM reports the host's topology in some leaves and omits it in
//! others, depending on its version, so all of it is replaced here, on every host.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::{CpuidEntry, is_amd};

/// Leaves that list the levels of the topology in the same format; 0x1f is the newer one.
const LEVEL_LEAVES: [u32; 2] = [0xb, 0x1f];
/// From this level on, all cores share a cache.
const SHARED_CACHE_LEVEL: u32 = 3;
/// Largest value of leaf 4's field for the number of cores less one: the field has 6 bits. For more
/// than 64 cores QEMU reports 64 as well; kernels take the number from leaf 0xb.
const LEAF_4_CORES_MAX: u32 = 0x3f;

/// Returns the table for vCPU `vcpu` of `vcpus`.
pub(super) fn for_vcpu(entries: &[CpuidEntry], vcpu: u8, vcpus: u8) -> Vec<CpuidEntry> {
    let place = Place::new(entries, vcpu, vcpus);
    let is_level = |entry: &&CpuidEntry| LEVEL_LEAVES.contains(&entry.function);
    let mut table: Vec<CpuidEntry> =
        entries.iter().filter(|entry| !is_level(entry)).copied().collect();
    table.iter_mut().for_each(|entry| place.adjust(entry));
    // Linux 6.18 reports only the thread level; a guest that saw no more would assume a socket for
    // each vCPU.
    for leaf in LEVEL_LEAVES {
        if entries.iter().any(|entry| entry.function == leaf) {
            table.extend(place.levels(leaf));
        }
    }
    table
}

/// The place of a vCPU in its guest's topology.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The vCPU's APIC ID.
    id: u32,
    /// Number of vCPUs.
    count: u32,
    /// Bits of an APIC ID that distinguish the cores of the socket.
    core_bits: u32,
    /// Whether the guest interprets the leaves as on AMD's processors.
    is_amd: bool,
}

impl Place {
    fn new(entries: &[CpuidEntry], vcpu: u8, vcpus: u8) -> Self {
        let count = u32::from(vcpus);
        Self {
            id: vcpu.into(),
            count,
            core_bits: count.next_power_of_two().ilog2(),
            is_amd: is_amd(entries),
        }
    }

    fn adjust(&self, entry: &mut CpuidEntry) {
        match entry.function {
            1 => self.adjust_leaf_1(entry),
            4 => {
                let cores = (self.count - 1).min(LEAF_4_CORES_MAX);
                self.adjust_cache(entry, cores << 26);
            }
            0x8000_0001 if self.is_amd => {
                // CmpLegacy: HTT and the count in leaf 1 describe cores, not threads.
                const CMP_LEGACY: u32 = 1 << 1;
                entry.ecx = with(entry.ecx, CMP_LEGACY, self.count > 1);
            }
            // ApicIdSize, and NC, the number of cores less one. Reserved on other processors.
            0x8000_0008 => {
                let cores = self.core_bits << 12 | (self.count - 1);
                entry.ecx = if self.is_amd { cores } else { 0 };
            }
            0x8000_001d => self.adjust_cache(entry, 0),
            // The extended APIC ID; the core, with one thread; node 0, the only one of the socket.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id & 0xff, 0),
            _ => {}
        }
    }

    /// Sets the initial APIC ID, the number of APIC IDs, and whether there are several.
    fn adjust_leaf_1(&self, entry: &mut CpuidEntry) {
        const HTT: u32 = 1 << 28;
        entry.ebx = entry.ebx & 0x0000_ffff | self.id << 24 | self.count << 16;
        entry.edx = with(entry.edx, HTT, self.count > 1);
    }

    /// Sets the number of vCPUs that share a cache, bits 25 to 14 of EAX, and the bits above them
    /// to `others`.
    fn adjust_cache(&self, entry: &mut CpuidEntry, others: u32) {
        const KIND: u32 = 0x1f;
        const KEPT: u32 = 0x3fff;
        if entry.eax & KIND == 0 {
            // No more caches.
            return;
        }
        let level = entry.eax >> 5 & 7;
        let sharers = if level >= SHARED_CACHE_LEVEL { self.count } else { 1 };
        entry.eax = entry.eax & KEPT | (sharers - 1) << 14 | others;
    }

    /// Returns the levels of `leaf`: the threads of a core and the cores of the socket. For higher
    /// subleaves KVM answers that there is no such level (`kvm_cpuid` in arch/x86/kvm/cpuid.c).
    fn levels(&self, leaf: u32) -> [CpuidEntry; 2] {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let level = |index: u32, kind: u32, bits: u32, processors: u32| CpuidEntry {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: bits,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: self.id,
        };
        [level(0, THREAD, 0, 1), level(1, CORE, self.core_bits, self.count)]
    }
}

/// Returns `word` with `bit` set or cleared.
fn with(word: u32, bit: u32, is_set: bool) -> u32 {
    if is_set { word | bit } else { word & !bit }
}

#[cfg(test)]
mod tests;
