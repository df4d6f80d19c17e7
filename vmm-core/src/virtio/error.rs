//! Device errors, worded for the person who has to fix the problem.

use std::io;
use std::path::PathBuf;

use crate::vfio::HostDeviceError;

/// Failure to create, save or run a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The list of devices, or one device's configuration, is invalid.
    #[error("{0}")]
    Config(String),
    /// A device's thread or its file descriptors could not be created.
    #[error("cannot start the {device}: {cause}")]
    Start {
        /// Name of the device.
        device: &'static str,
        /// Error of the system call.
        cause: io::Error,
    },
    /// A device's thread has ended although the VM still runs.
    #[error("the thread of the {device} has ended; stop this guest")]
    ThreadGone {
        /// Name of the device.
        device: &'static str,
    },
    /// A balloon operation was requested of a guest without a balloon.
    #[error("this guest has no balloon")]
    NoBalloon,
    /// The guest cannot have this much memory, or this little.
    #[error(
        "a balloon leaves the guest between {} MiB and its {} MiB, not {bytes} bytes",
        min >> 20, max >> 20
    )]
    BalloonTarget {
        /// Requested memory of the guest, in bytes.
        bytes: u64,
        /// Smallest possible value, in bytes.
        min: u64,
        /// Largest possible value, in bytes: all of the guest's memory.
        max: u64,
    },
    /// A disk could not be opened in the required way.
    #[error("cannot use disk {}: {cause}", path.display())]
    Disk {
        /// The file or block device.
        path: PathBuf,
        /// Error of the system call, or what is wrong with the disk.
        cause: io::Error,
    },
    /// A disk operation was requested of a guest without that disk.
    #[error("this guest has no such disk")]
    NoDisk,
    /// A disk cannot have the size that was requested, or did not get it.
    #[error("cannot resize disk {}: {cause}", path.display())]
    Resize {
        /// The file or block device.
        path: PathBuf,
        /// Error of the system call, or what is wrong with the size
        /// ([`io::ErrorKind::InvalidInput`]).
        cause: io::Error,
    },
    /// A disk has a different size from the one the guest knows.
    #[error(
        "disk {} has {found} bytes here, the guest knows {expected}: give it the same disk",
        path.display()
    )]
    DiskSize {
        /// The file or block device.
        path: PathBuf,
        /// Size found, in bytes.
        found: u64,
        /// Size that the guest knows, in bytes.
        expected: u64,
    },
    /// A device was to come or go while its guest runs, which is not possible.
    #[error("devices come and go only on a PCI bus: start the guest with `--machine pci`")]
    NoHotPlug,
    /// A device of the host cannot be given to a guest.
    #[error(transparent)]
    HostDevice(#[from] HostDeviceError),
    /// The guest has devices of the host, which cannot be saved.
    #[error(
        "the guest has devices of the host ({0}), whose state cannot be saved: detach them first"
    )]
    HostDevices(String),
    /// A device rejected its saved state.
    #[error("cannot load device state: {0}")]
    State(String),
    /// The disk's content has moved to another host together with its guest.
    #[error(
        "disk {} is old: its content has moved to {where_to} with its guest; when the guest is there, remove the file; to use it \
         all the same, `setfattr -x {attribute} {}` (Debian's package attr)",
        path.display(), path.display(), attribute = super::block::DEPARTED_ATTRIBUTE
    )]
    DiskDeparted {
        /// Path of the old disk.
        path: PathBuf,
        /// The destination host as the user typed it, and the migration.
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
    /// The block device that a copied disk would overwrite is one of the guest's disks.
    #[error(
        "disk {} is a device that the guest uses at the source, and a copy would destroy its content: share it (without --copy-disks, or \
         with --copy-disk for the guest's other disks)",
        path.display()
    )]
    CopyOntoItself {
        /// The block device.
        path: PathBuf,
    },
    /// The block device that a copied disk would overwrite may be one of the guest's disks.
    #[error(
        "cannot verify that disk {} is none of the devices that the guest uses at the source, whose content a copy would destroy: give \
         --unsafe if you are sure",
        path.display()
    )]
    MayBeItself {
        /// The block device.
        path: PathBuf,
    },
    /// The disk was written since the guest was saved or released it.
    #[error(
        "disk {} was written since the guest last had it, whose memory does not fit it any more: boot the guest from it with \
         `lighter run`, put the disk of that time back, or give --unsafe if its content is the same",
        path.display()
    )]
    DiskWritten {
        /// The file or block device.
        path: PathBuf,
    },
    /// It cannot be determined whether the disk was written since the guest was saved.
    #[error(
        "cannot tell whether disk {} was written since the guest was saved: give --unsafe if you are sure that it was not",
        path.display()
    )]
    DiskUnsealed {
        /// The file or block device.
        path: PathBuf,
    },
    /// The socket at which programs reach the guest could not be created.
    #[error("cannot listen at {} for programs that connect to the guest: {cause}", path.display())]
    Vsock {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the system call.
        cause: io::Error,
    },
    /// Another guest or program uses the disk.
    #[error(
        "disk {} is in use by another guest or program; stop that one first, or share the disk with ro on both sides",
        path.display()
    )]
    DiskInUse {
        /// The file or block device.
        path: PathBuf,
    },
    /// Another guest or program uses a file or a device that the disk depends on: what is behind a
    /// loop device, or an image's backing file.
    #[error(
        "disk {} uses {}, which is in use by another guest or program; stop that one first, or let both only read it (ro)",
        path.display(), behind.display()
    )]
    BehindDiskInUse {
        /// The disk.
        path: PathBuf,
        /// What it depends on.
        behind: PathBuf,
    },
    /// The host itself uses the block device, or a guest uses it in part or as a part.
    #[error(
        "disk {0} is in use by the host or by a guest: it, one of its partitions or its whole disk is mounted, swap, \
         part of a RAID, LVM or multipath device (`lsblk {0}` shows it), or the disk of a guest that writes it; two \
         writers would destroy its content",
        path.display()
    )]
    DiskOfHost {
        /// The block device.
        path: PathBuf,
    },
    /// A tap or a bridge could not be used.
    #[error("cannot use network interface {interface}: {cause}")]
    Network {
        /// Name of the tap or the bridge.
        interface: String,
        /// Error of the system call, or what is wrong with the interface.
        cause: io::Error,
    },
    /// A disk that is about to arrive would overwrite an existing file.
    #[error(
        "disk {} exists already on the destination: move it, or migrate with --disk-path HERE=THERE or --replace-disks",
        path.display()
    )]
    DiskExists {
        /// Path of the existing file.
        path: PathBuf,
    },
    /// What the guest wrote could not be made durable.
    #[error("cannot write disk {} back before the state is saved: {cause}", path.display())]
    Flush {
        /// The file or block device.
        path: PathBuf,
        /// Error of the system call.
        cause: io::Error,
    },
}
