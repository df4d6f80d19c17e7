//! What the host supports of what guests' shapes need.

use std::sync::OnceLock;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};

use super::cpuid_table;
use super::vcpus::VcpuLimits;
use crate::cpuid::{self, CpuModel, CpuidEntry, MsrValue, msr};
use crate::error::{Error, KvmContext, Result};
use crate::sys::kvm;

/// Returns each predefined CPU model with the names of the features that this host lacks for it.
///
/// # Errors
/// If `/dev/kvm` cannot be used.
pub fn cpu_models() -> Result<Vec<(CpuModel, Vec<String>)>> {
    let host = Host::get()?;
    Ok(CpuModel::all().map(|model| (model.clone(), model.missing(&host.cpuid))).collect())
}

/// What this host supports. KVM is queried once, since this does not change while the program runs.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) vcpus: VcpuLimits,
    pub(super) cpuid: Vec<CpuidEntry>,
    pub(super) feature_msrs: Vec<MsrValue>,
    pub(super) tsc_khz: u32,
    pub(super) xsave_bytes: u32,
    pub(super) scales_tsc: bool,
}

impl Host {
    /// Returns what this host supports.
    ///
    /// # Errors
    /// If `/dev/kvm` cannot be used, or lacks what every guest needs.
    pub(super) fn get() -> Result<&'static Self> {
        static HOST: OnceLock<Host> = OnceLock::new();
        match HOST.get() {
            Some(host) => Ok(host),
            None => Self::ask().map(|host| HOST.get_or_init(|| host)),
        }
    }

    fn ask() -> Result<Self> {
        let kvm = Kvm::new().map_err(Error::OpenKvm)?;
        check_capabilities(&kvm)?;
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).call("KVM_GET_SUPPORTED_CPUID")?;
        let entries = supported.as_slice().iter().map(CpuidEntry::from).collect();
        let cpuid = cpuid::for_new_guest(entries);
        let vm = kvm::create_vm(&kvm).call("KVM_CREATE_VM")?;
        let vcpu = vm.create_vcpu(0).vcpu_call(0, "KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(&cpuid_table(&cpuid, 0, 1)?).vcpu_call(0, "KVM_SET_CPUID2")?;
        let xsave_bytes = u32::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            vcpus: VcpuLimits::ask(&kvm),
            feature_msrs: msr::of_host(&kvm, &vcpu)?,
            cpuid,
            tsc_khz: vcpu.get_tsc_khz().vcpu_call(0, "KVM_GET_TSC_KHZ")?,
            xsave_bytes: xsave_bytes.max(kvm::XSAVE_BYTES_MIN as u32),
            scales_tsc: kvm.check_extension(Cap::TscControl),
        })
    }
}

/// Checks the capabilities that this VMM needs for every guest.
fn check_capabilities(kvm: &Kvm) -> Result<()> {
    let needed = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP", "deliver interrupts"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "hear of what drivers ask of devices"),
        (Cap::Pit2, "KVM_CAP_PIT2", "give the guest a timer"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "give the guest memory"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pause vcpus without losing a signal"),
        (Cap::Xsave, "KVM_CAP_XSAVE", "save a vcpu's registers"),
        (Cap::Xcrs, "KVM_CAP_XCRS", "save a vcpu's registers"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "save a vcpu's pending events"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "save a vcpu's debug registers"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "save the guest's clock"),
    ];
    match needed.into_iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
        Some((_, capability, purpose)) => Err(Error::MissingCapability { capability, purpose }),
        None => Ok(()),
    }
}
