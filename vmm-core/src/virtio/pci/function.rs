//! A device as a PCI function: accesses to its configuration space and to its BAR.

use std::ops::Range;
use std::sync::Arc;

use super::common_config;
use super::layout::{
    BAR_BYTES, COMMON, DEVICE, ISR, Layout, NOTIFY, NOTIFY_BYTES, PENDING, TABLE, layout,
};
use super::messages::Messages;
use super::notifications::Notifications;
use super::state::FunctionState;
use crate::pci::Msix;
use crate::virtio::registers::{Effect, Registers};
use crate::virtio::transport::Transport;

/// Offsets in the capability through which the BAR is reached (virtio 1.2, 4.1.4.9).
mod access {
    pub(super) const BAR: usize = 4;
    pub(super) const OFFSET: usize = 8;
    pub(super) const LENGTH: usize = 12;
    pub(super) const DATA: usize = 16;
}

/// A device as a PCI function; see the module.
#[derive(Debug)]
pub(in crate::virtio) struct PciFunction {
    layout: Layout,
    registers: Registers,
    messages: Arc<Messages>,
    /// `None` without a VM.
    notifications: Option<Notifications>,
}

impl PciFunction {
    /// Makes the device in slot `slot` a function.
    pub(in crate::virtio) fn new(
        slot: usize,
        registers: Registers,
        messages: Arc<Messages>,
        notifications: Option<Notifications>,
    ) -> Self {
        let layout = layout(slot, registers.kind(), messages.vectors());
        let mut function = Self { layout, registers, messages, notifications };
        function.follow_bar();
        function
    }

    fn follow_bar(&mut self) {
        let bar = self.layout.config.bar().map(u64::from);
        if let Some(notifications) = &mut self.notifications {
            notifications.follow(bar);
        }
    }

    fn control(&self) -> u16 {
        self.layout.config.word(self.layout.msix_control)
    }

    /// Returns the offset in the BAR, and the number of bytes, that the driver accesses through
    /// configuration space; `None` if it has chosen nothing that exists.
    fn chosen(&self) -> Option<(u64, usize)> {
        let field = |at| self.layout.config.double_word(self.layout.access + at);
        let (bar, offset, length) =
            (field(access::BAR) as u8, field(access::OFFSET), field(access::LENGTH));
        let is_access = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let exists = bar == 0 && is_access && offset < BAR_BYTES;
        exists.then_some((offset.into(), length as usize))
    }

    /// Returns whether an access to configuration space touches the data of the BAR.
    fn is_data(&self, offset: usize, bytes: usize) -> bool {
        let data = self.layout.access + access::DATA;
        offset <= data && data < offset.saturating_add(bytes)
    }
}

impl Transport for PciFunction {
    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn window(&self) -> Option<Range<u64>> {
        let start = u64::from(self.layout.config.bar()?);
        Some(start..start + u64::from(BAR_BYTES))
    }

    /// Bytes outside of all parts read as 0.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let offset = offset as usize;
        if COMMON.contains(&offset) {
            let image = common_config::image(&self.registers, &self.messages);
            data.iter_mut().zip(&image[offset..]).for_each(|(byte, own)| *byte = *own);
        } else if ISR.contains(&offset) {
            let status = self.registers.signals().take_interrupt_status();
            data.iter_mut().take(1).for_each(|byte| *byte = status as u8);
        } else if DEVICE.contains(&offset) {
            // First: a change after it is one that the driver has not seen.
            self.registers.signals().config_seen();
            self.registers.signals().read_config(offset - DEVICE.start, data);
        } else if TABLE.contains(&offset) {
            self.messages.read_table(offset - TABLE.start, data);
        } else if PENDING.contains(&offset) {
            self.messages.read_pending(offset - PENDING.start, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let offset = offset as usize;
        if COMMON.contains(&offset) {
            return common_config::write(&mut self.registers, &self.messages, offset, data);
        }
        if DEVICE.contains(&offset) {
            return self.registers.write_config(offset - DEVICE.start, data);
        }
        if NOTIFY.contains(&offset) && offset.is_multiple_of(NOTIFY_BYTES) {
            return self.registers.notify(((offset - NOTIFY.start) / NOTIFY_BYTES) as u32);
        }
        if TABLE.contains(&offset) {
            self.messages.write_table(offset - TABLE.start, data);
        }
        Effect::None
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.layout.config.read(offset, data);
        let at = self.layout.access + access::DATA;
        if let Some((place, bytes)) = self.chosen()
            && self.is_data(offset, data.len())
        {
            let mut read = vec![0; bytes];
            self.read(place, &mut read);
            data[at - offset..].iter_mut().zip(read).for_each(|(byte, own)| *byte = own);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Effect {
        self.layout.config.write(offset, data);
        self.messages.set_control(self.control());
        self.follow_bar();
        match self.chosen() {
            Some((place, bytes)) if self.is_data(offset, data.len()) => {
                let mut written = vec![0; bytes];
                self.layout.config.read(self.layout.access + access::DATA, &mut written);
                self.write(place, &written)
            }
            _ => Effect::None,
        }
    }

    fn unmap(&mut self) {
        self.layout.config.take_bar();
        self.follow_bar();
        let control = self.control() & !Msix::control_bits();
        self.layout.config.set(self.layout.msix_control, &control.to_le_bytes());
        self.messages.reset();
    }

    fn save(&self) -> Option<FunctionState> {
        let config = self.layout.config.save();
        Some(FunctionState { config, interrupts: self.messages.save() })
    }

    fn load(&mut self, state: &FunctionState) -> Result<(), String> {
        self.layout.config.load(&state.config)?;
        self.messages.load(&state.interrupts, self.control())?;
        self.follow_bar();
        Ok(())
    }
}
