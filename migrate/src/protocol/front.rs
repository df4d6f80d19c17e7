//! The messages between a source and the destination's node: before the guest's own process takes
//! over, and after the source has lost that process.

// Only an address: this module opens no socket.
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Decision, DestinationMessage, MigrationId, Offer, Token};
use crate::guest::{GuestDescription, Refusal};
use crate::text::PeerText;

/// A request to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontRequest {
    /// Asks for a process that receives this guest.
    Admit {
        /// The migration about to start.
        migration: MigrationId,
        /// Versions and features of the source.
        offer: Offer,
        /// Description of the guest.
        guest: GuestDescription,
    },
    /// Reports the decision about a migration whose process cannot be reached directly.
    Resolve {
        /// Id of the migration that was decided.
        migration: MigrationId,
        /// Proof that the node admitted the sender.
        token: Token,
        /// The decision in the source's record.
        decision: Decision,
    },
    /// Asks whether the host has a guest with this identity, or else one with this name.
    Find {
        /// The guest's identity.
        uuid: Uuid,
        /// Its name on the asking host.
        name: PeerText,
    },
    /// Asks as `Find` does, and also where the guest has gone since a migration between the two
    /// hosts. Earlier versions do not know this request: they are asked `Find`.
    Trace {
        /// The guest's identity.
        uuid: Uuid,
        /// Its name on the asking host.
        name: PeerText,
        /// The last migration that the asking host knows of; earlier ones do not count.
        migration: MigrationId,
    },
    /// Asks which guests of the host write a disk, or are about to. Earlier versions do not know
    /// this request.
    DiskUsers {
        /// The disk, which the asking host is about to give to a guest.
        disk: SoughtDisk,
    },
    /// Asks which of these files the host has: a guest that is about to be sent there boots from
    /// them when it resets. Earlier versions do not know this request.
    BootFiles {
        /// The files; the answer is about the first ones if there are more than any guest has.
        files: Vec<BootFile>,
    },
    /// Asks the node to read and discard what follows on this stream, to measure the path. Earlier
    /// versions do not know this request.
    Sink,
    /// Asks whether the node would attach a device of its host to a guest from another host.
    /// Earlier versions do not know this request.
    IsAttachable {
        /// The device's PCI address there.
        device: PeerText,
    },
    /// Asks the node to attach such a device to a guest that has arrived there. Earlier versions do
    /// not know this request.
    AttachDevice {
        /// The migration by which the guest has arrived.
        migration: MigrationId,
        /// Proof that the node admitted the sender.
        token: Token,
        /// The device's PCI address there.
        device: PeerText,
    },
}

/// A file from which a guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Its path on every host, as bytes.
    pub path: Vec<u8>,
    /// XXH3 of its content, 128 bits.
    pub digest: u128,
}

/// A disk about which a host asks another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoughtDisk {
    /// Its path on the asking host, without links.
    pub path: PeerText,
    /// What identifies it.
    pub features: DiskFeatures,
}

/// What identifies a disk on every host that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFeatures {
    /// A file.
    File {
        /// Inode number in the file system.
        inode: u64,
        /// Creation time in nanoseconds since 1970; `None` if the file system does not record it.
        born_unix_ns: Option<u64>,
    },
    /// A block device.
    Device {
        /// Its names, each after its kind and a space.
        names: Vec<String>,
        /// Size in bytes.
        bytes: u64,
    },
}

/// A guest of the answering host that writes a disk, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUser {
    /// Its identity, the same on every host.
    pub uuid: Uuid,
    /// Its name on that host.
    pub name: PeerText,
    /// How it uses the disk: completes the sentence "host-b has web-1, which ...".
    pub how: PeerText,
}

/// A guest that the answering host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundGuest {
    /// Its identity, the same on every host.
    pub uuid: Uuid,
    /// Its name on that host.
    pub name: PeerText,
    /// Its state, in a word.
    pub state: PeerText,
    /// Whether that host owns it: it runs there, or would unless paused by its user. If not, its
    /// host still waits to hear which side owns it.
    pub is_owned: bool,
}

impl FoundGuest {
    /// The state of a guest that ran there and has ended.
    pub const ENDED: &str = "ended there";
    /// Prefix of the state of a guest that ran there and has moved on; the destination follows.
    pub const MOVED: &str = "moved to ";
    /// Prefix of the state of a guest that ran there and was being moved on, if that host cannot
    /// tell whether it has arrived; the destination follows.
    pub const ON_ITS_WAY: &str = "on its way to ";

    /// Returns whether the guest has left or ended; an earlier copy of it is then out of date.
    pub fn is_past(&self) -> bool {
        self.state.as_str() == Self::ENDED || self.destination().is_some() || self.is_on_its_way()
    }

    /// Returns whether that host cannot tell if the guest has arrived at its new host.
    pub fn is_on_its_way(&self) -> bool {
        self.state.as_str().starts_with(Self::ON_ITS_WAY)
    }

    /// Returns where it has moved on to, as the user there named it (`HOST:PORT`).
    pub fn destination(&self) -> Option<&str> {
        self.state.as_str().strip_prefix(Self::MOVED)
    }
}

/// The next host of a guest that has left a host, or is leaving it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    /// Node of the next host, as the user named it (`HOST:PORT`).
    pub destination: PeerText,
    /// Name that the node's certificate must carry.
    pub server_name: PeerText,
    /// The node's address.
    pub node_address: SocketAddr,
    /// The migration that moved the guest there.
    pub migration: MigrationId,
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontReply {
    /// A process is waiting for the guest.
    Admitted {
        /// UDP port of that process, at the node's address.
        port: u16,
        /// Secret that each connection to it must show.
        token: Token,
    },
    /// The request is refused, with the reason.
    Refused(Refusal),
    /// Answer to `Resolve`, from the record on disk; see [`crate::resolve::answer_for_dead`].
    Resolved(DestinationMessage),
    /// Answer to `Resolve`: the process is alive and must be asked itself.
    AskProcess {
        /// UDP port of that process.
        port: u16,
    },
    /// Answer to `Find`.
    Found(Option<FoundGuest>),
    /// Answer to `Trace`.
    Traced {
        /// The guest, or its last known state there.
        guest: Option<FoundGuest>,
        /// The host to ask next if the guest has moved on, or may have.
        onward: Option<Onward>,
    },
    /// Answer to `DiskUsers`.
    DiskUsers(Vec<DiskUser>),
    /// Answer to `BootFiles`: for each file, whether it is there with that content.
    BootFiles(Vec<bool>),
    /// Answer to `Sink`: the node reads what follows.
    Sink {
        /// Most bytes that it reads; then it closes the connection.
        bytes_max: u64,
    },
    /// Answer to `IsAttachable`: the node would.
    Attachable,
    /// Answer to `AttachDevice`: the guest has the device.
    Attached(AttachedThere),
}

/// A device of the answering host that a guest has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedThere {
    /// Where the guest finds it: its address on the guest's PCI bus.
    pub address: PeerText,
    /// Whether the guest has noticed it by now.
    pub is_noticed: bool,
}
