//! The model-specific registers to save.

use kvm_ioctls::{Kvm, VcpuFd};

use crate::cpuid;
use crate::cpuid::msr::msr_list;
use crate::error::{KvmContext, Result};
use crate::shape::VmShape;

/// IA32_TIME_STAMP_COUNTER.
pub(crate) const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;

/// Memory type range registers, which KVM emulates but does not list (Intel SDM volume 3, 12.11):
/// the variable ranges, the fixed ranges, and the default type.
const MTRRS: &[u32] = &[
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e,
    0x26f, 0x2ff,
];

/// Returns the registers to save for each vCPU: all that KVM lists, the feature registers (a guest
/// may write AMD's) and the memory type ranges, if they can be read from `vcpu` and exist in a
/// guest of this shape. Computed once for a VM. The order is KVM's, in which older paravirtual
/// clocks come before newer ones, but with the TSC first and its deadline last.
pub(crate) fn saved_msrs(kvm: &Kvm, vcpu: &VcpuFd, shape: &VmShape) -> Result<Vec<u32>> {
    let listed = kvm.get_msr_index_list().call("KVM_GET_MSR_INDEX_LIST")?;
    let mut indices: Vec<u32> = listed.as_slice().to_vec();
    let of_features = shape.feature_msrs.iter().map(|msr| msr.index);
    for index in MTRRS.iter().copied().chain(of_features) {
        if !indices.contains(&index) {
            indices.push(index);
        }
    }
    indices.retain(|index| cpuid::has_msr(&shape.cpuid, *index) && is_readable(vcpu, *index));
    indices.sort_by_key(|index| match *index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    });
    Ok(indices)
}

fn is_readable(vcpu: &VcpuFd, index: u32) -> bool {
    read(vcpu, index).is_some()
}

/// Reads one register; `None` if KVM has no such register for this vCPU.
pub(super) fn read(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut one = msr_list(&[index])?;
    let read = vcpu.get_msrs(&mut one).is_ok_and(|count| count == 1);
    read.then(|| one.as_slice()[0].data)
}
