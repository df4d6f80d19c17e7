//! Where the devices of a guest are: behind I/O ports, some of which mean something to the VMM itself,
//! and, for the virtio devices of [`crate::virtio`], in the window of [`mmio`].
//!
//! | port | what |
//! |---|---|
//! | 0x3f8 - 0x3ff | serial console, a 16550 on IRQ 4 |
//! | 0x64 | i8042 command port: 0xfe resets, which ends the guest |
//! | [`POWER_OFF_PORT`] | any write ends the guest |
//! | [`DOORBELL_PORT`] | a write of up to 32 bits reaches the owner as [`crate::VmEvent::Doorbell`] |
//!
//! Interrupt controllers and the PIT live in the kernel. Everything else reads as ones.

mod irq;
pub mod mmio;
mod ports;
mod serial;

pub(crate) use irq::IrqLine;
pub(crate) use ports::{PortEffect, Ports};
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
