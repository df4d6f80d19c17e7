//! What can go wrong with a device, worded for the person who has to put it right.

use std::io;
use std::path::PathBuf;

/// Failure to create, to save or to run a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The list of devices, or one of them, is not possible.
    #[error("{0}")]
    Config(String),
    /// A device's thread or its file descriptors could not be made.
    #[error("cannot start the {device}: {cause}")]
    Start {
        /// The device.
        device: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// A device's thread has ended although the VM lives.
    #[error("the thread of the {device} has ended; stop this guest")]
    ThreadGone {
        /// The device.
        device: &'static str,
    },
    /// A balloon was asked for something, of a guest that has none.
    #[error("this guest has no balloon")]
    NoBalloon,
    /// A guest can not have so much memory, or so little.
    #[error(
        "a balloon leaves the guest between {} MiB and its {} MiB, not {bytes} bytes",
        min >> 20, max >> 20
    )]
    BalloonTarget {
        /// What was asked for.
        bytes: u64,
        /// The least.
        min: u64,
        /// The most: all that the guest has.
        max: u64,
    },
    /// A disk could not be opened, or not as it must be.
    #[error("cannot use disk {}: {cause}", path.display())]
    Disk {
        /// The file or block device.
        path: PathBuf,
        /// The system's answer, or what is wrong.
        cause: io::Error,
    },
    /// A disk has another size than the guest knows.
    #[error(
        "disk {} has {found} bytes here, the guest knows {expected}: give it the same disk",
        path.display()
    )]
    DiskSize {
        /// The file or block device.
        path: PathBuf,
        /// Bytes found.
        found: u64,
        /// Bytes that the guest knows.
        expected: u64,
    },
    /// A device does not take its state.
    #[error("cannot load device state: {0}")]
    State(String),
    /// The disk's content has moved to another host with its guest.
    #[error(
        "disk {} is old: its content has moved to {where_to} with its guest; when the guest is there, remove the file; to use it \
         all the same, `setfattr -x {attribute} {}` (Debian's package attr)",
        path.display(), path.display(), attribute = super::block::DEPARTED_ATTRIBUTE
    )]
    DiskDeparted {
        /// The file.
        path: PathBuf,
        /// The host, as its user wrote it, and the migration.
        where_to: String,
    },
    /// The disk at the guest's path is not the guest's.
    #[error(
        "disk {} is not the one that the guest has at the source (or its file system is mounted with strictatime): share that disk \
         between the hosts, or use --copy-disks",
        path.display()
    )]
    OtherDisk {
        /// The file or block device.
        path: PathBuf,
    },
    /// There is no evidence that both hosts have the same disk.
    #[error(
        "cannot verify that disk {} is the same on both hosts: use --copy-disks, or --unsafe if you are sure",
        path.display()
    )]
    UnprovenDisk {
        /// The file or block device.
        path: PathBuf,
    },
    /// The disk was written since the guest was saved, or gave it up.
    #[error(
        "disk {} was written since the guest last had it, whose memory does not fit it any more: boot the guest from it with \
         `lighter run`, put the disk of that time back, or give --unsafe if its content is the same",
        path.display()
    )]
    DiskWritten {
        /// The file or block device.
        path: PathBuf,
    },
    /// Nobody can tell whether the disk was written since the guest was saved.
    #[error(
        "cannot tell whether disk {} was written since the guest was saved: give --unsafe if you are sure that it was not",
        path.display()
    )]
    DiskUnsealed {
        /// The file or block device.
        path: PathBuf,
    },
    /// The socket by which programs reach a guest could not be made.
    #[error("cannot listen at {} for those who look for the guest: {cause}", path.display())]
    Vsock {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Somebody else uses the disk.
    #[error(
        "disk {} is in use by another guest or program; stop that one first, or share the disk with ro on both sides",
        path.display()
    )]
    DiskInUse {
        /// The file or block device.
        path: PathBuf,
    },
    /// A tap or a bridge could not be used.
    #[error("cannot use network interface {interface}: {cause}")]
    Network {
        /// The tap, or the bridge.
        interface: String,
        /// The system's answer, or what is wrong.
        cause: io::Error,
    },
    /// A disk that is to arrive would take the place of a file.
    #[error(
        "disk {} is there already: move it away, give the arriving one another place, or let it be replaced",
        path.display()
    )]
    DiskExists {
        /// The file.
        path: PathBuf,
    },
    /// What the guest wrote could not be made durable.
    #[error("cannot write disk {} back before the state is saved: {cause}", path.display())]
    Flush {
        /// The file or block device.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}
