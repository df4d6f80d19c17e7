//! Carrying the guest's TSC to another host.
//!
//! A guest that uses the TSC as its clock must find it advanced by exactly the time that its kvmclock
//! has advanced, whatever the two hosts' own TSCs show. This is the algorithm of
//! Documentation/virt/kvm/devices/vcpu.rst, section 4.1, with one reading of the clocks for all vCPUs:
//! offsets that were equal stay equal, which the kernel needs to keep its fast clock.

use kvm_bindings::kvm_clock_data;

use super::machine::has_host_time;

/// A guest's clock and the host's TSC, read at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockPair {
    /// kvmclock, in nanoseconds.
    pub(crate) guest_ns: u64,
    /// The host's TSC, in ticks.
    pub(crate) host_tsc: u64,
}

impl ClockPair {
    /// The pair in `clock`, when the kernel gave both.
    pub(crate) fn of(clock: &kvm_clock_data) -> Option<Self> {
        has_host_time(clock).then_some(Self { guest_ns: clock.clock, host_tsc: clock.host_tsc })
    }
}

/// The two moments between which a TSC is carried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TscCarry {
    /// When the state was saved, on the host that it comes from.
    pub(crate) saved: ClockPair,
    /// Now, on this host, after its clock has been set.
    pub(crate) now: ClockPair,
}

impl TscCarry {
    /// The offset to set on this host for a vCPU that had `offset` on the other, with a guest TSC of
    /// `khz` ticks per millisecond. Offsets wrap.
    pub(crate) fn offset(&self, offset: u64, khz: u32) -> u64 {
        let passed_ns = i128::from(self.now.guest_ns) - i128::from(self.saved.guest_ns);
        let passed_ticks = passed_ns * i128::from(khz) / 1_000_000;
        offset
            .wrapping_add(passed_ticks as u64)
            .wrapping_add(self.saved.host_tsc)
            .wrapping_sub(self.now.host_tsc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;

    fn pair(guest_ns: u64, host_tsc: u64) -> ClockPair {
        ClockPair { guest_ns, host_tsc }
    }

    #[test]
    fn the_guests_tsc_advances_with_its_clock_whatever_the_hosts_show() {
        for (saved_tsc, now_tsc) in [(5_000, 9_000_000_000), (9_000_000_000, 17), (0, u64::MAX)] {
            let carry = TscCarry { saved: pair(1_000, saved_tsc), now: pair(501_000, now_tsc) };
            let offset = 123u64.wrapping_neg();
            let before = saved_tsc.wrapping_add(offset);
            let after = now_tsc.wrapping_add(carry.offset(offset, KHZ));
            assert_eq!(after.wrapping_sub(before), 1_000_000, "500 us at 2 GHz");
        }
    }

    #[test]
    fn equal_offsets_stay_equal_and_others_keep_their_distance() {
        let carry = TscCarry { saved: pair(7, 100), now: pair(1_000_000_007, 50) };
        assert_eq!(carry.offset(40, KHZ), carry.offset(40, KHZ));
        assert_eq!(carry.offset(47, KHZ).wrapping_sub(carry.offset(40, KHZ)), 7);
    }
}
