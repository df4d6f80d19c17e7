//! The topology of guests of many sizes, decoded the way Linux does it.

use super::*;
use crate::VCPUS_MAX;
use crate::cpuid::{CpuModel, for_new_guest};

const COUNTS: [u8; 12] = [1, 2, 3, 8, 9, 16, 64, 65, 128, 240, 254, VCPUS_MAX];

fn entry(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
}

fn vendor_leaf(name: &[u8; 12]) -> CpuidEntry {
    let [ebx, edx, ecx] =
        [0, 4, 8].map(|at| u32::from_le_bytes(name[at..at + 4].try_into().unwrap()));
    entry(0, 0, [0x1f, ebx, ecx, edx])
}

/// A cache as leaves 4 and 0x8000_001d describe it, shared as on the host.
fn cache(leaf: u32, index: u32, level: u32) -> CpuidEntry {
    entry(leaf, index, [0xfffc_0000 | 1 << 8 | level << 5 | 1, 0x01c0_003f, 0x3f, 0])
}

/// A host's table with all bits set in every topology field; the levels as an old KVM reports them.
fn intel() -> Vec<CpuidEntry> {
    let mut entries = vec![vendor_leaf(b"GenuineIntel"), entry(1, 0, [!0; 4])];
    entries.extend([cache(4, 0, 1), cache(4, 1, 1), cache(4, 2, 2), cache(4, 3, 3)]);
    entries.push(entry(4, 4, [0; 4]));
    for leaf in [0xb, 0x1f] {
        entries.extend((0..4).map(|index| entry(leaf, index, [!0; 4])));
    }
    entries.extend([entry(0x8000_0001, 0, [0; 4]), entry(0x8000_0008, 0, [!0, !0, 0, 0])]);
    entries
}

/// The same for an AMD host; the levels as Linux 6.2 and later report them.
fn amd() -> Vec<CpuidEntry> {
    let mut entries = vec![vendor_leaf(b"AuthenticAMD"), entry(1, 0, [!0; 4])];
    entries.extend([entry(4, 0, [0; 4]), entry(0xb, 0, [0, 0, 0, 5])]);
    entries.extend([entry(0x8000_0001, 0, [!0; 4]), entry(0x8000_0008, 0, [!0; 4])]);
    let leaf = 0x8000_001d;
    entries.extend([cache(leaf, 0, 1), cache(leaf, 1, 1), cache(leaf, 2, 2), cache(leaf, 3, 3)]);
    entries.extend([entry(leaf, 4, [0; 4]), entry(0x8000_001e, 0, [!0, !0, !0, 0])]);
    entries
}

/// The table of one vCPU, read the way the instruction reads it.
struct Cpuid(Vec<CpuidEntry>);

impl Cpuid {
    fn of(entries: &[CpuidEntry], vcpu: u8, vcpus: u8) -> Self {
        Self(for_vcpu(entries, vcpu, vcpus))
    }

    /// Returns EAX to EDX. Zeros for a missing leaf, except for the level leaves, as in
    /// `kvm_cpuid`.
    fn read(&self, leaf: u32, index: u32) -> [u32; 4] {
        let find = |index| {
            let mut found =
                self.0.iter().filter(|entry| entry.function == leaf && entry.index == index);
            let entry = found.next();
            assert!(found.next().is_none(), "{leaf:#x}.{index} is there twice");
            entry
        };
        match find(index) {
            Some(entry) => [entry.eax, entry.ebx, entry.ecx, entry.edx],
            None if LEVEL_LEAVES.contains(&leaf) => {
                [0, 0, index & 0xff, find(1).map_or(0, |entry| entry.edx)]
            }
            None => [0; 4],
        }
    }

    /// Bits from `low` to `high` of a register.
    fn field(&self, (leaf, index, register): (u32, u32, usize), high: u32, low: u32) -> u32 {
        let mask = u32::MAX >> (31 - (high - low));
        self.read(leaf, index)[register] >> low & mask
    }

    /// Returns threads per core and processors per socket, each with its number of APIC ID bits,
    /// and the APIC ID: `parse_topology_leaf` of arch/x86/kernel/cpu/topology_ext.c.
    fn levels(&self, leaf: u32) -> ([(u32, u32); 2], u32) {
        let mut domains = [(0, 1); 2];
        let mut id = None;
        for index in 0.. {
            let [eax, ebx, ecx, edx] = self.read(leaf, index);
            let (kind, processors) = (ecx >> 8 & 0xff, ebx & 0xffff);
            if processors == 0 || kind == 0 {
                break;
            }
            assert_eq!(ecx & 0xff, index);
            assert_eq!(*id.get_or_insert(edx), edx);
            domains[kind as usize - 1] = (eax & 0x1f, processors);
        }
        (domains, id.expect("a level"))
    }

