//! A packet's header: `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6), always little-endian.

/// Size of a header in bytes.
pub(super) const HEADER_BYTES: usize = 44;
/// Address (CID) of the host.
pub(super) const HOST_CID: u64 = 2;
/// The only socket type that this device supports (`VIRTIO_VSOCK_TYPE_STREAM`).
pub(super) const STREAM: u16 = 1;
/// The sender will receive no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender will send no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// The sender will neither receive nor send.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Purpose of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Refuses a connection, or ends it immediately.
    Reset,
    /// Announces that the sender stops sending or receiving.
    Shutdown,
    /// Carries bytes of a connection.
    Data,
    /// Announces the sender's space.
    CreditUpdate,
    /// Asks for the receiver's space.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The two ports of a connection, which identify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The host's port.
    pub(super) host: u32,
    /// The guest's port.
    pub(super) guest: u32,
}

/// A decoded header from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// CID of the sender.
    pub(super) source_cid: u64,
    /// CID of the receiver.
    pub(super) destination_cid: u64,
    /// Ports of the connection.
    pub(super) ports: Ports,
    /// Size of the data that follows, as the header claims, in bytes.
    pub(super) bytes: u32,
    /// The socket type; see [`STREAM`].
    pub(super) socket_type: u16,
    /// Purpose of the packet; `None` if it is unknown.
    pub(super) op: Option<Op>,
    /// Flags of [`Op::Shutdown`].
    pub(super) flags: u32,
    /// The guest's space for data.
    pub(super) credit: Credit,
}

/// The space for data that one side announces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Size of its buffer in bytes.
    pub(super) allocated: u32,
    /// Bytes that have left the buffer since the connection began, modulo 2^32.
    pub(super) forwarded: u32,
}

impl Credit {
    /// Returns how many more bytes may be sent to this side after `sent`. Inconsistent values give
    /// 0.
    pub(super) fn left(self, sent: u32) -> u32 {
        self.allocated.saturating_sub(sent.wrapping_sub(self.forwarded))
    }
}

impl Received {
    /// Decodes a header.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            source_cid: long(0),
            destination_cid: long(8),
            ports: Ports { guest: word(16), host: word(20) },
            bytes: word(24),
            socket_type: half(28),
            op: Op::from_number(half(30)),
            flags: word(32),
            credit: Credit { allocated: word(36), forwarded: word(40) },
        }
    }
}

/// A header to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Ports of the connection.
    pub(super) ports: Ports,
    /// The socket type: that of the packet that is answered.
    pub(super) socket_type: u16,
    /// Purpose of the packet.
    pub(super) op: Op,
    /// Flags of [`Op::Shutdown`].
    pub(super) flags: u32,
    /// The host's space for data.
    pub(super) credit: Credit,
}

impl Header {
    /// Returns a packet that ends the connection between `ports`.
    pub(super) fn reset(ports: Ports, socket_type: u16) -> Self {
        Self { ports, socket_type, op: Op::Reset, flags: 0, credit: Credit::default() }
    }

    /// Encodes the header for a guest with this address, with `data_bytes` of data behind it.
    pub(super) fn to_bytes(self, guest_cid: u64, data_bytes: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &HOST_CID.to_le_bytes());
        put(8, &guest_cid.to_le_bytes());
        put(16, &self.ports.host.to_le_bytes());
        put(20, &self.ports.guest.to_le_bytes());
        put(24, &data_bytes.to_le_bytes());
        put(28, &self.socket_type.to_le_bytes());
        put(30, &(self.op as u16 + 1).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.credit.allocated.to_le_bytes());
        put(40, &self.credit.forwarded.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_says() {
        let header = Header {
            ports: Ports { host: 0x0403_0201, guest: 7 },
            socket_type: STREAM,
            op: Op::Data,
            flags: 3,
            credit: Credit { allocated: 0x1000, forwarded: 9 },
        };
        let bytes = header.to_bytes(5, 11);
        let expected: [u8; HEADER_BYTES] = [
            2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 7, 0, 0, 0, 11, 0, 0, 0, 1,
            0, 5, 0, 3, 0, 0, 0, 0, 0x10, 0, 0, 9, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        let read = Received::from_bytes(&bytes);
        assert_eq!((read.source_cid, read.destination_cid, read.bytes), (2, 5, 11));
        // Packets of the host come from the host's port; packets of the guest come from the
        // guest's.
        assert_eq!(read.ports, Ports { guest: 0x0403_0201, host: 7 });
        assert_eq!((read.op, read.flags, read.credit), (Some(Op::Data), 3, header.credit));
    }

    #[test]
    fn unknown_numbers_are_not_operations() {
        for (number, op) in
            [(0, None), (1, Some(Op::Request)), (7, Some(Op::CreditRequest)), (8, None)]
        {
            assert_eq!(Op::from_number(number), op);
        }
    }

    #[test]
    fn credit_counts_across_the_wrap_and_nonsense_gives_none() {
        let credit = Credit { allocated: 100, forwarded: u32::MAX - 9 };
        assert_eq!(credit.left(u32::MAX - 9), 100);
        assert_eq!(credit.left(20), 70);
        assert_eq!(Credit { allocated: 100, forwarded: 50 }.left(0), 0);
    }
}
