//! The allow list of a guest's process for files: all its files are here.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use vmm_core::boot::BootRecord;
use vmm_core::virtio::block;
use vmm_core::{BootSource, MachineKind, VmShape};

use crate::state_dir::{GuestDir, StateDir};

/// What the process may do with a file, or with a folder and everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Read the file, or what is in the folder.
    Read,
    /// Read a file that an image is based on. It must be a regular file at this very path: another
    /// program may have put a link there since the image was read.
    Backing,
    /// Read and write it, or the files of a folder.
    Write,
    /// Read and write the files of a folder, and create and remove files in it.
    Keep,
    /// Remove empty folders in it.
    RemoveFolders,
    /// Read and write a character device, and send it `ioctl` requests.
    Device,
    /// Read and write a disk, and send it `ioctl` requests. It must be a regular file or a block
    /// device. Anything else stays closed, because the paths of disks come from others.
    Disk,
}

/// Files for every guest, where they exist: devices, facts about the host, and the configuration of
/// name resolution.
const ANY_GUESTS: [(&str, Use); 22] = [
    ("/dev/kvm", Use::Device),
    ("/dev/net/tun", Use::Device),
    ("/dev/null", Use::Write),
    ("/dev/urandom", Use::Read),
    ("/proc/self", Use::Read),
    ("/proc/meminfo", Use::Read),
    ("/proc/sys/kernel/random/boot_id", Use::Read),
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

/// What only some guests' processes do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Means {
    /// Connects to programs of the host for the guest (vsock).
    pub(crate) unix_sockets: bool,
    /// Creates or configures taps.
    pub(crate) taps: bool,
    /// Has the host's kernel carry the frames of taps.
    pub(crate) vhost: bool,
    /// Sets up io_urings for disks after confinement.
    pub(crate) rings: bool,
    /// Write-protects memory of a template.
    pub(crate) template: bool,
    /// Places pages of memory that arrives after its guest.
    pub(crate) missing_pages: bool,
}

impl Means {
    /// The most that an incoming guest may need, before it is known. No incoming guest has a
    /// template.
    pub(super) const OF_UNKNOWN: Self = Self {
        unix_sockets: true,
        taps: true,
        vhost: false,
        rings: true,
        template: false,
        missing_pages: true,
    };
    /// The means of a guest that uses every one of them.
    #[cfg(test)]
    pub(super) const ALL: Self = Self { template: true, vhost: true, ..Self::OF_UNKNOWN };
}

/// The files of one guest, and the other means that its process needs.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    wanted: Vec<(PathBuf, Use)>,
    means: Means,
    vsock_folder: PathBuf,
    arriving: Option<ArrivingDisks>,
}

/// The disks of an incoming guest.
#[derive(Debug, Clone)]
pub(crate) struct ArrivingDisks {
    /// Their paths, as admitted by the node.
    pub(crate) paths: Vec<PathBuf>,
    /// The folders in which disks that are copied with the guest may be created.
    pub(crate) folders: Vec<PathBuf>,
}

impl Files {
    /// The files that every guest's process keeps, and those that describe the host.
    pub(crate) fn of_guest(state: &StateDir, guest: &GuestDir, uuid: Uuid) -> Self {
        let mut wanted: Vec<_> =
            ANY_GUESTS.iter().map(|(path, what)| (PathBuf::from(path), *what)).collect();
        let folders = [
            (guest.path().to_owned(), Use::Keep),
            (state.guests(), Use::RemoveFolders),
            (state.place_of_records(guest.name(), uuid), Use::Keep),
            // Records of an earlier guest of that name; see `StateDir::timestamp_after_records`.
            (state.places_of_records().join(guest.name().as_str()), Use::Read),
            (state.ended().place(guest.name()), Use::Keep),
            (state.departures().place(guest.name(), uuid), Use::Keep),
        ];
        wanted.extend(folders);
        if cfg!(feature = "failpoints") {
            wanted.push((std::env::temp_dir(), Use::Keep));
        }
        let (means, vsock_folder) = (Means::default(), state.vsock_folder());
        Self { wanted, means, vsock_folder, arriving: None }
    }

    /// Adds the disks, taps and sockets of a guest of this shape.
    pub(crate) fn and_devices(mut self, shape: &VmShape) -> Self {
        shape.disks().for_each(|disk| self.add_disk(disk.path()));
        if shape.cid().is_some() {
            self.add_vsock();
        }
        self.means.taps |= shape.nets().next().is_some();
        if shape.machine == MachineKind::Pci {
            self.add_facts();
        }
        self
    }

