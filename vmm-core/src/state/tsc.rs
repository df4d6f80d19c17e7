//! Carries the guest's TSC to another host.
//!
//! A guest that uses the TSC as its clock must find it advanced by exactly the time that its
//! kvmclock has advanced, whatever the two hosts' own TSCs show. This is the algorithm of
//! Documentation/virt/kvm/devices/vcpu.rst, section 4.1, with one reading of the clocks for all
//! vCPUs: so offsets that were equal stay equal, which the kernel needs to keep its fast clock.
//!
//! The state holds the guest's TSC at that reading, and not the offset, which is meaningless on
//! another host: KVM adds it to the host's TSC *scaled* to the guest's frequency, and hosts scale
//! differently.

use kvm_bindings::kvm_clock_data;

use super::machine::has_host_time;
use crate::shape::TscScale;

/// A guest's clock and the host's TSC, read at the same instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockPair {
    /// kvmclock, in nanoseconds.
    pub(crate) guest_ns: u64,
    /// The host's TSC, in ticks.
    pub(crate) host_tsc: u64,
}

impl ClockPair {
    /// Returns the pair in `clock`, if the kernel provided both.
    pub(crate) fn of(clock: &kvm_clock_data) -> Option<Self> {
        has_host_time(clock).then_some(Self { guest_ns: clock.clock, host_tsc: clock.host_tsc })
    }
}

/// The two instants between which a TSC is carried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TscCarry {
    /// The guest's clock when the state was saved, in nanoseconds.
    pub(crate) saved_ns: u64,
    /// The clocks now, on this host, after the guest's clock has been set.
    pub(crate) now: ClockPair,
}

impl TscCarry {
    /// Returns the offset to set on this host, which scales by `scale`, for a vCPU whose TSC was
    /// `guest_tsc` when the state was saved and runs at `khz` ticks per millisecond.
    pub(crate) fn offset(&self, guest_tsc: u64, khz: u32, scale: TscScale) -> u64 {
        let passed_ns = i128::from(self.now.guest_ns) - i128::from(self.saved_ns);
        let passed_ticks = passed_ns * i128::from(khz) / 1_000_000;
        scale.offset(self.now.host_tsc, guest_tsc.wrapping_add(passed_ticks as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose KVM scales as the kernel does, and which has been up for some time.
    #[derive(Debug, Clone, Copy)]
    struct HostKvm {
        khz: u32,
        fraction_bits: u32,
        up_s: u64,
    }

    impl HostKvm {
        fn tsc(self, after_ms: u64) -> u64 {
            (self.up_s * 1000 + after_ms) * u64::from(self.khz)
        }

        /// `mul_u64_u64_shr(tsc, mul_u64_u32_div(1 << bits, guest_khz, tsc_khz), bits) + offset`.
        fn guest_tsc(self, guest_khz: u32, offset: u64, after_ms: u64) -> u64 {
            let one = 1_u128 << self.fraction_bits;
            let ratio = one * u128::from(guest_khz) / u128::from(self.khz);
            let scaled = (u128::from(self.tsc(after_ms)) * ratio) >> self.fraction_bits;
            (scaled as u64).wrapping_add(offset)
        }
    }

    const GUEST_KHZ: u32 = 2_100_000;
    const YEAR_S: u64 = 365 * 24 * 3600;

    fn hosts() -> Vec<HostKvm> {
        let frequencies = [GUEST_KHZ, 1_996_249, 3_400_000];
        let bits = [TscScale::VMX_FRACTION_BITS, TscScale::SVM_FRACTION_BITS];
        let up = [20, YEAR_S];
        let each = frequencies.into_iter().flat_map(|khz| {
            bits.into_iter().flat_map(move |fraction_bits| {
                up.into_iter().map(move |up_s| HostKvm { khz, fraction_bits, up_s })
            })
        });
        each.collect()
    }

    #[test]
    fn the_guests_tsc_advances_with_its_clock_whatever_the_hosts_frequencies_and_uptimes() {
        for from in hosts() {
            for to in hosts() {
                let old_offset = 123_u64.wrapping_neg();
                let scale = TscScale::new(GUEST_KHZ, from.khz, from.fraction_bits);
                let saved = scale.guest_tsc(from.tsc(0), old_offset);
                assert_eq!(saved, from.guest_tsc(GUEST_KHZ, old_offset, 0), "as KVM shows it");

                let now = ClockPair { guest_ns: 501_000_000, host_tsc: to.tsc(0) };
                let carry = TscCarry { saved_ns: 1_000_000, now };
                let scale = TscScale::new(GUEST_KHZ, to.khz, to.fraction_bits);
                let offset = carry.offset(saved, GUEST_KHZ, scale);
                for later_ms in [0, 60_000] {
                    let after = to.guest_tsc(GUEST_KHZ, offset, later_ms);
                    let expected = (500 + later_ms) * u64::from(GUEST_KHZ);
                    let off_by = after.wrapping_sub(saved).abs_diff(expected);
                    // 2^-32 of a minute's ticks, plus one tick.
                    assert!(off_by <= 40, "{from:?} {to:?}: off by {off_by} ticks");
                }
            }
        }
    }

    #[test]
    fn equal_tscs_stay_equal_and_others_keep_their_distance() {
        let carry =
            TscCarry { saved_ns: 7, now: ClockPair { guest_ns: 1_000_000_007, host_tsc: 50 } };
        let offset = |tsc| carry.offset(tsc, GUEST_KHZ, TscScale::NONE);
        assert_eq!(offset(40), offset(40));
        assert_eq!(offset(47).wrapping_sub(offset(40)), 7);
    }

    #[test]
    fn ticks_wrap() {
        let carry = TscCarry { saved_ns: 0, now: ClockPair { guest_ns: 0, host_tsc: u64::MAX } };
        let offset = carry.offset(5, GUEST_KHZ, TscScale::NONE);
        assert_eq!(TscScale::NONE.guest_tsc(u64::MAX, offset), 5);
    }
}
