//! Limits on the number of vCPUs of a guest: on any host, and on this one.

use kvm_ioctls::Kvm;

use super::ShapeError;
use crate::error::{Error, Result};

/// Most vCPUs that a guest may have. Their APIC IDs are 0 to 254: in 8 bits, 255 means all of them
/// (Intel SDM volume 3, "Determining IPI Destination"). With 8-bit IDs, no guest needs interrupt
/// remapping, and no table in guest memory needs the longer form of an ID.
pub const VCPUS_MAX: u8 = 255;

/// How many vCPUs a guest may have on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuLimits {
    /// Most vCPUs that a guest can have: the limit of KVM (`KVM_CAP_MAX_VCPUS`, and the number of
    /// IDs by `KVM_CAP_MAX_VCPU_ID`), and no more than [`VCPUS_MAX`].
    pub max: u8,
    /// Most vCPUs that KVM recommends (`KVM_CAP_NR_VCPUS`). Since Linux 5.16 this is the number of
    /// the host's online processors: with more vCPUs, they take turns on them.
    pub recommended: u32,
}

impl VcpuLimits {
    /// Returns the limits of this host.
    ///
    /// # Errors
    /// [`Error::OpenKvm`] if `/dev/kvm` cannot be opened.
    pub fn of_host() -> Result<Self> {
        Kvm::new().map(|kvm| Self::ask(&kvm)).map_err(Error::OpenKvm)
    }

    pub(super) fn ask(kvm: &Kvm) -> Self {
        let max = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id());
        Self {
            max: u8::try_from(max).unwrap_or(VCPUS_MAX),
            recommended: u32::try_from(kvm.get_nr_vcpus()).unwrap_or(u32::MAX),
        }
    }

    /// Checks that a guest can have `vcpus` on this host.
    pub(super) fn check(self, vcpus: u8) -> Result<(), ShapeError> {
        let max = self.max;
        if vcpus > max { Err(ShapeError::HostVcpus { guest: vcpus, host: max }) } else { Ok(()) }
    }

    /// Returns a warning for the operator if a guest with `vcpus` has more than KVM recommends
    /// here.
    pub fn warning(self, vcpus: u8) -> Option<String> {
        let recommended = self.recommended;
        (u32::from(vcpus) > recommended).then(|| {
            format!(
                "the guest has {vcpus} vCPUs, and KVM recommends at most {recommended} on the host: they take turns on its \
                 processors, which makes the guest slow"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_takes_at_least_as_many_as_kvm_recommends_up_to_the_maximum() {
        let limits = VcpuLimits::of_host().unwrap();
        assert!(limits.recommended >= 1);
        assert!(u32::from(limits.max) >= limits.recommended.min(VCPUS_MAX.into()), "{limits:?}");
    }

    #[test]
    fn more_than_the_host_can_have_are_refused_and_more_than_recommended_are_not() {
        let limits = VcpuLimits { max: 64, recommended: 4 };
        assert_eq!(limits.check(64), Ok(()));
        assert_eq!(limits.check(65).unwrap_err(), ShapeError::HostVcpus { guest: 65, host: 64 });
        assert_eq!(limits.warning(4), None);
        let warning = limits.warning(5).unwrap();
        assert!(warning.contains("5 vCPUs") && warning.contains("at most 4"), "{warning}");
    }
}
