//! The power button, and resets of a guest.
//!
//! A reset happens in place, with the same vCPUs, memory and descriptors, so that the owner keeps
//! its handles and a migration that is under way continues. The vCPU that requests a reset orders
//! all vCPUs to park and sends an event to the owner, who calls [`Vm::start_over`]. A pause that
//! comes first performs the reset too, so a guest is never saved between the request and the reset.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{RunState, Vm};
use crate::boot;
use crate::devices::ButtonPress;
use crate::error::{Error, Result};
use crate::event::StopReason;
use crate::state::{ClockPair, TscCarry, VmState};
use crate::vcpu::OnReboot;
use crate::virtio::balloon::BalloonReport;

/// The resets of a guest in this VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Number of resets.
    pub count: u64,
    /// Reason of the last reset.
    pub last: Option<StopReason>,
}

impl Restarts {
    /// Returns the reason of the last reset in words.
    pub fn last_reason(&self) -> Option<String> {
        let reason = self.last.as_ref()?;
        Some(match reason {
            // It would have ended the guest, had no reboot been requested.
            StopReason::PowerOff => "the guest shut down for a requested reboot".to_owned(),
            reason => reason.to_string(),
        })
    }
}

impl Vm {
    /// Sets what happens when the guest resets itself. This is part of the guest's saved state.
    pub fn set_on_reboot(&self, policy: OnReboot) {
        self.machine.resets.set_policy(policy);
    }

    /// Returns what happens when the guest resets itself.
    pub fn on_reboot(&self) -> OnReboot {
        self.machine.resets.policy()
    }

    /// Presses the power button. The guest decides what to do then.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless running.
    pub fn press_power_button(&self) -> Result<ButtonPress> {
        let _control = self.control();
        self.expect(RunState::Running, "press the power button")?;
        Ok(self.machine.ports.power().press_button())
    }

    /// Makes the guest boot again if it powers itself off before `until`; `None` cancels this.
    pub fn restart_on_power_off(&self, until: Option<Instant>) {
        self.machine.resets.restart_on_power_off(until);
    }

    /// Checks that the files from which the guest would boot again are here, and unchanged.
    ///
    /// # Errors
    /// [`crate::boot::BootError`], if one is not; [`Error::NeverBooted`].
    pub fn expect_bootable(&self) -> Result<()> {
        let bytes_max = self.ram().bytes();
        let origin = self.origin();
        Ok(origin.as_ref().ok_or(Error::NeverBooted)?.expect_files(bytes_max)?)
    }

    /// Resets a running guest, like a machine's reset button: its memory is lost and it boots
    /// again, whatever [`Vm::set_on_reboot`] says. Every page counts as written.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless running; as for [`Vm::expect_bootable`]. If the guest cannot be
    /// booted again although its files are here, it has ended, and an event says why.
    pub fn reset(&self) -> Result<()> {
        let _control = self.control();
        self.expect(RunState::Running, "reset")?;
        self.expect_bootable()?;
        self.machine.resets.request(StopReason::ResetAsked);
        self.restart();
        self.expect(RunState::Running, "reset")
    }

    /// Performs the pending reset, after [`crate::VmEvent::Reset`]. Does nothing if none is
    /// pending. If the guest cannot be booted again, it ends, and an event says why.
    pub fn start_over(&self) {
        let _control = self.control();
        if self.should_run.load(Ordering::Acquire) && self.machine.resets.is_due() {
            self.restart();
        }
    }

    /// Stops a running guest, performs the pending reset and resumes it; ends the guest if that
    /// fails.
    fn restart(&self) {
        // If a device does not stop, a step below fails with its error.
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

    /// Returns the resets of the guest in this VM.
    pub fn restarts(&self) -> Restarts {
        let (count, last) = self.machine.resets.done();
        Restarts { count, last }
    }

    /// Returns the time since the guest last began to boot in this VM; `None` for a guest that was
    /// booted elsewhere, came here by [`Vm::load_state`] and has not been reset since.
    pub fn since_boot(&self) -> Option<Duration> {
        self.machine.resets.since_boot()
    }

    /// Performs the pending reset. All vCPUs must be parked, and stay so.
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
        // Before the interrupt controllers and the memory are new.
        let leaving = self.machine.bus.stop_host_devices();
        let answers: Vec<_> =
            self.vcpus.iter().map(|vcpu| vcpu.submit(|vcpu| vcpu.abandon_instruction())).collect();
        answers.into_iter().try_for_each(|answer| answer.wait())?;
        // The guest's TSC keeps counting, with the same value on all vCPUs.
        let clock = ClockPair::of(&pristine.clock);
        let carry = clock.map(|clock| TscCarry { saved_ns: clock.guest_ns, now: clock });
        // The balloon's target survives the reset, whether an operator or the optimizer set it.
        let before = self.machine.bus.on_balloon(|balloon, _| balloon.report())?;
        let (devices, pci) = self.machine.bus.power_on_state();
        let powered_on = VmState { devices, pci, ..VmState::clone(pristine) };
        self.load_hardware(&powered_on, carry)?;
        self.machine.bus.place_host_devices(leaving);
        self.machine.report_ejections();
        if let Some(BalloonReport { target_pages, set_by, .. }) = before {
            self.machine.bus.on_balloon(move |balloon, rings| {
                balloon.set_target(target_pages, set_by, rings);
            })?;
        }
        let variables = self.variables_before_reset(origin)?;
        // After loading the vCPUs: their old state may have made KVM write to memory.
        self.ram().clear()?;
        boot::boot(self, origin)?;
        if let Some(variables) = variables {
            variables.place(self.ram())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
