//! What guests see of registers, on made-up hosts and on real KVM.

use super::*;
use crate::cpuid::CpuModel;
use crate::{Error, ShapeError, Vm, VmShape};

const RDCL_NO: u64 = 1 << 0;
const RSBA: u64 = 1 << 2;
const MDS_NO: u64 = 1 << 5;
const RRSBA: u64 = 1 << 19;
const PLATFORM_INFO: u32 = 0xce;
const DE_CFG: u32 = 0xc001_1029;
const PERF_CAPABILITIES: u32 = 0x345;

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn host(arch_capabilities: u64) -> Vec<MsrValue> {
    let values = [
        (PLATFORM_INFO, 1 << 31 | 1),
        (ARCH_CAPABILITIES, arch_capabilities),
        (PERF_CAPABILITIES, 0x2005),
        (DE_CFG, 1 << 1 | 1 << 9),
    ];
    values.map(|(index, value)| MsrValue { index, value }).to_vec()
}

/// A table that announces IA32_ARCH_CAPABILITIES, but not IA32_PERF_CAPABILITIES.
fn announcing_cpuid() -> Vec<CpuidEntry> {
    let (function, index, flags) = (7, 0, 0);
    vec![CpuidEntry { function, index, flags, eax: 0, ebx: 0, ecx: 0, edx: 1 << 29 }]
}

fn values(msrs: &[MsrValue]) -> Vec<u64> {
    msrs.iter().map(|msr| msr.value).collect()
}

fn level() -> CpuModel {
    CpuModel::named("x86-64-v1").unwrap()
}

#[test]
fn the_host_shows_all_that_its_cpuid_reports() {
    let shown =
        CpuModel::default().apply_msrs(&host(RDCL_NO | 1 << 40), &announcing_cpuid()).unwrap();
    assert_eq!(values(&shown), [1 << 31 | 1, RDCL_NO | 1 << 40, 0, 0x202]);
}

#[test]
fn a_level_shows_what_every_host_has_and_warns_of_what_any_host_may_have() {
    let shown = level().apply_msrs(&host(RDCL_NO | MDS_NO | 1 << 40), &announcing_cpuid()).unwrap();
    assert_eq!(values(&shown), [1 << 31, RSBA | RRSBA, 0, 0b10]);
    let untold = level().apply_msrs(&host(RDCL_NO), &[]).unwrap();
    assert_eq!(values(&untold), [1 << 31, 0, 0, 0b10]);
}

#[test]
fn guests_of_a_level_fit_hosts_that_differ_and_guests_of_the_host_do_not() {
    let (left, right) = (host(RDCL_NO | MDS_NO), host(RDCL_NO | RRSBA | 1 << 40));
    for (from, to) in [(&left, &right), (&right, &left)] {
        let shown = level().apply_msrs(from, &announcing_cpuid()).unwrap();
        assert!(missing(&shown, &announcing_cpuid(), to).is_empty());
    }
    let of_host = |host| CpuModel::default().apply_msrs(host, &announcing_cpuid()).unwrap();
    let names = missing(&of_host(&left), &announcing_cpuid(), &right);
    assert_eq!(names, ["mds_no (msr 0x10a)", "no rrsba (msr 0x10a)"]);
    assert_eq!(missing(&of_host(&right), &announcing_cpuid(), &left), ["msr 0x10a bit 40"]);
    assert!(missing(&of_host(&left), &[], &host(0)).is_empty(), "it does not know of them");
}

#[test]
fn numbers_have_to_be_equal() {
    let cpuid = vec![CpuidEntry { ecx: 1 << 15, function: 1, ..announcing_cpuid()[0] }];
    let msr = |value| [MsrValue { index: PERF_CAPABILITIES, value }];
    let names = missing(&msr(0x2005), &cpuid, &msr(0x2007));
    assert_eq!(names, ["0x5 for the numbers in msr 0x345"]);
    assert_eq!(missing(&msr(0x2005), &cpuid, &msr(5)), ["msr 0x345 bit 13"]);
    assert!(missing(&msr(0x2000), &cpuid, &msr(0x3007)).is_empty());
}

