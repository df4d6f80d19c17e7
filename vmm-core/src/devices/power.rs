//! ACPI's fixed hardware: the power button, soft-off and the reset register.
//!
//! The registers are those of the ACPI specification 6.5, section 4.8.3: a PM1 event block (status
//! and enable), a PM1 control register, and the reset register at the port that PC chipsets use.
//! The tables that announce them to a kernel are in `boot/acpi.rs`; a guest without those tables
//! does not touch these ports.
//!
//! The button sets its status bit. While a bit is both set and enabled, the SCI is asserted (level
//! triggered), until the guest clears one of the two.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::PortEffect;

/// First port of the PM1 event block: status, then enable, two bytes each.
pub(crate) const PM1_EVENT_PORT: u16 = 0x600;
/// Bytes of the PM1 event block.
pub(crate) const PM1_EVENT_BYTES: u8 = 4;
/// First of the two ports of the PM1 control register.
pub(crate) const PM1_CONTROL_PORT: u16 = PM1_EVENT_PORT + 4;
/// Bytes of the PM1 control register.
pub(crate) const PM1_CONTROL_BYTES: u8 = 2;
/// All ports of the PM1 registers.
pub(crate) const PM1_PORTS: RangeInclusive<u16> = PM1_EVENT_PORT..=PM1_EVENT_PORT + 5;
/// Port of the reset register.
pub(crate) const RESET_PORT: u16 = 0xcf9;
/// Value that triggers a reset when written to the reset register.
pub(crate) const RESET_VALUE: u8 = RESET_CPU | RESET_SYSTEM;
/// Interrupt line of the SCI.
pub(crate) const SCI_GSI: u32 = 9;
/// Sleep type of soft-off (`_S5`).
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const RESET_SYSTEM: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;

/// Bits of the PM1 status and enable registers.
mod event {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const GLOBAL_LOCK: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    pub(super) const RTC: u16 = 1 << 10;
    /// Events that can be enabled. Only the button ever occurs, but a kernel reads back what it
    /// enabled.
    pub(super) const ENABLES: u16 = TIMER | GLOBAL_LOCK | POWER_BUTTON | RTC;
}

/// Bits of the PM1 control register.
mod control {
    pub(super) const SCI_ENABLED: u16 = 1 << 0;
    pub(super) const BUS_MASTER_RELOAD: u16 = 1 << 1;
    pub(super) const SLEEP_TYPE: u16 = 7 << 10;
    pub(super) const SLEEP_TYPE_SHIFT: u16 = 10;
    pub(super) const SLEEP_ENABLE: u16 = 1 << 13;
    /// Bits that are stored on a write; the sleep bit reads as 0.
    pub(super) const KEPT: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;
}

/// Saved state of the power hardware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// PM1 status: the events that occurred.
    pub status: u16,
    /// PM1 enable: the events that raise the SCI.
    pub enable: u16,
    /// PM1 control: only the bits that are stored.
    pub control: u16,
}

/// Whether the guest notices a press of the power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ButtonPress {
    /// The guest's kernel is notified; how it reacts is up to the guest.
    Delivered,
    /// The guest has not enabled the button: it is still booting, has no driver, or runs without
    /// ACPI.
    Ignored,
}

/// The SCI's line into the interrupt controllers. It is set by ioctl, not through an eventfd: the
/// line has its new level when the call returns.
struct SciLine(Option<Arc<VmFd>>);

impl SciLine {
    fn set(&self, asserted: bool) {
        let Some(vm) = &self.0 else { return };
        if let Err(error) = vm.set_irq_line(SCI_GSI, asserted) {
            tracing::error!(%error, "the guest's SCI cannot be set");
        }
    }
}

/// The ACPI power hardware of a guest.
pub(crate) struct PowerHardware {
    state: PowerState,
    sci: SciLine,
}

impl fmt::Debug for PowerHardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerHardware").field("state", &self.state).finish_non_exhaustive()
    }
}

impl PowerHardware {
    /// Creates power hardware that interrupts through the controllers of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { state: PowerState::default(), sci: SciLine(Some(vm)) }
    }

    /// Presses the power button.
    pub(crate) fn press_button(&mut self) -> ButtonPress {
        if self.state.enable & event::POWER_BUTTON == 0 {
            return ButtonPress::Ignored;
        }
        self.state.status |= event::POWER_BUTTON;
        self.drive_sci();
        ButtonPress::Delivered
    }

    /// Handles a guest read of `data.len()` bytes from `port`, one of [`PM1_PORTS`].
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        let registers = self.registers();
        let from = usize::from(port - PM1_EVENT_PORT);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = registers.get(from + index).copied().unwrap_or(0xff);
        }
    }

    /// Handles a guest write of `data` from `port` on, one of [`PM1_PORTS`]; excess bytes are
    /// ignored.
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) -> PortEffect {
        let mut effect = PortEffect::None;
        for (port, byte) in (port..=*PM1_PORTS.end()).zip(data) {
            if self.write_byte(port - PM1_EVENT_PORT, *byte) == PortEffect::PowerOff {
                effect = PortEffect::PowerOff;
            }
        }
        self.drive_sci();
        effect
    }

    /// Returns the state.
    pub(crate) fn save(&self) -> PowerState {
        self.state
    }

    /// Replaces the state. Call [`PowerHardware::drive_sci`] to set the line once the interrupt
    /// controllers have their state.
    pub(crate) fn load(&mut self, state: &PowerState) {
        self.state = PowerState {
            status: state.status & event::POWER_BUTTON,
            enable: state.enable & event::ENABLES,
            control: state.control & control::KEPT,
        };
    }

    /// Sets the SCI to the level that the registers require.
    pub(crate) fn drive_sci(&self) {
        self.sci.set(self.state.status & self.state.enable != 0);
    }

    /// Returns the bytes of all registers, from the first port on.
    fn registers(&self) -> [u8; 6] {
        let [s0, s1] = self.state.status.to_le_bytes();
        let [e0, e1] = self.state.enable.to_le_bytes();
        // ACPI is always enabled: there is no legacy mode to switch from.
        let [c0, c1] = (self.state.control | control::SCI_ENABLED).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    fn write_byte(&mut self, offset: u16, byte: u8) -> PortEffect {
        let shift = 8 * (offset & 1);
        let (value, byte_mask) = (u16::from(byte) << shift, 0xff << shift);
        let merge = |old: u16| old & !byte_mask | value;
        match offset {
            0 | 1 => self.state.status &= !value,
            2 | 3 => self.state.enable = merge(self.state.enable) & event::ENABLES,
            _ => {
                let control = merge(self.state.control);
                self.state.control = control & control::KEPT;
                let sleep_type = (control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT;
                if control & control::SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF) {
                    return PortEffect::PowerOff;
                }
            }
        }
        PortEffect::None
    }
}

