//! virtio-mmio (virtio 1.2, 4.2.2): the layout of a device's page of registers, and its interrupt
//! line.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Line;
use super::registers::{Effect, Registers};
use super::transport::{Connector, Transport};
use crate::devices::IrqLine;
use crate::devices::mmio::{SLOTS_MAX, Slot, slots};
use crate::error::{KvmContext, Result};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout (version 1 is the legacy layout).
const VERSION: u32 = 2;
/// Vendor ID, "LGHT"; drivers ignore it.
const VENDOR: u32 = 0x5448_474c;
/// Offset of the configuration space.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// The page of registers of a device; see the module.
#[derive(Debug)]
pub(crate) struct Mmio {
    slot: Slot,
    registers: Registers,
}

impl Mmio {
    /// Lays `registers` out in `slot`.
    pub(super) fn new(slot: Slot, registers: Registers) -> Self {
        Self { slot, registers }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = &self.registers;
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => registers.kind() as u32,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => registers.offered_page(),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                registers.queue().map_or(0, |queue| queue.size_max.into())
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                registers.queue().map_or(0, |queue| queue.ready.into())
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => registers.signals().interrupt_status(),
            register::VIRTIO_MMIO_STATUS => registers.status(),
            // There are no shared memory regions: their length reads as -1.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => registers.signals().config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Effect {
        let registers = &mut self.registers;
        match offset {
            register::VIRTIO_MMIO_STATUS => return registers.write_status(value),
            register::VIRTIO_MMIO_QUEUE_NOTIFY => return registers.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => registers.signals().acknowledge(value),
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.select_device_features(value),
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.select_driver_features(value),
            register::VIRTIO_MMIO_DRIVER_FEATURES => registers.write_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => registers.select_queue(value),
            _ => self.write_queue(offset, value),
        }
        Effect::None
    }

    /// Sets up the selected queue. A queue that is ready can only be set to not ready.
    fn write_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.registers.queue_in_setup() else { return };
        match offset {
            register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            _ if queue.ready => {}
            register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }
}

impl Transport for Mmio {
    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn window(&self) -> Option<Range<u64>> {
        Some(self.slot.address..self.slot.address + self.slot.bytes)
    }

    /// Registers must be read with 32 bits at their own offset; other reads return 0.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.registers.signals().read_config(offset as usize, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset as u32).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    /// Outside the configuration space, anything but 32 bits at a register's own offset is ignored.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.registers.write_config(offset as usize, data);
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) => self.write_register(offset as u32, u32::from_le_bytes(word)),
            Err(_) => Effect::None,
        }
    }
}

/// Replaces the lower half of an address.
pub(super) fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

/// Replaces the upper half of an address.
pub(super) fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

/// Connects devices to their slots: a page of memory and an interrupt line each.
#[derive(Debug)]
pub(super) struct MmioSlots {
    vm: Arc<VmFd>,
    slots: Vec<Slot>,
}

impl MmioSlots {
    /// Returns the slots of a new VM.
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, slots: slots(SLOTS_MAX).collect() }
    }
}

impl Connector for MmioSlots {
    fn connect(
        &self,
        slot: usize,
        registers: Registers,
        kicks: &[EventFd],
    ) -> Result<(Box<dyn Transport>, Arc<dyn Line>)> {
        let slot = self.slots[slot];
        let notify = slot.address + u64::from(register::VIRTIO_MMIO_QUEUE_NOTIFY);
        let notify = IoEventAddress::Mmio(notify);
        for (queue, kick) in (0u32..).zip(kicks) {
            self.vm.register_ioevent(kick, &notify, queue).call("KVM_IOEVENTFD")?;
        }
        let line = IrqLine::new(Arc::clone(&self.vm), slot.gsi);
        Ok((Box::new(Mmio::new(slot, registers)), Arc::new(line)))
    }
}
