//! The power button, as the kernel of the test guest has it: without a driver, since that needs the
//! input layer.
//!
//! The program enables the button in the PM1 enable register itself. When it is pressed, the SCI
//! comes, and the kernel's ACPI core clears the event and disables it, because nobody has asked for
//! it: that shows that the interrupt was delivered and understood.

use crate::linux::Port;

/// The upper byte of the PM1 enable register, where `vmm-core/src/devices/power.rs` has it.
const PM1_ENABLE_HIGH: u16 = 0x603;
/// Bit 8 of the register.
const POWER_BUTTON: u8 = 1;

/// The power button.
pub struct Button {
    enable: Port,
}

impl Button {
    /// Listens to the button from now on.
    pub fn listen() -> Option<Self> {
        let enable = Port::open(PM1_ENABLE_HIGH)?;
        enable.write(enable.read() | POWER_BUTTON);
        Some(Self { enable })
    }

    /// Whether the kernel has had the event.
    pub fn was_pressed(&self) -> bool {
        self.enable.read() & POWER_BUTTON == 0
    }
}
