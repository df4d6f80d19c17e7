//! ACPI's power management timer: a counter of 3.579545 MHz with 32 bits (ACPI specification 6.5,
//! section 4.8.3.3). Firmware measures delays by it.
//!
//! The ACPI tables do not announce it: a kernel would check its other clocks by it, and find it
//! standing still on a host with an earlier version of lighter.
//!
//! It counts what KVM's clock of this guest counts, which goes on where it was after a migration or
//! a restore, so the timer has no state of its own.

use std::fmt;
use std::sync::Arc;

use kvm_ioctls::VmFd;

/// Port of the timer, which is read with 32 bits. QEMU and Cloud Hypervisor have it there too.
pub(crate) const PM_TIMER_PORT: u16 = 0x608;

/// Ticks per second.
const FREQUENCY_HZ: u128 = 3_579_545;
const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// The timer of a guest.
pub(crate) struct PmTimer(Option<Arc<VmFd>>);

impl fmt::Debug for PmTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PmTimer").field(&self.ticks()).finish()
    }
}

impl PmTimer {
    /// A timer that counts by the clock of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self(Some(vm))
    }

    /// A timer that stands at 0.
    #[cfg(test)]
    pub(crate) fn stopped() -> Self {
        Self(None)
    }

    /// Handles a guest read of `data.len()` bytes from [`PM_TIMER_PORT`].
    pub(crate) fn read(&self, data: &mut [u8]) {
        let bytes = self.ticks().to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes[index % bytes.len()];
        }
    }

    fn ticks(&self) -> u32 {
        let Some(vm) = &self.0 else { return 0 };
        match vm.get_clock() {
            Ok(clock) => ticks_after(clock.clock),
            Err(error) => {
                tracing::error!(%error, "the guest's clock cannot be read");
                0
            }
        }
    }
}

/// The counter after this many nanoseconds. It wraps.
fn ticks_after(nanoseconds: u64) -> u32 {
    (u128::from(nanoseconds) * FREQUENCY_HZ / NANOSECONDS_PER_SECOND) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps() {
        assert_eq!(ticks_after(0), 0);
        assert_eq!(ticks_after(1_000_000_000), 3_579_545);
        let wraps = (1u64 << 32) * 1_000_000_000 / 3_579_545;
        assert!(ticks_after(wraps) > u32::MAX - 4);
        assert!(ticks_after(wraps + 1_000) < 4);
        assert_eq!(
            ticks_after(u64::MAX),
            (u128::from(u64::MAX) * 3_579_545 / 1_000_000_000) as u32
        );
    }

    #[test]
    fn a_read_of_any_width_gives_bytes_of_the_counter() {
        let timer = PmTimer::stopped();
        for width in [1, 2, 4, 8, 64] {
            let mut data = vec![0xff; width];
            timer.read(&mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{width}");
        }
    }
}
