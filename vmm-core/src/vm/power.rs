//! The power button, and starting a guest over.
//!
//! A guest is reset in place: the same vCPUs, memory and descriptors, so that its owner keeps what
//! it has and a migration that is under way goes on. The vCPU that finds that a reset is due asks
//! all to park and tells the owner, who calls [`Vm::start_over`]; a pause that comes first does the
//! reset too, so that no guest is ever saved between its end and its new beginning.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{RunState, Vm};
use crate::boot;
use crate::devices::ButtonPress;
use crate::error::{Error, Result};
use crate::event::StopReason;
use crate::state::{ClockPair, TscCarry};
use crate::vcpu::OnReboot;
use crate::virtio::balloon::BalloonReport;

/// How often a guest has started over in this VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restarts {
    /// How often.
    pub count: u64,
    /// Why it did so last.
    pub last: Option<StopReason>,
}

impl Vm {
    /// Sets what becomes of the guest when it resets itself. It is part of the guest's saved state.
    pub fn set_on_reboot(&self, policy: OnReboot) {
        self.machine.resets.set_policy(policy);
    }

    /// What becomes of the guest when it resets itself.
    pub fn on_reboot(&self) -> OnReboot {
        self.machine.resets.policy()
    }

    /// Presses the power button. What the guest does then is up to it.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless running.
    pub fn press_power_button(&self) -> Result<ButtonPress> {
        let _control = self.control();
        self.expect(RunState::Running, "press the power button")?;
        Ok(self.machine.ports.power().press_button())
    }

    /// Boots the guest again should it switch itself off before `until`; `None` takes that back.
    pub fn restart_on_power_off(&self, until: Option<Instant>) {
        self.machine.resets.restart_on_power_off(until);
    }

    /// Resets a running guest, like the button on a machine: its memory is lost and it boots again,
    /// whatever [`Vm::set_on_reboot`] says. Every page counts as written.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless running, also when it cannot be booted again: the guest has
    /// ended then, and an event tells why.
    pub fn reset(&self) -> Result<()> {
        let _control = self.control();
        self.expect(RunState::Running, "reset")?;
        self.machine.resets.request(StopReason::ResetAsked);
        self.restart();
        self.expect(RunState::Running, "reset")
    }

    /// Does the reset that is due, after [`crate::VmEvent::Reset`]; nothing when none is. A guest
    /// that cannot be booted again ends, with an event.
    pub fn start_over(&self) {
        let _control = self.control();
        if self.told_to_run.load(Ordering::Acquire) && self.machine.resets.is_due() {
            self.restart();
        }
    }

    /// Stops a running guest, does the reset that is due and lets it go on, unless that cannot be
    /// done.
    fn restart(&self) {
        // A device that does not stop is met again below.
        let _ = self.park_all();
        self.settle_reset();
        if self.machine.stopped().is_some() {
            return;
        }
        match self.machine.bus.resume() {
            Ok(()) => self.run_all(),
            Err(error) => self.cannot_restart(StopReason::Reset, &error.into()),
        }
    }

    fn cannot_restart(&self, reason: StopReason, error: &Error) {
        let (reason, error) = (Box::new(reason), error.to_string());
        self.machine.stop(StopReason::NoRestart { reason, error });
    }

    /// How often the guest has started over here.
    pub fn restarts(&self) -> Restarts {
        let (count, last) = self.machine.resets.done();
        Restarts { count, last }
    }

    /// Does the reset that is due. All vCPUs are parked and stay so.
    pub(super) fn settle_reset(&self) {
        let Some(reason) = self.machine.resets.take() else { return };
        if self.machine.stopped().is_some() {
            return;
        }
        match self.boot_again() {
            Ok(()) => self.machine.resets.note_done(reason),
            Err(error) => self.cannot_restart(reason, &error),
        }
    }

    fn boot_again(&self) -> Result<()> {
        let origin = self.origin();
        let (Some(origin), Some(pristine)) = (&*origin, &self.pristine) else {
            return Err(Error::NeverBooted);
        };
        self.machine.bus.pause()?;
        let answers: Vec<_> =
            self.vcpus.iter().map(|vcpu| vcpu.submit(|vcpu| vcpu.abandon_instruction())).collect();
        answers.into_iter().try_for_each(|answer| answer.wait())?;
        // The guest's TSC goes on counting, at the same value on all vCPUs.
        let clock = ClockPair::of(&pristine.clock);
        let carry = clock.map(|clock| TscCarry { saved_ns: clock.guest_ns, now: clock });
        // What the operator wants of the balloon outlives the guest's system.
        let before = self.machine.bus.on_balloon(|balloon, _| balloon.report())?;
        self.load_hardware(pristine, carry)?;
        if let Some(BalloonReport { target_pages, set_by, .. }) = before {
            self.machine.bus.on_balloon(move |balloon, rings| {
                balloon.set_target(target_pages, set_by, rings);
            })?;
        }
        // After the vCPUs: their old state may have had KVM write to memory.
        self.ram().clear()?;
        boot::boot(self, origin)
    }
}

#[cfg(test)]
mod tests;
