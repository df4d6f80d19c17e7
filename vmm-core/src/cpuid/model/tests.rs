//! What each model shows of a processor with every feature, and of this host's.

use super::*;
use crate::VmShape;
use crate::cpuid::feature::FEATURE_WORDS;
use crate::cpuid::missing_features;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { function, index, flags: 0, eax, ebx, ecx, edx }
}

/// A processor with every feature that CPUID can report.
fn everything() -> Vec<CpuidEntry> {
    let all = [!0; 4];
    let mut entries: Vec<_> =
        [0, 1, 2, 0xa, 0x14, 0x1d, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_000a]
            .map(|leaf| entry(leaf, 0, all))
            .into();
    entries.push(entry(7, 0, [2, !0, !0, !0]));
    entries.extend([1, 2].map(|index| entry(7, index, all)));
    entries.push(entry(0xd, 0, [0x6_02e7, 11_008, 11_008, 0]));
    entries.push(entry(0xd, 1, [0x1f, 0, 0x1800, 0]));
    let components = [(2, 256, 576), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688)];
    entries
        .extend(components.map(|(index, bytes, offset)| entry(0xd, index, [bytes, offset, 0, 0])));
    entries.extend([entry(0xd, 17, [64, 2752, 2, 0]), entry(0xd, 18, [8192, 2816, 6, 0])]);
    entries.push(entry(0xd, 11, [16, 0, 1, 0]));
    entries.push(entry(0x4000_0001, 0, [0x100_000b, 0, 0, 0]));
    entries
}

fn shown(model: &str) -> Vec<CpuidEntry> {
    CpuModel::named(model).unwrap().apply(&everything()).unwrap()
}

fn named(entries: &[CpuidEntry], name: &str) -> bool {
    has(entries, feature::by_name(name).unwrap())
}

#[test]
fn every_name_in_a_model_is_a_checked_feature() {
    let of_levels = LEVELS.iter().flat_map(|level| level.needs.iter().chain(level.keeps));
    for name in EVERYWHERE.iter().chain(of_levels) {
        let (leaf, subleaf, register, bit) =
            feature::by_name(name).unwrap_or_else(|| panic!("{name}"));
        let is_checked = |(l, s, r, mask): &(u32, u32, Register, u32)| {
            (*l, *s, *r) == (leaf, subleaf, register) && mask >> bit & 1 == 1
        };
        assert!(FEATURE_WORDS.iter().any(is_checked), "{name}");
    }
}

#[test]
fn the_host_shows_everything() {
    let host = CpuModel::default().with_nested(Nested::On).apply(&everything()).unwrap();
    let of_state = |entry: &&CpuidEntry| entry.function != 0xd;
    let sorted = |entries: &[CpuidEntry]| {
        let mut entries: Vec<_> = entries.iter().filter(of_state).copied().collect();
        entries.sort_by_key(|entry| (entry.function, entry.index));
        entries
    };
    assert_eq!(sorted(&host), sorted(&everything()));
    assert!(named(&shown("host"), "amx_tile"));
}

#[test]
fn nested_virtualization_is_shown_only_on_request() {
    for model in CpuModel::all() {
        let leaf = |entries: &[CpuidEntry]| entries.iter().any(|entry| entry.function == SVM_LEAF);
        let without = model.apply(&everything()).unwrap();
        assert!(!named(&without, "vmx") && !named(&without, "svm") && !leaf(&without));
        let with = model.clone().with_nested(Nested::On);
        let shown = with.apply(&everything()).unwrap();
        assert!(named(&shown, "vmx") && named(&shown, "svm") && leaf(&shown), "{}", model.name());
        let error = with.apply(&without).unwrap_err().to_string();
        assert!(error.contains("nested virtualization (vmx or svm)"), "{error}");
    }
    let add = ["svm".to_owned()];
    let error = CpuModel::default().derive("x", &add, &[]).unwrap_err().to_string();
    assert!(error.contains("--nested on"), "{error}");
}

