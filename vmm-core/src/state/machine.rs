//! State that belongs to the VM as a whole: interrupt controllers, PIT, and the guest's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

use crate::error::{KvmContext, Result};
use crate::sys::kvm;

/// A reading whose wall clock is at most this far from the guest's clock, in nanoseconds, is
/// accurate enough: see `Reading::within_ns`.
const CLOSE_NS: u64 = 50_000;
/// Most readings of a clock, of which the most accurate one is used.
const READINGS_MAX: usize = 5;

/// The in-kernel interrupt controllers and timer.
#[derive(Clone, Serialize, Deserialize)]
pub struct IrqchipState {
    /// First 8259 interrupt controller, for IRQs 0 to 7.
    pub pic_master: kvm_irqchip,
    /// Second 8259 interrupt controller, for IRQs 8 to 15.
    pub pic_slave: kvm_irqchip,
    /// The I/O APIC.
    pub ioapic: kvm_irqchip,
    /// The 8254 interval timer.
    pub pit: kvm_pit_state2,
}

impl std::fmt::Debug for IrqchipState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The controllers are unions that do not implement `Debug`.
        f.debug_struct("IrqchipState").field("pit", &self.pit).finish_non_exhaustive()
    }
}

/// Reads the interrupt controllers and the timer. All vCPUs must be parked.
pub(crate) fn save_irqchip(vm: &VmFd) -> Result<IrqchipState> {
    let chip = |chip_id| {
        let mut state = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut state).call("KVM_GET_IRQCHIP")?;
        Ok::<_, crate::Error>(state)
    };
    Ok(IrqchipState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit: vm.get_pit2().call("KVM_GET_PIT2")?,
    })
}

/// Loads the interrupt controllers and the timer. Call it after loading the vCPUs: loading the I/O
/// APIC delivers its pending interrupts to the local APICs, which must have their state by then.
pub(crate) fn load_irqchip(vm: &VmFd, state: &IrqchipState) -> Result<()> {
    let chips = [
        (&state.pic_master, KVM_IRQCHIP_PIC_MASTER),
        (&state.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
        (&state.ioapic, KVM_IRQCHIP_IOAPIC),
    ];
    for (chip, chip_id) in chips {
        // The state may come from a peer, so do not trust its chip ID.
        let chip = kvm_irqchip { chip_id, ..*chip };
        vm.set_irqchip(&chip).call("KVM_SET_IRQCHIP")?;
    }
    vm.set_pit2(&state.pit).call("KVM_SET_PIT2")
}

/// Reads the guest's clock together with the host's wall clock and TSC.
pub(crate) fn save_clock(vm: &VmFd) -> Result<kvm_clock_data> {
    let mut best = read_clock(vm)?;
    for _ in 1..READINGS_MAX {
        if best.within_ns <= CLOSE_NS {
            break;
        }
        let next = read_clock(vm)?;
        if next.within_ns < best.within_ns {
            best = next;
        }
    }
    Ok(best.clock)
}

/// The guest's clock, with the host's wall clock and TSC read at most `within_ns` before or after
/// it.
struct Reading {
    clock: kvm_clock_data,
    within_ns: u64,
}

/// Reads the clock once. KVM reports the wall clock and the TSC as long as it has a master clock;
/// otherwise this reads them around the call. The guest's TSC must later advance by the same time
/// as its clock, or a guest that uses the TSC as clock source marks it unstable.
fn read_clock(vm: &VmFd) -> Result<Reading> {
    let (before, tsc_before) = (wall_clock_ns(), kvm::host_tsc());
    let mut clock = vm.get_clock().call("KVM_GET_CLOCK")?;
    if has_host_time(&clock) {
        return Ok(Reading { clock, within_ns: 0 });
    }
    let (after, tsc_after) = (wall_clock_ns(), kvm::host_tsc());
    let within_ns = after.saturating_sub(before) / 2;
    clock.realtime = before + within_ns;
    clock.host_tsc = tsc_before.wrapping_add(tsc_after.wrapping_sub(tsc_before) / 2);
    clock.flags |= KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    Ok(Reading { clock, within_ns })
}

/// Sets the guest's clock, before any vCPU runs, to what it would show had it continued since it
/// was saved, which keeps the guest's time of day right.
pub(crate) fn load_clock(vm: &VmFd, saved: &kvm_clock_data) -> Result<()> {
    // KVM_CAP_ADJUST_CLOCK returns the flags that KVM_SET_CLOCK supports: this one since Linux
    // 5.16.
    let known = vm.check_extension_int(Cap::AdjustClock).cast_unsigned();
    set_clock(vm, saved, known & KVM_CLOCK_REALTIME != 0)
}

fn set_clock(vm: &VmFd, saved: &kvm_clock_data, kernel_adds: bool) -> Result<()> {
    let mut clock = kvm_clock_data { clock: saved.clock, ..Default::default() };
    match saved.flags & KVM_CLOCK_REALTIME {
        0 => {}
        realtime if kernel_adds => (clock.flags, clock.realtime) = (realtime, saved.realtime),
        _ => clock.clock = clock_at(saved, wall_clock_ns()),
    }
    vm.set_clock(&clock).call("KVM_SET_CLOCK")
}

/// Returns the guest's clock at the wall clock time `wall_clock`, in nanoseconds. The clock never
/// goes back.
fn clock_at(saved: &kvm_clock_data, wall_clock: u64) -> u64 {
    saved.clock.saturating_add(wall_clock.saturating_sub(saved.realtime))
}

fn wall_clock_ns() -> u64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the clock comes with the host's TSC and wall clock of the same instant.
pub(crate) fn has_host_time(clock: &kvm_clock_data) -> bool {
    let needed = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    clock.flags & needed == needed
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_clock_is_saved_with_wall_clock_and_tsc_whatever_kvm_reports() {
        let vm = kvm::create_vm(&Kvm::new().unwrap()).unwrap();
        let (before, before_tsc) = (wall_clock_ns(), kvm::host_tsc());
        let saved = save_clock(&vm).unwrap();
        assert!(has_host_time(&saved), "{saved:?}");
        assert!((before_tsc..=kvm::host_tsc()).contains(&saved.host_tsc), "{saved:?}");
        assert!((before..=wall_clock_ns()).contains(&saved.realtime), "{saved:?} after {before}");
    }

    #[test]
    fn a_clock_advances_while_its_guest_is_saved() {
        let vm = kvm::create_vm(&Kvm::new().unwrap()).unwrap();
        let adds = vm.check_extension_int(Cap::AdjustClock).cast_unsigned() & KVM_CLOCK_REALTIME;
        let ways = if adds == 0 { vec![false] } else { vec![false, true] };
        for kernel_adds in ways {
            let mut saved = save_clock(&vm).unwrap();
            saved.realtime -= 100 * SECOND_NS;
            set_clock(&vm, &saved, kernel_adds).unwrap();
            let passed = save_clock(&vm).unwrap().clock - saved.clock;
            assert!((100..110).contains(&(passed / SECOND_NS)), "{passed} ns, {kernel_adds}");
        }
    }

    #[test]
    fn a_wall_clock_that_is_behind_takes_nothing_from_a_guest() {
        let saved = kvm_clock_data { clock: 7, realtime: 1000, ..Default::default() };
        assert_eq!(clock_at(&saved, 1005), 12);
        assert_eq!(clock_at(&saved, 3), 7);
        assert_eq!(clock_at(&kvm_clock_data { clock: u64::MAX, ..saved }, 2000), u64::MAX);
    }
}
