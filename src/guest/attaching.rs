//! `lighter attach-disk`, `attach-interface`, `detach-disk` and `detach-interface`: devices of a
//! guest that runs.
//!
//! This process opens what the device needs, and passes it to that of the guest, which may open
//! nothing more.

use anyhow::{Context, Result};
use vmm_core::virtio::block::{Access, BlockConfig, with_disks_below};
use vmm_core::virtio::net::{NetConfig, NetLink};

use super::{addresses, plan};
use crate::api::devices::{AttachRequest, DiskToAttach, NamedDevice, NetToAttach};
use crate::api::types::GuestInfo;
use crate::cli::devices::{
    AttachDiskArgs, AttachInterfaceArgs, DetachDiskArgs, DetachInterfaceArgs,
};
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::saved_disks;
use crate::shared_disks::{self, TakenOver};
use crate::state_dir::StateDir;
use crate::verbs::hot_plug::{ATTACH_PATIENCE, attach, detach};
use crate::verbs::session::{block_on, guest_client};

/// Attaches a disk to a running guest.
///
/// # Errors
/// If there is no such guest, the disk cannot be used, or the guest cannot have it.
pub(crate) fn attach_disk(state: &StateDir, args: &AttachDiskArgs) -> Result<Exit> {
    let name = &args.name;
    let client = guest_client(state, name)?.with_patience(ATTACH_PATIENCE);
    let path = &args.disk.path;
    let cannot = || format!("cannot attach {} to {name}", path.display());
    let guest: GuestInfo = block_on(async { Ok(client.get("/v1/guest").await?) })?;
    let disk = plan::disk(&args.disk, guest.vcpus).with_context(cannot)?;
    let taken = expect_owned(state, name, &disk).with_context(cannot)?;
    let files = disk.open_files().with_context(cannot)?;
    let request = AttachRequest::Disk(DiskToAttach {
        read_only: disk.access() == Access::ReadOnly,
        serial: disk.serial().to_owned(),
        queues: disk.queues(),
        cache: disk.cache(),
        engine: disk.engine(),
    });
    let exit = attach(name, &client, (&request, files), args.json).with_context(cannot)?;
    if let Err(error) = taken.record(state) {
        output::note(format_args!(
            "warning: the disk is still recorded to have left with another guest: {error:#}"
        ));
    }
    Ok(exit)
}

/// Refuses a disk whose content has left this host, or that a guest on another host may write.
/// Returns what is to be recorded when the guest has it.
fn expect_owned(state: &StateDir, name: &GuestName, disk: &BlockConfig) -> Result<TakenOver> {
    let departed = state.departures().past();
    let mut below = with_disks_below(disk.path()).into_iter();
    below.try_for_each(|disk| departed.expect_here(name, &disk))?;
    let written = (disk.access() == Access::ReadWrite).then_some(disk.path());
    saved_disks::expect_unneeded(state, written.as_slice(), |_| false)?;
    shared_disks::expect_free(state, written.into_iter(), None)
}

/// Attaches a network device to a running guest.
///
/// # Errors
/// If there is no such guest, its address is taken, the bridge or tap cannot be used, or the guest
/// cannot have the device.
pub(crate) fn attach_interface(state: &StateDir, args: &AttachInterfaceArgs) -> Result<Exit> {
    let name = &args.name;
    let client = guest_client(state, name)?.with_patience(ATTACH_PATIENCE);
    let cannot = || format!("cannot attach a network device to {name}");
    let net = plan::net(&args.net).with_context(cannot)?;
    addresses::expect_free(state, name, std::iter::once(&net)).with_context(cannot)?;
    let taps = net.open_tap().with_context(cannot)?;
    let request = AttachRequest::Net(net_to_attach(&net));
    attach(name, &client, (&request, taps), args.json).with_context(cannot)
}

fn net_to_attach(net: &NetConfig) -> NetToAttach {
    let (bridge, tap) = match net.link().clone() {
        NetLink::Tap(tap) => (None, Some(tap)),
        NetLink::Bridge { bridge, tap } => (Some(bridge), tap),
    };
    let (mac, mtu) = (net.mac().to_string(), net.mtu());
    let (queues, standby) = (net.queue_pairs(), net.is_standby());
    NetToAttach { bridge, tap, mac, mtu, queues, standby }
}

/// Detaches a disk from a running guest.
///
/// # Errors
/// If there is no such guest or disk, or the guest does not let go of it in time.
pub(crate) fn detach_disk(state: &StateDir, args: &DetachDiskArgs) -> Result<Exit> {
    detach(state, &args.name, NamedDevice::Disk(args.disk.clone()), &args.wait)
}

/// Detaches a network device from a running guest.
///
/// # Errors
/// If there is no such guest or device, or the guest does not let go of it in time.
pub(crate) fn detach_interface(state: &StateDir, args: &DetachInterfaceArgs) -> Result<Exit> {
    detach(state, &args.name, NamedDevice::Net(args.mac.to_string()), &args.wait)
}