#[test]
fn bits_are_added_and_removed_by_name() {
    let own = level().derive("fleet", &texts(&["mds_no"]), &texts(&["rsba"])).unwrap();
    let shown = own.apply_msrs(&host(RDCL_NO | MDS_NO), &announcing_cpuid()).unwrap();
    assert_eq!(shown[1].value, MDS_NO | RRSBA);
    let error = own.apply_msrs(&host(RDCL_NO), &announcing_cpuid()).unwrap_err().to_string();
    assert!(error.contains("fleet") && error.contains("mds_no"), "{error}");
    let plain = CpuModel::default().derive("plain", &[], &texts(&["mds_no"])).unwrap();
    let shown = plain.apply_msrs(&host(RDCL_NO | MDS_NO), &announcing_cpuid()).unwrap();
    assert_eq!(shown[1].value, RDCL_NO);
    let error = level().derive("x", &texts(&["mds_no"]), &texts(&["arch_capabilities"]));
    assert!(error.unwrap_err().to_string().contains("`arch_capabilities` is both"));
}

#[test]
fn only_feature_registers_are_part_of_a_shape() {
    let good = host(0);
    assert_eq!(misplaced(&good), None);
    assert_eq!(misplaced(&[good[1], good[0]]), Some(PLATFORM_INFO), "not in order");
    assert_eq!(misplaced(&[good[1], good[1]]), Some(ARCH_CAPABILITIES), "twice");
    let tsc = MsrValue { index: 0x10, value: 0 };
    assert_eq!(misplaced(&[good[0], tsc]), Some(0x10));
}

#[test]
fn a_register_that_another_host_does_not_have_is_missing_with_its_warnings() {
    let shown = level().apply_msrs(&host(0), &announcing_cpuid()).unwrap();
    let names = missing(&shown, &announcing_cpuid(), &[]);
    assert_eq!(
        names,
        ["msr 0xce bit 31", "rsba (msr 0x10a)", "rrsba (msr 0x10a)", "msr 0xc0011029 bit 1"]
    );
}

fn new_vm(shape: &VmShape) -> crate::Result<Vm> {
    Vm::create(shape, Box::new(std::io::sink()))
}

fn value_of(msrs: &[MsrValue], index: u32) -> Option<u64> {
    msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
}

#[test]
fn every_vcpu_of_each_model_has_what_its_shape_shows() {
    let host = VmShape::for_host(16 << 20, 2).unwrap();
    assert_eq!(value_of(&host.feature_msrs, PLATFORM_INFO), Some(1 << 31), "of any kvm since 4.17");
    for model in [CpuModel::default(), level()] {
        let shape = VmShape::with_cpu(16 << 20, 2, &model).unwrap();
        shape.check_host().unwrap();
        let state = new_vm(&shape).unwrap().save_state().unwrap();
        for MsrValue { index, value } in &shape.feature_msrs {
            for vcpu in state.vcpus.iter().filter(|_| is_announced(&shape.cpuid, *index)) {
                assert_eq!(value_of(&vcpu.msrs, *index), Some(*value), "msr {index:#x}");
            }
        }
    }
}

#[test]
fn a_masked_register_is_set_saved_and_loaded() {
    let mut shape = VmShape::for_host(16 << 20, 1).unwrap();
    shape.feature_msrs = vec![MsrValue { index: PLATFORM_INFO, value: 0 }];
    let vm = new_vm(&shape).unwrap();
    let mut state = vm.save_state().unwrap();
    assert_eq!(value_of(&state.vcpus[0].msrs, PLATFORM_INFO), Some(0), "not what kvm begins with");
    state.vcpus[0].msrs.iter_mut().find(|msr| msr.index == PLATFORM_INFO).unwrap().value = 1 << 31;
    vm.load_state(&state).unwrap();
    let loaded = vm.save_state().unwrap();
    assert_eq!(value_of(&loaded.vcpus[0].msrs, PLATFORM_INFO), Some(1 << 31));
}

#[test]
fn a_guest_with_more_features_is_refused_before_anything_is_created() {
    let mut shape = VmShape::for_host(16 << 20, 1).unwrap();
    shape.feature_msrs[0].value |= 1 << 41;
    let error = new_vm(&shape).unwrap_err();
    assert!(matches!(error, Error::Shape(ShapeError::CpuRegisters(_))), "{error}");
    let error = error.to_string();
    assert!(error.contains("msr 0xce bit 41") && error.contains("--cpu"), "{error}");

    shape.feature_msrs.push(MsrValue { index: 0x10, value: 7 });
    let error = VmShape::from_bytes(&shape.to_bytes().unwrap()).unwrap_err().to_string();
    assert!(error.contains("msr 0x10 as a feature"), "{error}");
}
