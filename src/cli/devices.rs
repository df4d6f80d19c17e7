//! Arguments of the verbs that attach and detach devices of a running guest.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vmm_core::virtio::net::MacAddress;

use super::JsonFlag;
use super::disk::DiskArg;
use super::host_device::HostDeviceArg;
use super::named_disk::disk_here;
use super::net::NetArg;
use crate::names::GuestName;
use crate::units::parse_duration;

/// `lighter attach-disk`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter attach-disk web-1 /srv/data.qcow2
  lighter attach-disk web-1 /dev/vg0/data,serial=data
  lighter attach-disk web-1 /srv/tools.raw,ro

The guest gets the disk at once, if its machine is `pci`; it keeps it when it is
reset, saved or migrated, until it is detached or the guest ends. A definition
does not change: `lighter define` the guest with the disk to have it at the next
start too.")]
pub(crate) struct AttachDiskArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The disk, a file or block device, with options as for --disk of `lighter run`: ro (also
    /// without it for a file NAME.iso), serial=TEXT, queues=N, cache=writeback|none,
    /// engine=auto|io_uring|sync.
    #[arg(value_name = "PATH[,OPTION...]")]
    pub(crate) disk: DiskArg,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter attach-interface`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter attach-interface web-1 bridge=br1
  lighter attach-interface web-1 tap=tap7,mac=52:54:00:12:34:56

The guest gets the network device at once, if its machine is `pci`; it keeps it
when it is reset, saved or migrated, until it is detached or the guest ends. A
definition does not change.")]
pub(crate) struct AttachInterfaceArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The network device, as --net of `lighter run` has it: bridge=NAME or tap=NAME, or both;
    /// mac=ADDRESS, and with it standby; queues=N.
    #[arg(value_name = "NET")]
    pub(crate) net: NetArg,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter attach-device`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter attach-device web-1 vfio=0000:03:00.0

The guest gets a device of this host: the driver vfio-pci must have it. All of
the guest's memory is then taken from the host and stays where it is: no
balloon, no merging. The guest is neither migrated nor saved until the device is
detached; `lighter migrate --detach-on-migrate` does that on the way.")]
pub(crate) struct AttachDeviceArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The device, by its PCI address as `lspci -D` prints it.
    #[arg(value_name = "vfio=ADDRESS")]
    pub(crate) device: HostDeviceArg,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter detach-device`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter detach-device web-1 vfio=0000:03:00.0

The guest's driver lets go of the device first. A guest that does not eject it
in time keeps it, unless it is about to eject it.")]
pub(crate) struct DetachDeviceArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The device, by its address on this host as `lighter show` prints it.
    #[arg(value_name = "vfio=ADDRESS")]
    pub(crate) device: HostDeviceArg,

    #[command(flatten)]
    pub(crate) wait: DetachWait,
}

/// `lighter detach-disk`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter detach-disk web-1 /srv/data.qcow2
  lighter detach-disk web-1 /srv/data.qcow2 --timeout 2m

Unmount the disk in the guest first: a guest lets go of a disk that it uses, and
then gets errors from it. What it has written is durable when this is done. A
guest that does not eject it in time keeps it, unless it is about to eject it.")]
pub(crate) struct DetachDiskArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The disk, by its path as `lighter show` prints it.
    #[arg(value_name = "DISK", value_parser = disk_here)]
    pub(crate) disk: PathBuf,

    #[command(flatten)]
    pub(crate) wait: DetachWait,
}

/// `lighter detach-interface`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter detach-interface web-1 52:54:00:12:34:56

A guest that does not eject it in time keeps it, unless it is about to eject it.")]
pub(crate) struct DetachInterfaceArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The network device, by its address (MAC) as `lighter show` prints it.
    #[arg(value_name = "MAC")]
    pub(crate) mac: MacAddress,

    #[command(flatten)]
    pub(crate) wait: DetachWait,
}

/// How long to wait for a guest that is to let go of a device, and how to say that it has.
#[derive(Debug, Args)]
pub(crate) struct DetachWait {
    /// How long the guest may take.
    #[arg(long, value_parser = parse_duration, default_value = "20s", value_name = "TIME")]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
