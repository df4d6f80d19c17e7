//! The UEFI variables of a guest with firmware, which outlive its memory.

use super::{RunState, Vm};
use crate::boot::{Origin, Variables};
use crate::error::Result;

impl Vm {
    /// Copies the guest's UEFI variables; `None` if it was not booted by firmware, if that has not
    /// made any yet, if a page of them has yet to arrive, or during a reset. The guest may write
    /// them meanwhile, unless it is paused.
    ///
    /// # Errors
    /// If the guest's memory cannot be read.
    pub fn variables(&self) -> Result<Option<Variables>> {
        // A reset may wait for long, and nothing that reads variables is worth that.
        let has_firmware =
            self.origin.try_lock().is_ok_and(|origin| matches!(*origin, Some(Origin::Firmware(_))));
        if has_firmware { Ok(Variables::find(self.ram())?) } else { Ok(None) }
    }

    /// Gives a guest that has been booted, and has not run yet, its UEFI variables; returns false
    /// if it has too little memory for them.
    ///
    /// # Errors
    /// [`crate::Error::WrongState`] unless paused; if memory cannot be written.
    pub fn place_variables(&self, variables: &Variables) -> Result<bool> {
        let _control = self.control();
        self.expect(RunState::Paused, "take UEFI variables")?;
        Ok(variables.place(self.ram())?)
    }

    /// Copies the UEFI variables of a guest that was booted from `origin`, before a reset.
    pub(super) fn variables_before_reset(&self, origin: &Origin) -> Result<Option<Variables>> {
        let Origin::Firmware(_) = origin else { return Ok(None) };
        let variables = Variables::find(self.ram())?;
        if variables.is_none() && !self.ram().is_complete() {
            tracing::warn!(
                "the guest's UEFI variables are lost: it resets before they have arrived"
            );
        }
        Ok(variables)
    }
}

#[cfg(test)]
mod tests {
    use std::io::sink;

    use super::*;
    use crate::boot::volume;
    use crate::devices::MachineKind;
    use crate::testing::{CODE, DATA, file_with, shape, with_pvh_entry};
    use crate::{BootSource, VmShape};

    #[test]
    fn variables_survive_a_reset_and_the_rest_of_memory_does_not() {
        let firmware = file_with(&with_pvh_entry(CODE, &[0xeb, 0xfe])); // jmp $
        let shape = VmShape { machine: MachineKind::Pci, ..shape(64, 1) };
        let vm = Vm::create(&shape, Box::new(sink())).unwrap();
        assert_eq!(vm.variables().unwrap(), None, "it was not booted");
        vm.boot(&BootSource::Firmware(firmware.path().to_path_buf())).unwrap();
        assert_eq!(vm.variables().unwrap(), None);
        let kept = Variables::from_bytes(volume(b"BootOrder")).unwrap();
        assert!(vm.place_variables(&kept).unwrap());
        vm.ram().write(DATA, b"lost").unwrap();
        vm.resume().unwrap();
        vm.reset().unwrap();
        assert_eq!(vm.restarts().count, 1);
        assert_eq!(vm.variables().unwrap(), Some(kept.clone()));
        let mut data = [0; 4];
        vm.ram().read(DATA, &mut data).unwrap();
        assert_eq!(data, [0; 4]);
        assert!(vm.place_variables(&kept).is_err(), "it runs");
    }
}
