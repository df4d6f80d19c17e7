//! A packet's header: `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6), always little-endian.

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// The address of the host.
pub(super) const HOST_CID: u64 = 2;
/// The one type of socket that this device knows (`VIRTIO_VSOCK_TYPE_STREAM`).
pub(super) const STREAM: u16 = 1;
/// The sender receives no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender sends no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one at once.
    Reset,
    /// Says what the sender does no more.
    Shutdown,
    /// Carries data.
    Data,
    /// Says how much room the sender has.
    CreditUpdate,
    /// Asks how much room the receiver has.
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

/// The two ends of a connection: there is one at most between the same two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The host's.
    pub(super) host: u32,
    /// The guest's.
    pub(super) guest: u32,
}

/// A header from the guest, as far as it was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Where it comes from and goes to.
    pub(super) source_cid: u64,
    /// Where it goes to.
    pub(super) destination_cid: u64,
    /// Between which ports.
    pub(super) ports: Ports,
    /// Bytes of data that follow, by the header.
    pub(super) bytes: u32,
    /// The type of socket; see [`STREAM`].
    pub(super) socket_type: u16,
    /// What it is for; `None` for what nobody knows.
    pub(super) op: Option<Op>,
    /// Of [`Op::Shutdown`].
    pub(super) flags: u32,
    /// How much the guest takes at a time.
    pub(super) credit: Credit,
}

/// What one side says of its room for data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Bytes that its buffer holds.
    pub(super) allocated: u32,
    /// Bytes that have left the buffer since the connection began, modulo 2^32.
    pub(super) forwarded: u32,
}

impl Credit {
    /// Bytes that may still be sent to this side after `sent`. A side that talks nonsense gets
    /// nothing.
    pub(super) fn left(self, sent: u32) -> u32 {
        self.allocated.saturating_sub(sent.wrapping_sub(self.forwarded))
    }
}

impl Received {
    /// Reads a header.
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
    /// Between which ports.
    pub(super) ports: Ports,
    /// The type of socket: that of the packet that is answered.
    pub(super) socket_type: u16,
    /// What it is for.
    pub(super) op: Op,
    /// Of [`Op::Shutdown`].
    pub(super) flags: u32,
    /// How much the host takes at a time.
    pub(super) credit: Credit,
}

impl Header {
    /// A packet that ends what is between `ports`.
    pub(super) fn reset(ports: Ports, socket_type: u16) -> Self {
        Self { ports, socket_type, op: Op::Reset, flags: 0, credit: Credit::default() }
    }

    /// The header's bytes, for a guest of this address and with so much data behind it.
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
        // What the host sends comes from the host's port, what it receives from the guest's.
        assert_eq!(read.ports, Ports { guest: 0x0403_0201, host: 7 });
        assert_eq!((read.op, read.flags, read.credit), (Some(Op::Data), 3, header.credit));
    }

    #[test]
    fn what_nobody_knows_is_no_op() {
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