#[test]
fn each_level_has_what_it_needs_and_nothing_of_the_next() {
    let (v2, v3, v4) = (shown("x86-64-v2"), shown("x86-64-v3"), shown("x86-64-v4"));
    let v1 = shown("x86-64-v1");
    for name in ["sse2", "nx", "lm", "x2apic", "hypervisor"] {
        assert!(named(&v1, name) && named(&v2, name), "{name}");
    }
    assert!(!named(&v1, "sse3") && !named(&v1, "cx16"));
    for name in ["sse4_2", "popcnt", "nx", "lm", "x2apic", "hypervisor", "lahf_lm"] {
        assert!(named(&v2, name) && named(&v3, name) && named(&v4, name), "{name}");
    }
    for name in ["avx", "avx2", "bmi2", "abm", "movbe", "xsave", "aes"] {
        assert!(!named(&v2, name) && named(&v3, name) && named(&v4, name), "{name}");
    }
    for name in ["avx512f", "avx512vl", "smap"] {
        assert!(!named(&v2, name) && !named(&v3, name) && named(&v4, name), "{name}");
    }
    for name in
        ["amx_tile", "sha_ni", "spec_ctrl", "arch_capabilities", "la57", "svm", "pku", "umip"]
    {
        assert!(!named(&v4, name), "{name}");
    }
    for entries in [&v2, &v3, &v4] {
        assert!(
            !entries.iter().any(|entry| [0xa, 0x14, 0x1d, 0x8000_000a].contains(&entry.function))
        );
        assert_eq!(word(entries, 0x4000_0001, 0, Register::Eax), 0x100_000b, "KVM's own stay");
    }
}

#[test]
fn a_bit_that_a_level_does_not_name_is_zero_in_every_leaf_of_features() {
    let leaves = (0..=0x30).chain(0x8000_0000..=0x8000_0030);
    let all: Vec<_> =
        leaves.flat_map(|leaf| (0..=8).map(move |subleaf| entry(leaf, subleaf, [!0; 4]))).collect();
    let shown = CpuModel::named("x86-64-v4").unwrap().apply(&all).unwrap();
    // Identity, caches, topology, extended state, frequencies.
    let of_the_host = [0, 2, 4, 0xb, 0xd, 0x15, 0x16, 0x1f];
    let of_the_host = |leaf: u32| {
        of_the_host.contains(&leaf)
            || [0x8000_0000, 0x8000_001d, 0x8000_001e].contains(&leaf)
            || (0x8000_0002..=0x8000_0006).contains(&leaf)
    };
    let kept = CpuModel::named("x86-64-v4").unwrap().kept();
    for entry in shown.iter().filter(|entry| !of_the_host(entry.function)) {
        let CpuidEntry { function, index, .. } = *entry;
        for register in [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx] {
            let is_number = match (function, register) {
                (1, Register::Eax | Register::Ebx) | (0x8000_0001, Register::Eax) => true,
                (7, Register::Eax) if index == 0 => entry.eax == 1,
                (0x8000_0008, Register::Eax | Register::Ecx) => true,
                _ => false,
            };
            let is_named = |bit| {
                kept.contains(&(function, index, register, bit))
                    || (function, register) == (0x8000_0001, Register::Edx)
                        && kept.contains(&(1, 0, Register::Edx, bit))
            };
            let word = entry.register(register);
            let unnamed = (0..32).find(|bit| word >> bit & 1 == 1 && !is_named(*bit));
            let place = feature::name((function, index, register, unnamed.unwrap_or(0)));
            assert!(is_number || unnamed.is_none(), "{place} is shown: {entry:x?}");
        }
    }
    let leaks = ["avx_vnni_int8", "avx_ne_convert", "avx10", "bhi_ctrl", "svm", "amx_complex"];
    assert_eq!(leaks.into_iter().find(|name| named(&shown, name)), None);
}

