//! A lying peer's changes to a device's state.

use arbitrary::Arbitrary;
use vmm_core::virtio::DeviceState;

/// A list of changes, applied in order.
#[derive(Debug, Arbitrary)]
pub(super) struct Damage(Vec<Change>);

#[derive(Debug, Arbitrary)]
enum Change {
    Status(u32),
    Features(u64),
    Offered(u64),
    Selected(u32),
    NeedsReset(bool),
    Interrupts(u32),
    /// Size, readiness, and addresses of a queue.
    Queue {
        queue: u8,
        size: u16,
        ready: bool,
        places: [u32; 3],
    },
    QueueCount(u8),
    /// The positions that a queue has reached.
    Position {
        queue: u8,
        available: u16,
        used: u16,
    },
    NoPosition(u8),
    Own(Vec<u8>),
    OwnByte {
        at: u8,
        value: u8,
    },
}

impl Damage {
    pub(super) fn apply(&self, state: &mut DeviceState) {
        self.0.iter().for_each(|change| change.apply(state));
    }
}

impl Change {
    fn apply(&self, state: &mut DeviceState) {
        let DeviceState { transport, backend } = state;
        match self {
            Self::Status(status) => transport.status = *status,
            Self::Features(features) => transport.driver_features = *features,
            Self::Offered(features) => transport.offered = *features,
            Self::Selected(queue) => transport.selected_queue = *queue,
            Self::NeedsReset(needs) => transport.needs_reset = *needs,
            Self::Interrupts(bits) => transport.interrupt_status = *bits,
            Self::QueueCount(count) => {
                let spare = transport.queues.first().copied();
                if let Some(spare) = spare {
                    transport.queues.resize((count % 20).into(), spare);
                }
                backend.positions.resize((count % 20).into(), None);
            }
            Self::Queue { queue, size, ready, places } => {
                if let Some(queue) = at(&mut transport.queues, *queue) {
                    (queue.size, queue.ready) = (*size, *ready);
                    let [descriptors, available, used] = places.map(u64::from);
                    (queue.descriptors, queue.available, queue.used) =
                        (descriptors, available, used);
                }
            }
            Self::Position { queue, available, used } => {
                if let Some(Some(position)) = at(&mut backend.positions, *queue) {
                    position.next_available = *available;
                    position.next_used = *used;
                }
            }
            Self::NoPosition(queue) => {
                if let Some(position) = at(&mut backend.positions, *queue) {
                    *position = None;
                }
            }
            Self::Own(bytes) => backend.device.clone_from(bytes),
            Self::OwnByte { at: place, value } => {
                if let Some(byte) = at(&mut backend.device, *place) {
                    *byte = *value;
                }
            }
        }
    }
}

fn at<T>(all: &mut [T], index: u8) -> Option<&mut T> {
    let len = all.len().max(1);
    all.get_mut(usize::from(index) % len)
}
