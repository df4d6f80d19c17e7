//! The guest's devices: I/O ports, some of which address the VMM itself, and the interrupts of the
//! virtio devices of [`crate::virtio`], which are reached as the guest's [`MachineKind`] has it.
//!
//! | port | what |
//! |---|---|
//! | 0x3f8 - 0x3ff | serial console, a 16550 on IRQ 4 |
//! | 0x64 | i8042 command port: 0xfe resets |
//! | 0x70 - 0x71 | CMOS with the time of day, if the machine has PCI |
//! | 0x600 - 0x605 | ACPI power hardware: power button on GSI 9, soft-off (see `power.rs`) |
//! | 0x608 - 0x60b | ACPI power management timer |
//! | 0xcf8, 0xcfc - 0xcff | PCI configuration space, if the machine has PCI (see [`crate::pci`]) |
//! | 0xcf9 | ACPI reset register |
//! | 0xae00 - 0xae0b | PCI hot-plug, if the machine has PCI (see `pci/hot_plug.rs`) |
//! | [`POWER_OFF_PORT`] | any write ends the guest |
//! | [`DOORBELL_PORT`] | the owner gets up to 32 bits as [`crate::VmEvent::Doorbell`] |
//!
//! Interrupt controllers and the PIT are in the kernel. Every other address reads as ones.

mod cmos;
mod irq;
mod kind;
pub mod mmio;
mod msi;
pub(crate) mod pm_timer;
mod ports;
pub(crate) mod power;
mod serial;

pub(crate) use cmos::Cmos;
pub(crate) use irq::IrqLine;
pub use kind::MachineKind;
pub(crate) use msi::{FIRST_HOST_MSI_GSI, FIRST_MSI_GSI, MsiRoutes};
pub(crate) use pm_timer::PmTimer;
pub(crate) use ports::{PortEffect, Ports};
pub(crate) use power::PowerHardware;
pub use power::{ButtonPress, PowerState};
pub(crate) use serial::SerialPort;
pub use serial::SerialState;

/// Writes to this port ring the owner's doorbell with the value written.
pub const DOORBELL_PORT: u16 = 0x4c0;
/// Any write to this port powers the guest off.
pub const POWER_OFF_PORT: u16 = 0x4c4;
/// First of the eight ports of the serial console (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the serial console.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupt line that says that the VM generation ID has changed: that of a PS/2 mouse, which no
/// guest has.
pub(crate) const GENERATION_IRQ: u32 = 12;
/// Interrupt line that says that devices come or go on the PCI bus. A guest without one may have a
/// device on this line.
pub(crate) const HOT_PLUG_IRQ: u32 = 10;
