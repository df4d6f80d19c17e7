//! The files of a guest's process: the one list.

use std::path::{Path, PathBuf};

use vmm_core::boot::BootRecord;
use vmm_core::{BootSource, DeviceConfig, VmShape};

use crate::state_dir::{GuestDir, StateDir};

/// What may be done with a file, or with a folder and all in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Read it.
    Read,
    /// Read and write it; a folder's files, too.
    Write,
    /// The same, and have files made and removed in it.
    Keep,
    /// Remove empty folders in it.
    RemoveFolders,
    /// Read, write, and ask its device.
    Device,
}

/// What is there for every guest, where it exists: devices, what is known of the host, and what leads from a name to an address.
const ANY_GUESTS: [(&str, Use); 21] = [
    ("/dev/kvm", Use::Device),
    ("/dev/net/tun", Use::Device),
    ("/dev/null", Use::Write),
    ("/dev/urandom", Use::Read),
    ("/proc/self", Use::Read),
    ("/proc/meminfo", Use::Read),
    ("/proc/sys/vm", Use::Read),
    ("/sys/class/net/lo/mtu", Use::Read),
    ("/sys/devices/system/cpu", Use::Read),
    ("/sys/devices/system/node", Use::Read),
    ("/sys/kernel/mm", Use::Read),
    ("/etc/resolv.conf", Use::Read),
    ("/run/systemd/resolve", Use::Read),
    ("/run/resolvconf", Use::Read),
    ("/etc/hosts", Use::Read),
    ("/etc/nsswitch.conf", Use::Read),
    ("/etc/host.conf", Use::Read),
    ("/etc/gai.conf", Use::Read),
    ("/etc/services", Use::Read),
    ("/etc/localtime", Use::Read),
    ("/usr/share/zoneinfo", Use::Read),
];

/// The files of one guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    wanted: Vec<(PathBuf, Use)>,
}

impl Files {
    /// What every guest's process keeps, and what it finds out about its host.
    pub(crate) fn of_guest(state: &StateDir, guest: &GuestDir) -> Self {
        let mut wanted: Vec<_> =
            ANY_GUESTS.iter().map(|(path, what)| (PathBuf::from(path), *what)).collect();
        let folders = [
            (guest.path().to_owned(), Use::Keep),
            (state.guests(), Use::RemoveFolders),
            (state.migrations(), Use::Keep),
            (state.ended().folder().to_owned(), Use::Keep),
            (state.certs(), Use::Read),
            (state.vsock_folder(), Use::Keep),
            (state.merge_domain_file(), Use::Write),
        ];
        wanted.extend(folders);
        if cfg!(feature = "failpoints") {
            wanted.push((std::env::temp_dir(), Use::Keep));
        }
        Self { wanted }
    }

    /// And the disks of a guest of this shape.
    pub(crate) fn and_devices(mut self, shape: &VmShape) -> Self {
        shape.devices.iter().filter_map(disk).for_each(|disk| self.add_disk(disk));
        self
    }

    /// And this disk.
    pub(crate) fn add_disk(&mut self, path: &Path) {
        self.wanted.push((path.to_owned(), Use::Device));
    }

    /// And this folder, in which disks may be made.
    pub(crate) fn add_disk_folder(&mut self, path: &Path) {
        self.wanted.push((path.to_owned(), Use::Keep));
    }

    /// And what the guest boots from, now and again.
    pub(crate) fn and_boot(mut self, boot: &BootSource) -> Self {
        if let BootSource::Kernel(kernel) = boot {
            let files = [Some(&kernel.kernel), kernel.initrd.as_ref()];
            self.wanted.extend(files.into_iter().flatten().map(|file| (file.clone(), Use::Read)));
        }
        self
    }

    /// And what a guest that was saved boots from again.
    pub(crate) fn and_boot_record(mut self, boot: Option<&BootRecord>) -> Self {
        self.wanted.extend(boot.into_iter().flat_map(BootRecord::paths).map(|it| (it, Use::Read)));
        self
    }

    /// And any file to be read, for a guest whose own are not known yet.
    pub(crate) fn and_any_to_read(mut self) -> Self {
        self.wanted.push((PathBuf::from("/"), Use::Read));
        self
    }

    /// And this file to be read.
    pub(crate) fn and_file(mut self, path: &Path) -> Self {
        self.wanted.push((path.to_owned(), Use::Read));
        self
    }

    /// All of them.
    pub(super) fn wanted(&self) -> &[(PathBuf, Use)] {
        &self.wanted
    }
}

/// The file behind a device.
pub(crate) fn disk(device: &DeviceConfig) -> Option<&Path> {
    match device {
        DeviceConfig::Block(disk) => Some(disk.path()),
        DeviceConfig::Rng
        | DeviceConfig::Balloon
        | DeviceConfig::HintingBalloon
        | DeviceConfig::Vsock { .. }
        | DeviceConfig::Net(_) => None,
    }
}
