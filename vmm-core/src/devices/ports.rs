//! Dispatches I/O port accesses to devices.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cmos::{CMOS_DATA_PORT, CMOS_INDEX_PORT, Cmos};
use super::pm_timer::{PM_TIMER_PORT, PmTimer};
use super::power::{self, PM1_PORTS, RESET_PORT};
use super::{DOORBELL_PORT, POWER_OFF_PORT, PowerHardware, SERIAL_PORT, SerialPort};

/// Command and status port of the i8042 keyboard controller; only its reset line is emulated.
const I8042_COMMAND_PORT: u16 = 0x64;
/// The i8042 command that pulses the processor's reset line.
const I8042_RESET: u8 = 0xfe;
/// Last of the serial console's ports.
const SERIAL_PORT_LAST: u16 = SERIAL_PORT + 7;
/// First and last port of the ACPI power hardware.
const PM1_FIRST: u16 = *PM1_PORTS.start();
const PM1_LAST: u16 = *PM1_PORTS.end();

/// What a write to a port asks of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortEffect {
    /// Nothing more: a device has taken the write, or none has the port.
    None,
    /// The guest requests a reset.
    Reset,
    /// The guest requests power-off.
    PowerOff,
    /// The guest rang its doorbell.
    Doorbell(u32),
}

/// The devices behind the I/O ports.
#[derive(Debug)]
pub(crate) struct Ports {
    serial: Mutex<SerialPort>,
    power: Mutex<PowerHardware>,
    timer: PmTimer,
    /// Absent without a PCI bus: no firmware starts on such a machine.
    cmos: Option<Cmos>,
}

impl Ports {
    /// Creates the devices of a new guest.
    pub(crate) fn new(
        serial: SerialPort,
        power: PowerHardware,
        timer: PmTimer,
        cmos: Option<Cmos>,
    ) -> Self {
        Self { serial: Mutex::new(serial), power: Mutex::new(power), timer, cmos }
    }

    /// The CMOS, if the machine has one.
    pub(crate) fn cmos(&self) -> Option<&Cmos> {
        self.cmos.as_ref()
    }

    /// Locks the ACPI power hardware.
    pub(crate) fn power(&self) -> MutexGuard<'_, PowerHardware> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the serial console.
    pub(crate) fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a guest read of `data.len()` bytes from `port`.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..=SERIAL_PORT_LAST => {
                let mut serial = self.serial();
                data.fill_with(|| serial.read((port - SERIAL_PORT) as u8));
            }
            I8042_COMMAND_PORT => data.fill(0),
            PM1_FIRST..=PM1_LAST => self.power().read(port, data),
            PM_TIMER_PORT => self.timer.read(data),
            CMOS_DATA_PORT => data.fill(self.cmos.as_ref().map_or(0xff, Cmos::read)),
            _ => data.fill(0xff),
        }
    }

    /// Handles a guest write of `data` to `port`; for a repeated instruction, `data` holds all its
    /// values.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> PortEffect {
        match port {
            SERIAL_PORT..=SERIAL_PORT_LAST => {
                let mut serial = self.serial();
                data.iter().for_each(|byte| serial.write((port - SERIAL_PORT) as u8, *byte));
                PortEffect::None
            }
            I8042_COMMAND_PORT if data.contains(&I8042_RESET) => PortEffect::Reset,
            PM1_FIRST..=PM1_LAST => self.power().write(port, data),
            CMOS_INDEX_PORT => {
                if let (Some(cmos), Some(index)) = (&self.cmos, data.first()) {
                    cmos.select(*index);
                }
                PortEffect::None
            }
            RESET_PORT => power::reset_effect(data),
            POWER_OFF_PORT => PortEffect::PowerOff,
            DOORBELL_PORT => {
                let mut value = [0; 4];
                let len = data.len().min(4);
                value[..len].copy_from_slice(&data[..len]);
                PortEffect::Doorbell(u32::from_le_bytes(value))
            }
            _ => PortEffect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::power::tests::loose;
    use crate::devices::serial::tests::port_with_output;

    #[test]
    fn ports_answer_as_documented() {
        let (serial, output) = port_with_output();
        let ports = Ports::new(serial, loose(), PmTimer::stopped(), None);

        assert_eq!(ports.write(SERIAL_PORT, b"hello"), PortEffect::None);
        assert_eq!(output.lock().unwrap().as_slice(), b"hello");
        assert_eq!(ports.write(0x64, &[0xfe]), PortEffect::Reset);
        assert_eq!(ports.write(0x64, &[0xd1]), PortEffect::None);
        assert_eq!(ports.write(POWER_OFF_PORT, &[0]), PortEffect::PowerOff);
        assert_eq!(ports.write(0xcf9, &[6]), PortEffect::Reset);
        assert_eq!(ports.write(0x604, &[0, 0x34]), PortEffect::PowerOff);
        let value = 0x1234_5678u32.to_le_bytes();
        assert_eq!(ports.write(DOORBELL_PORT, &value), PortEffect::Doorbell(0x1234_5678));
        assert_eq!(ports.write(DOORBELL_PORT, &[7]), PortEffect::Doorbell(7));
    }

    #[test]
    fn a_port_without_a_device_reads_as_ones() {
        let ports = Ports::new(port_with_output().0, loose(), PmTimer::stopped(), None);
        let mut data = [0; 4];
        ports.read(0x70, &mut data);
        assert_eq!(data, [0xff; 4]);
        ports.read(0x64, &mut data[..1]);
        assert_eq!(data[0], 0);
    }
}
