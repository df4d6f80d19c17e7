//! Commands that the driver sends on the control queue (virtio 1.2, 5.1.6.5).
//!
//! The guest gets all frames that arrive at its tap, so its receive filters are accepted and have
//! no effect: the driver must filter frames anyway. The MAC address cannot be changed: the device
//! would forget the change when the driver goes, and the network with each migration.

use virtio_bindings::virtio_net as net;

use crate::memory::RamMap;
use crate::virtio::queue::{Chain, QueueError};

/// Bytes of a command that are read; no known command is longer, except for address tables.
const BYTES_MAX: u64 = 16;
/// Bytes of the answer.
pub(super) const ANSWER_BYTES: u32 = 1;

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To know that the driver has announced the guest.
    Announced,
    /// To use this number of pairs of queues.
    Pairs(u16),
    /// Nothing that needs an action.
    Nothing,
    /// Something unknown or malformed.
    Unknown,
}

/// Reads a command.
///
/// # Errors
/// If its buffers are not in guest memory.
pub(super) fn read(chain: &mut Chain, memory: &RamMap) -> Result<Wish, QueueError> {
    let len = chain.readable.bytes().min(BYTES_MAX);
    let mut bytes = [0; BYTES_MAX as usize];
    let bytes = &mut bytes[..len as usize];
    let command = chain.readable.take_front(len).ok_or(QueueError::Buffer)?;
    command.read(memory, bytes).map_err(|_| QueueError::Buffer)?;
    Ok(understand(bytes))
}

/// Writes whether the command was carried out.
///
/// # Errors
/// If there is no space for the answer.
pub(super) fn answer(chain: &mut Chain, memory: &RamMap, is_done: bool) -> Result<(), QueueError> {
    let answer = if is_done { net::VIRTIO_NET_OK } else { net::VIRTIO_NET_ERR };
    let place = chain.writable.take_front(ANSWER_BYTES.into()).ok_or(QueueError::Request)?;
    place.write(memory, &[answer as u8]).map_err(|_| QueueError::Buffer)
}

fn understand(bytes: &[u8]) -> Wish {
    let [class, command, data @ ..] = bytes else { return Wish::Unknown };
    match (u32::from(*class), u32::from(*command)) {
        (
            net::VIRTIO_NET_CTRL_RX,
            net::VIRTIO_NET_CTRL_RX_PROMISC | net::VIRTIO_NET_CTRL_RX_ALLMULTI,
        ) if matches!(data, [0 | 1]) => Wish::Nothing,
        // Two tables, each after its length; the addresses are ignored.
        (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET) if data.len() >= 8 => {
            Wish::Nothing
        }
        (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Wish::Announced,
        (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => match *data {
            [low, high] => Wish::Pairs(u16::from_le_bytes([low, high])),
            _ => Wish::Unknown,
        },
        _ => Wish::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_by_class_and_number() {
        assert_eq!(understand(&[0, 0, 1]), Wish::Nothing);
        assert_eq!(understand(&[0, 1, 0]), Wish::Nothing);
        assert_eq!(understand(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Wish::Nothing);
        assert_eq!(understand(&[3, 0]), Wish::Announced);
        assert_eq!(understand(&[4, 0, 2, 1]), Wish::Pairs(0x102));
    }

    #[test]
    fn the_address_stays_and_nonsense_is_refused() {
        let set_address = [1, 1, 0x52, 0x54, 0, 1, 2, 3];
        for bytes in [
            &set_address[..],
            &[],
            &[0],
            &[0, 0],
            &[0, 0, 2],
            &[1, 0, 0],
            &[4, 0, 1],
            &[4, 0, 1, 0, 0],
            &[4, 1, 1, 0],
            &[255; 16],
        ] {
            assert_eq!(understand(bytes), Wish::Unknown, "{bytes:?}");
        }
    }
}
