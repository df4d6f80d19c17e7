//! The common configuration (virtio 1.2, 4.1.4.3): the device's registers and the vectors of its
//! interrupts.

use super::layout::COMMON;
use super::messages::Messages;
use crate::virtio::mmio::{set_high, set_low};
use crate::virtio::registers::{Effect, Registers};

/// Offsets of the fields.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const CONFIG_VECTOR: usize = 0x10;
    pub(super) const QUEUES: usize = 0x12;
    pub(super) const STATUS: usize = 0x14;
    pub(super) const GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_VECTOR: usize = 0x1a;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
    pub(super) const DESCRIPTORS: usize = 0x20;
    pub(super) const AVAILABLE: usize = 0x28;
    pub(super) const USED: usize = 0x30;
}

/// Returns all fields, of which a driver may read any bytes.
pub(super) fn image(registers: &Registers, messages: &Messages) -> [u8; COMMON.end] {
    let mut image = [0; COMMON.end];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let [device_page, driver_page] = registers.selected_pages();
    put(field::DEVICE_FEATURE_SELECT, &device_page.to_le_bytes());
    put(field::DEVICE_FEATURE, &registers.offered_page().to_le_bytes());
    put(field::DRIVER_FEATURE_SELECT, &driver_page.to_le_bytes());
    put(field::DRIVER_FEATURE, &registers.accepted_page().to_le_bytes());
    put(field::CONFIG_VECTOR, &messages.config_vector().to_le_bytes());
    put(field::QUEUES, &(registers.queues().len() as u16).to_le_bytes());
    put(field::STATUS, &[registers.status() as u8]);
    put(field::GENERATION, &[registers.signals().config_generation() as u8]);
    let selected = registers.selected_queue();
    put(field::QUEUE_SELECT, &(selected as u16).to_le_bytes());
    let Some(queue) = registers.queue() else { return image };
    put(field::QUEUE_SIZE, &queue.size.to_le_bytes());
    put(field::QUEUE_VECTOR, &messages.queue_vector(selected as usize).to_le_bytes());
    put(field::QUEUE_ENABLE, &u16::from(queue.ready).to_le_bytes());
    put(field::QUEUE_NOTIFY_OFFSET, &(selected as u16).to_le_bytes());
    put(field::DESCRIPTORS, &queue.descriptors.to_le_bytes());
    put(field::AVAILABLE, &queue.available.to_le_bytes());
    put(field::USED, &queue.used.to_le_bytes());
    image
}

/// Handles a driver's write. A field is written as a whole; addresses of 64 bits also by halves.
pub(super) fn write(
    registers: &mut Registers,
    messages: &Messages,
    offset: usize,
    data: &[u8],
) -> Effect {
    match *data {
        [status] if offset == field::STATUS => {
            let effect = registers.write_status(status.into());
            if effect == Effect::Reset {
                messages.forget_vectors();
            }
            return effect;
        }
        [b0, b1] => write_16(registers, messages, offset, u16::from_le_bytes([b0, b1])),
        [b0, b1, b2, b3] => write_32(registers, offset, u32::from_le_bytes([b0, b1, b2, b3])),
        [b0, b1, b2, b3, b4, b5, b6, b7] if offset >= field::DESCRIPTORS => {
            write_32(registers, offset, u32::from_le_bytes([b0, b1, b2, b3]));
            write_32(registers, offset + 4, u32::from_le_bytes([b4, b5, b6, b7]));
        }
        _ => {}
    }
    Effect::None
}

fn write_16(registers: &mut Registers, messages: &Messages, offset: usize, value: u16) {
    match offset {
        field::CONFIG_VECTOR => messages.set_config_vector(value),
        field::QUEUE_SELECT => registers.select_queue(value.into()),
        field::QUEUE_VECTOR => {
            messages.set_queue_vector(registers.selected_queue() as usize, value);
        }
        field::QUEUE_SIZE => {
            if let Some(queue) = registers.queue_in_setup().filter(|queue| !queue.ready) {
                queue.set_size(value.into());
            }
        }
        // Only a reset disables a queue.
        field::QUEUE_ENABLE if value == 1 => {
            if let Some(queue) = registers.queue_in_setup() {
                queue.set_ready(true);
            }
        }
        _ => {}
    }
}

fn write_32(registers: &mut Registers, offset: usize, value: u32) {
    match offset {
        field::DEVICE_FEATURE_SELECT => registers.select_device_features(value),
        field::DRIVER_FEATURE_SELECT => registers.select_driver_features(value),
        field::DRIVER_FEATURE => registers.write_features(value),
        _ => write_address(registers, offset, value),
    }
}

/// Writes half of an address of the selected queue.
fn write_address(registers: &mut Registers, offset: usize, value: u32) {
    let Some(queue) = registers.queue_in_setup().filter(|queue| !queue.ready) else { return };
    let address = match offset & !7 {
        field::DESCRIPTORS => &mut queue.descriptors,
        field::AVAILABLE => &mut queue.available,
        field::USED => &mut queue.used,
        _ => return,
    };
    match offset & 7 {
        0 => set_low(address, value),
        4 => set_high(address, value),
        _ => {}
    }
}