/// Returns the effect of a write to [`RESET_PORT`].
pub(crate) fn reset_effect(data: &[u8]) -> PortEffect {
    let resets = data.iter().any(|value| value & RESET_CPU != 0);
    if resets { PortEffect::Reset } else { PortEffect::None }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const STATUS: u16 = PM1_EVENT_PORT;
    const ENABLE: u16 = PM1_EVENT_PORT + 2;
    const BUTTON: [u8; 2] = event::POWER_BUTTON.to_le_bytes();

    /// Power hardware whose SCI is connected to nothing.
    pub(crate) fn loose() -> PowerHardware {
        PowerHardware { state: PowerState::default(), sci: SciLine(None) }
    }

    fn word(power: &PowerHardware, port: u16) -> u16 {
        let mut data = [0; 2];
        power.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn a_button_without_a_listening_driver_is_not_pressed() {
        let mut power = loose();
        assert_eq!(power.press_button(), ButtonPress::Ignored);
        power.write(ENABLE, &BUTTON);
        assert_eq!(word(&power, STATUS), 0, "no press is left over from before");
    }

    #[test]
    fn the_button_shows_until_the_guest_clears_it() {
        let mut power = loose();
        power.write(ENABLE, &BUTTON);
        assert_eq!(power.press_button(), ButtonPress::Delivered);
        assert_eq!(word(&power, STATUS), event::POWER_BUTTON);
        power.write(STATUS, &[0xff, 0]);
        assert_eq!(word(&power, STATUS), event::POWER_BUTTON, "another bit was cleared");
        power.write(STATUS, &BUTTON);
        assert_eq!(word(&power, STATUS), 0);
        assert_eq!(word(&power, ENABLE), event::POWER_BUTTON);
    }

    #[test]
    fn enables_read_back_and_bits_that_do_not_exist_do_not() {
        let mut power = loose();
        power.write(ENABLE, &[0xff, 0xff]);
        assert_eq!(word(&power, ENABLE), event::ENABLES);
        power.write(ENABLE + 1, &[0]);
        assert_eq!(word(&power, ENABLE), event::TIMER | event::GLOBAL_LOCK);
    }

    #[test]
    fn soft_off_needs_its_type_and_the_sleep_bit_and_any_width_will_do() {
        let sleep = |sleep_type: u16, go: u16| sleep_type << 10 | go;
        let mut power = loose();
        assert_eq!(word(&power, PM1_CONTROL_PORT), control::SCI_ENABLED);
        for harmless in [sleep(5, 0), sleep(3, control::SLEEP_ENABLE), control::SLEEP_ENABLE] {
            let effect = power.write(PM1_CONTROL_PORT, &harmless.to_le_bytes());
            assert_eq!(effect, PortEffect::None, "{harmless:#x}");
        }
        let off = sleep(5, control::SLEEP_ENABLE).to_le_bytes();
        assert_eq!(power.write(PM1_CONTROL_PORT, &off), PortEffect::PowerOff);
        assert_eq!(power.write(PM1_CONTROL_PORT + 1, &off[1..]), PortEffect::PowerOff);
        assert_eq!(word(&power, PM1_CONTROL_PORT) & control::SLEEP_ENABLE, 0);
    }

    #[test]
    fn accesses_beyond_the_registers_are_ignored() {
        let mut power = loose();
        assert_eq!(power.write(PM1_CONTROL_PORT + 1, &[0, 0xff, 0xff]), PortEffect::None);
        let mut data = [0; 4];
        power.read(PM1_CONTROL_PORT + 1, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_state_from_elsewhere_is_cut_to_what_exists() {
        let mut power = loose();
        power.load(&PowerState { status: !0, enable: !0, control: !0 });
        let saved = power.save();
        assert_eq!((saved.status, saved.enable), (event::POWER_BUTTON, event::ENABLES));
        assert_eq!(saved.control & control::SLEEP_ENABLE, 0);
    }

    #[test]
    fn the_reset_register_resets_with_its_cpu_bit() {
        assert_eq!(reset_effect(&[RESET_VALUE]), PortEffect::Reset);
        assert_eq!(reset_effect(&[RESET_SYSTEM]), PortEffect::None);
    }
}