    /// Returns the number of APIC ID bits that distinguish the sharers of this cache, and how many
    /// may share it (`get_cache_id` and `get_num_threads_sharing` of cacheinfo.c).
    fn sharing(&self, leaf: u32, index: u32) -> (u32, u32) {
        let sharers = self.field((leaf, index, 0), 25, 14) + 1;
        (sharers.next_power_of_two().ilog2(), sharers)
    }
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Checks what holds on any processor: the APIC IDs, all in one socket.
fn is_one_socket(entries: &[CpuidEntry], leaves: &[u32]) {
    for vcpus in COUNTS {
        let count = u32::from(vcpus);
        for vcpu in 0..vcpus {
            let cpuid = Cpuid::of(entries, vcpu, vcpus);
            let id = u32::from(vcpu);
            assert_eq!(cpuid.field((1, 0, EBX), 31, 24), id, "the initial APIC ID");
            assert_eq!(cpuid.field((1, 0, EBX), 23, 16), count);
            assert_eq!(cpuid.field((1, 0, EBX), 15, 0), 0xffff, "as the host has it");
            assert_eq!(cpuid.field((1, 0, EDX), 28, 28), u32::from(vcpus > 1), "HTT");
            for leaf in leaves {
                let ([threads, cores], x2apic_id) = cpuid.levels(*leaf);
                assert_eq!((threads, x2apic_id), ((0, 1), id), "{leaf:#x} of {vcpus}");
                assert_eq!(cores.1, count);
                assert_eq!(x2apic_id >> cores.0, 0, "all are in socket 0");
                // The APIC IDs use more than half of the range of their bits.
                assert!(count <= 1 << cores.0 && (vcpus == 1 || count > 1 << (cores.0 - 1)));
            }
        }
    }
}

#[test]
fn intels_guests_have_one_socket_of_as_many_cores() {
    let entries = intel();
    is_one_socket(&entries, &[0xb, 0x1f]);
    for vcpus in COUNTS {
        let cpuid = Cpuid::of(&entries, vcpus - 1, vcpus);
        let cores = u32::from(vcpus).min(64);
        for index in 0..4 {
            assert_eq!(cpuid.field((4, index, EAX), 31, 26) + 1, cores, "{vcpus}");
            assert_eq!(cpuid.field((4, index, EAX), 13, 8), 1, "as the host has it");
        }
        assert_eq!(cpuid.read(4, 4), [0; 4], "no further cache");
        assert_eq!(cpuid.read(0x8000_0008, 0), [!0, !0, 0, 0], "reserved");
        assert_eq!(cpuid.field((0x8000_0001, 0, ECX), 1, 1), 0, "reserved");
    }
}

#[test]
fn amds_guests_have_one_socket_of_as_many_cores() {
    let entries = amd();
    is_one_socket(&entries, &[0xb]);
    for vcpus in COUNTS {
        for vcpu in 0..vcpus {
            let cpuid = Cpuid::of(&entries, vcpu, vcpus);
            let id = u32::from(vcpu);
            // parse_8000_0008 and parse_8000_001e of arch/x86/kernel/cpu/topology_amd.c.
            let (bits, cores) = (
                cpuid.field((0x8000_0008, 0, ECX), 15, 12),
                cpuid.field((0x8000_0008, 0, ECX), 7, 0) + 1,
            );
            assert_eq!((cores, id >> bits), (vcpus.into(), 0));
            assert_eq!(cpuid.field((0x8000_0008, 0, ECX), 31, 16), 0);
            assert_eq!(cpuid.field((0x8000_0008, 0, ECX), 11, 8), 0);
            assert_eq!(cpuid.field((0x8000_0001, 0, ECX), 1, 1), u32::from(vcpus > 1));
            let [extended_id, core, node, _] = cpuid.read(0x8000_001e, 0);
            assert_eq!((extended_id, core, node), (id, id, 0), "one thread for each core, node 0");
            assert_eq!(cpuid.read(4, 0), [0; 4], "of Intel's");
            assert_eq!(cpuid.read(0x1f, 0), [0; 4], "the host has none");
        }
    }
}

#[test]
fn cores_have_their_own_caches_but_for_the_last_level() {
    for (entries, leaf) in [(intel(), 4), (amd(), 0x8000_001d)] {
        for vcpus in COUNTS {
            let last = Cpuid::of(&entries, vcpus - 1, vcpus);
            for index in 0..3 {
                assert_eq!(last.sharing(leaf, index), (0, 1), "{leaf:#x} of {vcpus}");
            }
            let (bits, sharers) = last.sharing(leaf, 3);
            assert_eq!(sharers, u32::from(vcpus));
            assert_eq!(u32::from(vcpus - 1) >> bits, 0, "one cache for all");
        }
    }
}

#[test]
fn every_model_on_this_host_has_an_x2apic_and_one_socket() {
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let host = for_new_guest(supported.as_slice().iter().map(CpuidEntry::from).collect());
    let able = CpuModel::all().filter(|model| model.missing(&host).is_empty());
    for model in able {
        let entries = model.apply(&host).unwrap();
        for vcpus in COUNTS {
            let cpuid = Cpuid::of(&entries, vcpus - 1, vcpus);
            assert_eq!(cpuid.field((1, 0, ECX), 21, 21), 1, "{}: x2APIC", model.name());
            let ([_, (bits, cores)], id) = cpuid.levels(0xb);
            assert_eq!((cores, id), (vcpus.into(), u32::from(vcpus) - 1), "{}", model.name());
            assert_eq!(id >> bits, 0);
        }
    }
}
