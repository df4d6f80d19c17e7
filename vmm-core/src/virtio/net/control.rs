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

/// Outcome of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The driver has announced the guest.
    Announced,
    /// The command succeeded and needs no action.
    Done,
    /// The command is unknown or malformed.
    Refused,
}

/// Reads a command and answers it.
///
/// # Errors
/// If there is no space for the answer.
pub(super) fn serve(mut chain: Chain, memory: &RamMap) -> Result<Wish, QueueError> {
    let len = chain.readable.bytes().min(BYTES_MAX);
    let mut bytes = [0; BYTES_MAX as usize];
    let bytes = &mut bytes[..len as usize];
    let command = chain.readable.take_front(len).ok_or(QueueError::Buffer)?;
    command.read(memory, bytes).map_err(|_| QueueError::Buffer)?;
    let wish = understand(bytes);
    let answer = if wish == Wish::Refused { net::VIRTIO_NET_ERR } else { net::VIRTIO_NET_OK };
    let place = chain.writable.take_front(1).ok_or(QueueError::Request)?;
    place.write(memory, &[answer as u8]).map_err(|_| QueueError::Buffer)?;
    Ok(wish)
}

fn understand(bytes: &[u8]) -> Wish {
    let [class, command, data @ ..] = bytes else { return Wish::Refused };
    match (u32::from(*class), u32::from(*command)) {
        (
            net::VIRTIO_NET_CTRL_RX,
            net::VIRTIO_NET_CTRL_RX_PROMISC | net::VIRTIO_NET_CTRL_RX_ALLMULTI,
        ) if matches!(data, [0 | 1]) => Wish::Done,
        // Two tables, each after its length; the addresses are ignored.
        (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET) if data.len() >= 8 => {
            Wish::Done
        }
        (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Wish::Announced,
        _ => Wish::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_by_class_and_number() {
        assert_eq!(understand(&[0, 0, 1]), Wish::Done);
        assert_eq!(understand(&[0, 1, 0]), Wish::Done);
        assert_eq!(understand(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Wish::Done);
        assert_eq!(understand(&[3, 0]), Wish::Announced);
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
            &[4, 0, 1, 0],
            &[255; 16],
        ] {
            assert_eq!(understand(bytes), Wish::Refused, "{bytes:?}");
        }
    }
}