    /// Adds what sysfs says about the host's block devices, for a guest that may get more of them.
    fn add_facts(&mut self) {
        self.wanted.extend(block::facts_of_host().into_iter().map(|folder| (folder, Use::Read)));
    }

    /// Adds the sockets of a guest with vsock.
    pub(crate) fn add_vsock(&mut self) {
        self.means.unix_sockets = true;
        self.wanted.push((self.vsock_folder.clone(), Use::Keep));
    }

    /// Adds this disk, what it is based on, what is locked behind it, and what sysfs says about it.
    pub(crate) fn add_disk(&mut self, path: &Path) {
        self.wanted.push((path.to_owned(), Use::Disk));
        self.wanted.extend(block::backing_files(path).into_iter().map(|path| (path, Use::Backing)));
        self.wanted.extend(block::behind_loops(path).into_iter().map(|path| (path, Use::Disk)));
        self.wanted.extend(block::facts_of(path).into_iter().map(|folder| (folder, Use::Read)));
    }

    /// Returns the disks that were added.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &Path> {
        let disks = self.wanted.iter().filter(|(_, what)| *what == Use::Disk);
        disks.map(|(path, _)| path.as_path())
    }

    /// Adds the files that the guest boots from, now and after a reset.
    pub(crate) fn and_boot(mut self, boot: &BootSource) -> Self {
        let files = match boot {
            BootSource::Workload(_) => [None, None],
            BootSource::Kernel(kernel) => [Some(&kernel.kernel), kernel.initrd.as_ref()],
            BootSource::Firmware(file) => [Some(file), None],
        };
        self.wanted.extend(files.into_iter().flatten().map(|file| (file.clone(), Use::Read)));
        self
    }

    /// Adds the files that a restored guest boots from after a reset.
    pub(crate) fn and_boot_record(mut self, boot: Option<&BootRecord>) -> Self {
        self.wanted.extend(boot.into_iter().flat_map(BootRecord::paths).map(|it| (it, Use::Read)));
        self
    }

    /// Adds the disks of a guest that is not known yet, and all means that it may need; Unix
    /// sockets only if they were added before. An unconfined thread creates the disks that are
    /// copied with the guest, so their folders are not among the files.
    pub(crate) fn of_unknown_guest(mut self, disks: ArrivingDisks) -> Self {
        disks.paths.iter().for_each(|disk| self.add_disk(disk));
        self.add_facts();
        self.means = Means { unix_sockets: self.means.unix_sockets, ..Means::OF_UNKNOWN };
        self.arriving = Some(disks);
        self
    }

    /// The disks of an incoming guest. What it boots from becomes known only after its process is
    /// confined.
    pub(crate) fn arriving(&self) -> Option<&ArrivingDisks> {
        self.arriving.as_ref()
    }

    /// Lets the host's kernel carry the frames of a guest that has taps, or may have some.
    pub(crate) fn and_vhost(mut self) -> Self {
        if self.means.taps {
            self.means.vhost = true;
            self.wanted.push((PathBuf::from("/dev/vhost-net"), Use::Device));
        }
        self
    }

    /// Adds the template at this path.
    pub(crate) fn and_template(mut self, path: &Path) -> Self {
        self.means.template = true;
        self.and_file(path)
    }

    /// Adds a file to read.
    pub(crate) fn and_file(mut self, path: &Path) -> Self {
        self.wanted.push((path.to_owned(), Use::Read));
        self
    }

    /// What the process does beyond using files.
    pub(crate) fn means(&self) -> Means {
        self.means
    }

    /// All files, with their use.
    pub(super) fn wanted(&self) -> &[(PathBuf, Use)] {
        &self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(taps: bool) -> Files {
        let means = Means { taps, ..Means::default() };
        Files { wanted: Vec::new(), means, vsock_folder: PathBuf::new(), arriving: None }
    }

    #[test]
    fn only_a_guest_with_taps_gets_vhost_and_only_if_it_is_to() {
        let device = (PathBuf::from("/dev/vhost-net"), Use::Device);
        let has = |files: Files| (files.means().vhost, files.wanted().contains(&device));
        assert_eq!(has(files(true).and_vhost()), (true, true));
        assert_eq!(has(files(true)), (false, false));
        assert_eq!(has(files(false).and_vhost()), (false, false));
        assert!(!ANY_GUESTS.iter().any(|(path, _)| Path::new(path) == device.0));
    }
}
