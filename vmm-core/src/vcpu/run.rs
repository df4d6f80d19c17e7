//! Runs a vCPU: enters the guest and handles one exit after the other.

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, Msrs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::thread::{Machine, Mailbox};
use crate::devices::PortEffect;
use crate::event::{StopReason, VmEvent};
use crate::sys::kvm;

/// Most exits while an instruction is finished for a pause. A repeated string instruction leaves
/// the guest at least every 1024 iterations; a guest that needs more exits than this is broken.
const FINISHING_EXITS_MAX: usize = 1 << 16;

/// A vCPU, owned by its thread.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    index: u8,
    /// MSRs to save, with their indices filled in; values are scratch space.
    msrs: Msrs,
    /// Bytes of the XSAVE area, see [`kvm::get_xsave`].
    pub(crate) xsave_bytes: usize,
}

/// Result of one entry into the guest.
enum Turn {
    /// The exit has been handled: enter again.
    Again,
    /// The vCPU was kicked, or has nothing left to finish.
    Interrupted,
}

impl Vcpu {
    /// A vCPU that saves `msrs` and `xsave_bytes` of extended state.
    pub(crate) fn new(fd: VcpuFd, index: u8, msrs: Msrs, xsave_bytes: usize) -> Self {
        Self { fd, index, msrs, xsave_bytes }
    }

    /// Index, which is also the APIC ID.
    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// The vCPU's descriptor, for ioctls.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The vCPU's descriptor, and the list of MSRs to read from it.
    pub(crate) fn fd_and_msrs(&mut self) -> (&VcpuFd, &mut Msrs) {
        (&self.fd, &mut self.msrs)
    }

    /// The vCPU's descriptor, for ioctls that change `kvm_run`.
    pub(crate) fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Runs the guest until ordered to leave, then finishes an instruction that an exit left half
    /// done.
    ///
    /// # Errors
    /// The reason why the guest cannot continue.
    pub(super) fn run(&mut self, mailbox: &Mailbox, machine: &Machine) -> Result<(), StopReason> {
        // This tells a guest with kvmclock that it was stopped, so that its soft-lockup watchdog
        // ignores the gap. KVM writes the flag to guest memory on entry, so it is set here and not
        // when pausing. EINVAL means that the guest has no kvmclock.
        let _ = self.fd.kvmclock_ctrl();
        while !mailbox.must_leave() {
            if let Turn::Interrupted = self.turn(machine)? {
                // Clear the flag before checking `must_leave` again: a kick in between sets it once
                // more and costs one empty turn.
                self.fd.set_kvm_immediate_exit(0);
            }
        }
        self.finish_instruction(machine)
    }

    /// Completes port and MMIO accesses, whose second half KVM performs on the next entry.
    fn finish_instruction(&mut self, machine: &Machine) -> Result<(), StopReason> {
        for _ in 0..FINISHING_EXITS_MAX {
            self.fd.set_kvm_immediate_exit(1);
            if let Turn::Interrupted = self.turn(machine)? {
                self.fd.set_kvm_immediate_exit(0);
                return Ok(());
            }
        }
        Err(self.unexpected("an instruction that never ends".into()))
    }

    /// Discards an access that an exit left half done. For a vCPU whose state is about to be
    /// replaced: KVM would otherwise finish the access on the next entry, within the new state.
    pub(crate) fn abandon_instruction(&mut self) {
        for _ in 0..FINISHING_EXITS_MAX {
            self.fd.set_kvm_immediate_exit(1);
            if matches!(self.fd.run(), Ok(VcpuExit::Intr) | Err(_)) {
                break;
            }
        }
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Enters the guest once and handles the exit.
    fn turn(&mut self, machine: &Machine) -> Result<Turn, StopReason> {
        let index = self.index;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let effect = machine.write_port(port, data);
                return self.port_effect(effect, machine);
            }
            Ok(VcpuExit::IoIn(port, data)) => machine.read_port(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => machine.bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => machine.bus.write(address, data),
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Intr) => return Ok(Turn::Interrupted),
            Ok(VcpuExit::Shutdown) => {
                return Err(StopReason::TripleFault { vcpu: index, rip: self.rip() });
            }
            Ok(VcpuExit::InternalError) => {
                let (suberror, instruction) = kvm::internal_error(&mut self.fd);
                let rip = self.rip();
                return Err(StopReason::InternalError { vcpu: index, suberror, rip, instruction });
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(StopReason::FailEntry { vcpu: index, reason });
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => self.make_room(machine)?,
            Ok(exit) => {
                let what = format!("{exit:?}");
                return Err(self.unexpected(what));
            }
            Err(error) if error.errno() == libc::EINTR => return Ok(Turn::Interrupted),
            // A vCPU that waits for its start-up interrupt was woken by something else.
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => {
                let what = format!("KVM_RUN at {:#x}: {error}", self.rip());
                return Err(self.unexpected(what));
            }
        }
        Ok(Turn::Again)
    }

    fn port_effect(&self, effect: PortEffect, machine: &Machine) -> Result<Turn, StopReason> {
        match effect {
            PortEffect::None => {}
            PortEffect::Doorbell(value) => {
                machine.events.push(VmEvent::Doorbell { vcpu: self.index, value });
            }
            PortEffect::Reset => return Err(StopReason::Reset),
            PortEffect::PowerOff => return Err(StopReason::PowerOff),
        }
        Ok(Turn::Again)
    }

    /// Empties all dirty rings, since this vCPU's is full; the next collection reports these pages.
    fn make_room(&self, machine: &Machine) -> Result<(), StopReason> {
        let room = machine.rings.as_ref().map_or(Ok(()), |rings| rings.make_room());
        room.map_err(|error| self.unexpected(format!("a full dirty ring: {error}")))
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn unexpected(&self, what: String) -> StopReason {
        StopReason::Unexpected { vcpu: self.index, what }
    }
}
