//! The guest's TSC frequency, and how a host with another frequency scales its own TSC to it.

use super::{Host, ShapeError};
use crate::cpuid;
use crate::error::Result;

/// How far apart two hosts' TSC frequencies may be if the hardware cannot scale, in parts per
/// million: the kernel's own tolerance (`tsc_tolerance_ppm` of arch/x86/kvm).
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// How KVM computes a guest's TSC from the host's: scaled, plus an offset (`kvm_scale_tsc` in
/// arch/x86/kvm/x86.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TscScale {
    /// Guest ticks per host tick, in units of 2^-`fraction_bits`.
    ratio: u64,
    fraction_bits: u32,
}

impl TscScale {
    /// Fraction bits on processors with VMX (`vmx_hardware_setup`).
    pub(crate) const VMX_FRACTION_BITS: u32 = 48;
    /// Fraction bits on processors with SVM (`svm_hardware_setup`).
    pub(crate) const SVM_FRACTION_BITS: u32 = 32;

    /// No scaling, for frequencies so close that KVM does not scale.
    pub(crate) const NONE: Self = Self { ratio: 1, fraction_bits: 0 };

    /// Returns the scale from a host of `host_khz` to a guest of `guest_khz`, truncated as in KVM
    /// (`set_tsc_khz`).
    pub(crate) fn new(guest_khz: u32, host_khz: u32, fraction_bits: u32) -> Self {
        let ratio = (u128::from(guest_khz) << fraction_bits) / u128::from(host_khz.max(1));
        Self { ratio: ratio as u64, fraction_bits }
    }

    /// Returns the scale that this host's KVM uses for a guest of `guest_khz`.
    ///
    /// # Errors
    /// If `/dev/kvm` cannot be used.
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

    /// Converts the host's TSC to ticks of the guest's. The result wraps.
    fn scaled(self, host_tsc: u64) -> u64 {
        ((u128::from(host_tsc) * u128::from(self.ratio)) >> self.fraction_bits) as u64
    }

    /// Returns the guest's TSC when the host's was `host_tsc`, with KVM's `offset`.
    pub(crate) fn guest_tsc(self, host_tsc: u64, offset: u64) -> u64 {
        self.scaled(host_tsc).wrapping_add(offset)
    }

    /// Returns the offset that makes the guest's TSC `guest_tsc` when the host's is `host_tsc`.
    pub(crate) fn offset(self, host_tsc: u64, guest_tsc: u64) -> u64 {
        guest_tsc.wrapping_sub(self.scaled(host_tsc))
    }
}

/// Checks that a guest with a TSC of `guest` kHz can run on a host with one of `host` kHz.
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
