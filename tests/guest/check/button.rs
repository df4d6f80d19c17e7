//! The power button as the test guest's kernel handles it: without a driver, because that needs the
//! input layer.
//!
//! The program itself enables the button in the PM1 enable register. A press raises the SCI; the
//! kernel's ACPI core then clears the event and disables the button, because no driver has
//! requested it. That shows that the interrupt was delivered and understood.

use crate::linux::Port;

/// The upper byte of the PM1 enable register, at its address in `vmm-core/src/devices/power.rs`.
const PM1_ENABLE_HIGH: u16 = 0x603;
/// Bit 8 of the register, the button's enable bit.
const POWER_BUTTON: u8 = 1;

/// The power button, enabled in the PM1 register.
pub struct Button {
    enable: Port,
}

impl Button {
    /// Enables the button.
    pub fn listen() -> Option<Self> {
        let enable = Port::open(PM1_ENABLE_HIGH)?;
        enable.write(enable.read() | POWER_BUTTON);
        Some(Self { enable })
    }

    /// Whether the kernel has handled a press.
    pub fn was_pressed(&self) -> bool {
        self.enable.read() & POWER_BUTTON == 0
    }
}
