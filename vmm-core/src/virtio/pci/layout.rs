//! A function's configuration space, and what is where in its BAR.

use std::ops::Range;

use crate::pci::{self, APERTURE, ConfigSpace, FUNCTIONS_MAX, Identity, Msix};
use crate::virtio::device::DeviceKind;
use crate::virtio::registers::QUEUES_MAX;

/// Vendor ID of virtio devices, and the device ID of the modern device with type 0 (virtio 1.2,
/// 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
/// Modern devices have revision 1.
const REVISION: u8 = 1;

/// Bytes of the BAR, and of all its parts.
pub(super) const BAR_BYTES: u32 = 0x8000;
/// The common configuration.
pub(super) const COMMON: Range<usize> = 0..0x38;
/// The ISR status.
pub(super) const ISR: Range<usize> = 0x1000..0x1001;
/// The device's own configuration.
pub(super) const DEVICE: Range<usize> = 0x2000..0x3000;
/// The notifications of queues.
pub(super) const NOTIFY: Range<usize> = 0x3000..0x3000 + NOTIFY_BYTES * QUEUES_MAX;
/// The MSI-X table.
pub(super) const TABLE: Range<usize> = 0x4000..0x5000;
/// The MSI-X pending bits.
pub(super) const PENDING: Range<usize> = 0x5000..0x5008;
/// Bytes between the notifications of two queues.
pub(super) const NOTIFY_BYTES: usize = 4;

/// Queues for which each device has notifications at least, whether it has the queues or not: a
/// guest that moves here from an earlier release finds them unchanged.
const QUEUES_SHOWN_MIN: usize = 16;

/// Types of virtio's capabilities (virtio 1.2, 4.1.4).
mod capability {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const ACCESS: u8 = 5;
}

const _: () = assert!(
    APERTURE.start + (FUNCTIONS_MAX as u64 + 1) * (BAR_BYTES as u64) <= APERTURE.end,
    "room for the BARs of all functions"
);

/// A function's configuration space after power-on, and where some of its registers are.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) config: ConfigSpace,
    /// Offset of the message control register of MSI-X.
    pub(super) msix_control: usize,
    /// Offset of the capability through which the BAR is reached (virtio 1.2, 4.1.4.9).
    pub(super) access: usize,
}

/// Lays out the device in slot `slot`, with so many vectors.
pub(super) fn layout(slot: usize, kind: DeviceKind, vectors: usize) -> Layout {
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind as u16,
        revision: REVISION,
        class: class(kind),
    };
    let bar = APERTURE.start as u32 + (slot as u32 + 1) * BAR_BYTES;
    let mut config = ConfigSpace::new(identity).with_bar(bar, BAR_BYTES);
    let mut msix = (vectors as u16 - 1).to_le_bytes().to_vec();
    msix.extend((TABLE.start as u32).to_le_bytes());
    msix.extend((PENDING.start as u32).to_le_bytes());
    let control = Msix::control_bits().to_le_bytes();
    let msix_control = config.add_capability(pci::capability::MSIX, &msix, &control) + 2;
    for (kind, part) in
        [(capability::COMMON, COMMON), (capability::ISR, ISR), (capability::DEVICE, DEVICE)]
    {
        config.add_capability(pci::capability::VENDOR, &virtio(kind, part, &[]), &[]);
    }
    let multiplier = (NOTIFY_BYTES as u32).to_le_bytes();
    let queues = (vectors - 1).max(QUEUES_SHOWN_MIN);
    let notify = NOTIFY.start..NOTIFY.start + NOTIFY_BYTES * queues;
    let notify = virtio(capability::NOTIFY, notify, &multiplier);
    config.add_capability(pci::capability::VENDOR, &notify, &[]);
    // The driver writes where to access the BAR: its number, offset, length, and data.
    let writable = [[0, 0, 0xff, 0].as_slice(), &[0, 0], &[0xff; 12]].concat();
    let access = virtio(capability::ACCESS, 0..0, &[0; 4]);
    let access = config.add_capability(pci::capability::VENDOR, &access, &writable);
    Layout { config, msix_control, access }
}

/// The body of a capability of virtio, which follows the offset of the next one: its length, type,
/// BAR and ID, padding, then offset and length of the part.
fn virtio(kind: u8, part: Range<usize>, more: &[u8]) -> Vec<u8> {
    const HEAD_BYTES: usize = 16;
    let mut body = vec![(HEAD_BYTES + more.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((part.start as u32).to_le_bytes());
    body.extend((part.len() as u32).to_le_bytes());
    body.extend(more);
    body
}

/// The class code: base class, subclass and programming interface.
fn class(kind: DeviceKind) -> [u8; 3] {
    match kind {
        DeviceKind::Net => [0x02, 0x00, 0x00],
        DeviceKind::Block => [0x01, 0x80, 0x00],
        DeviceKind::Vsock => [0x07, 0x80, 0x00],
        DeviceKind::Rng | DeviceKind::Balloon => [0xff, 0x00, 0x00],
    }
}
