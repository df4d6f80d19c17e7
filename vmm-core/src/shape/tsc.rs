//! How fast the guest's TSC ticks, and what a host whose own ticks otherwise makes of it.

use super::{Host, ShapeError};
use crate::cpuid;
use crate::error::Result;

/// How far apart two hosts' TSC frequencies may be when the hardware cannot scale, in parts per
/// million: the kernel's own tolerance (`tsc_tolerance_ppm` of arch/x86/kvm).
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// How KVM makes a guest's TSC of the host's: scaled, plus an offset (`kvm_scale_tsc` in
/// arch/x86/kvm/x86.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TscScale {
    /// What a tick of the host's is worth, in units of 2^-`fraction_bits`.
    ratio: u64,
    fraction_bits: u32,
}

impl TscScale {
    /// Bits after the point on processors with VMX (`vmx_hardware_setup`).
    pub(crate) const VMX_FRACTION_BITS: u32 = 48;
    /// The same on processors with SVM (`svm_hardware_setup`).
    pub(crate) const SVM_FRACTION_BITS: u32 = 32;

    /// Frequencies so close that KVM does not scale.
    pub(crate) const NONE: Self = Self { ratio: 1, fraction_bits: 0 };

    /// From a host of `host_khz` to a guest of `guest_khz`, cut off as KVM does it (`set_tsc_khz`).
    pub(crate) fn new(guest_khz: u32, host_khz: u32, fraction_bits: u32) -> Self {
        let ratio = (u128::from(guest_khz) << fraction_bits) / u128::from(host_khz.max(1));
        Self { ratio: ratio as u64, fraction_bits }
    }

    /// How this host's KVM makes the TSC of a guest of `guest_khz` of its own.
    ///
    /// # Errors
    /// `/dev/kvm` does not answer.
    pub(crate) fn of_this_host(guest_khz: u32) -> Result<Self> {
        let host = Host::get()?;
        if check_tsc(guest_khz, host.tsc_khz, false).is_ok() {
            return Ok(Self::NONE);
        }
        let fraction_bits = match cpuid::is_amd(&host.cpuid) {
            true => Self::SVM_FRACTION_BITS,
            false => Self::VMX_FRACTION_BITS,
        };
        Ok(Self::new(guest_khz, host.tsc_khz, fraction_bits))
    }

    /// The host's TSC in ticks of the guest's. Ticks wrap.
    fn scaled(self, host_tsc: u64) -> u64 {
        ((u128::from(host_tsc) * u128::from(self.ratio)) >> self.fraction_bits) as u64
    }

    /// The guest's TSC when the host's was `host_tsc`, with KVM's `offset`.
    pub(crate) fn guest_tsc(self, host_tsc: u64, offset: u64) -> u64 {
        self.scaled(host_tsc).wrapping_add(offset)
    }

    /// The offset with which the guest's TSC is `guest_tsc` when the host's is `host_tsc`.
    pub(crate) fn offset(self, host_tsc: u64, guest_tsc: u64) -> u64 {
        guest_tsc.wrapping_sub(self.scaled(host_tsc))
    }
}

/// Whether a guest with a TSC of `guest` kHz can run on a host with one of `host` kHz.
pub(crate) fn check_tsc(guest: u32, host: u32, scales: bool) -> Result<(), ShapeError> {
    let tolerated = u64::from(host) * TSC_TOLERANCE_PPM / 1_000_000;
    if scales || u64::from(guest.abs_diff(host)) <= tolerated {
        return Ok(());
    }
    Err(ShapeError::TscFrequency { guest, host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_within_the_kernels_tolerance_is_accepted_and_a_scaled_one_always() {
        assert_eq!(check_tsc(2_600_000, 2_600_600, false), Ok(()));
        assert_eq!(check_tsc(2_600_000, 3_000_000, true), Ok(()));
        assert_eq!(
            check_tsc(2_600_000, 3_000_000, false),
            Err(ShapeError::TscFrequency { guest: 2_600_000, host: 3_000_000 })
        );
    }
}