#[test]
fn extended_state_is_that_of_the_instructions() {
    let state = |model: &str| {
        let entries = shown(model);
        let indices: Vec<u32> = entries
            .iter()
            .filter(|entry| entry.function == 0xd && entry.index > 1)
            .map(|entry| entry.index)
            .collect();
        (word(&entries, 0xd, 0, Register::Eax), word(&entries, 0xd, 0, Register::Ecx), indices)
    };
    assert_eq!(state("x86-64-v2"), (0b11, 576, vec![]));
    assert_eq!(state("x86-64-v3"), (0b111, 832, vec![2]));
    assert_eq!(state("x86-64-v4"), (0xe7, 2688, vec![2, 5, 6, 7]));
    assert_eq!(state("host"), (0x6_02e7, 11_008, vec![2, 5, 6, 7, 9, 17, 18, 11]));
}

#[test]
fn a_level_fits_hosts_of_that_level_and_of_higher_ones() {
    let (v3, v4) = (shown("x86-64-v3"), shown("x86-64-v4"));
    assert!(missing_features(&v3, &v4).is_empty());
    let missing = missing_features(&v4, &v3);
    assert!(missing.contains(&"avx512f".to_owned()), "{missing:?}");
    let error = CpuModel::named("x86-64-v4").unwrap().apply(&v3).unwrap_err().to_string();
    assert!(error.contains("x86-64-v4") && error.contains("avx512bw, avx512cd"), "{error}");
}

#[test]
fn features_are_added_and_removed_by_name() {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let v3 = CpuModel::named("x86-64-v3").unwrap();
    let own = v3.derive("fleet", &texts(&["sha_ni", "ssbd"]), &texts(&["avx2"])).unwrap();
    let entries = own.apply(&everything()).unwrap();
    assert!(named(&entries, "sha_ni") && named(&entries, "ssbd") && !named(&entries, "avx2"));
    assert_eq!(own.name(), "fleet");

    let host = CpuModel::default().derive("plain", &[], &texts(&["avx512f", "amx_tile"])).unwrap();
    let entries = host.apply(&everything()).unwrap();
    assert_eq!(word(&entries, 0xd, 0, Register::Eax), 0x207, "no state without its instructions");

    for (name, add, remove) in
        [("x", vec!["warp"], vec![]), ("x", vec!["avx"], vec!["avx"]), ("a b", vec![], vec![])]
    {
        assert!(v3.derive(name, &texts(&add), &texts(&remove)).is_err(), "{name} {add:?}");
    }
    let error = own.apply(&shown("x86-64-v3")).unwrap_err().to_string();
    assert!(error.contains("fleet") && error.contains("sha_ni, ssbd"), "{error}");
}

#[test]
fn a_guest_of_each_model_that_this_host_can_be_is_made_and_saved() {
    let fits = |name: &str| name == "host" || name == "x86-64-v1";
    for (model, missing) in crate::cpu_models().unwrap() {
        let shape = match VmShape::with_cpu(16 << 20, 1, &model) {
            Ok(shape) => shape,
            Err(error) => {
                assert!(!fits(model.name()), "any host can be that: {error}");
                assert!(!missing.is_empty() && error.to_string().contains(&missing[0]), "{error}");
                continue;
            }
        };
        assert_eq!(shape.cpu_model, model.name());
        let vm = crate::Vm::create(&shape, Box::new(std::io::sink())).unwrap();
        let state = vm.save_state().unwrap();
        vm.load_state(&state).unwrap();
    }
}

#[test]
fn kvm_receives_exactly_the_model() {
    let shown = shown("x86-64-v2");
    let table = crate::cpuid::table(&shown, 1, 2).unwrap();
    let table: Vec<CpuidEntry> = table.as_slice().iter().map(CpuidEntry::from).collect();
    assert!(missing_features(&table, &shown).is_empty());
    assert!(!named(&table, "avx") && named(&table, "sse4_2"));
}
