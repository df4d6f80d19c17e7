//! The files of a guest's process: the one list.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use vmm_core::boot::BootRecord;
use vmm_core::virtio::block;
use vmm_core::{BootSource, VmShape};

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
    /// Read, write, and ask the device that it is.
    Device,
    /// The same for a disk, which is a regular file or a block device: what else is there stays
    /// closed, since others name disks.
    Disk,
}

/// What is there for every guest, where it exists: devices, what is known of the host, and what
/// leads from a name to an address.
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

/// What a guest's process does that not all of them do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Means {
    /// It calls programs of the host for its guest (vsock).
    pub(crate) unix_sockets: bool,
    /// It makes or sets up taps.
    pub(crate) taps: bool,
    /// It makes rings for disks when it is confined already.
    pub(crate) rings: bool,
    /// It has memory of a template write-protected.
    pub(crate) template: bool,
}

impl Means {
    /// At most, of a guest that arrives and is not known yet. None arrives with a template.
    pub(super) const OF_UNKNOWN: Self =
        Self { unix_sockets: true, taps: true, rings: true, template: false };
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: Self = Self { template: true, ..Self::OF_UNKNOWN };
}

/// The files of one guest, and what else its process needs.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    wanted: Vec<(PathBuf, Use)>,
    means: Means,
    vsock_folder: PathBuf,
    arriving: Option<ArrivingDisks>,
}

/// The disks of a guest that arrives.
#[derive(Debug, Clone)]
pub(crate) struct ArrivingDisks {
    /// Their paths, as the node has admitted them.
    pub(crate) paths: Vec<PathBuf>,
    /// In which folders those may be made that come along.
    pub(crate) folders: Vec<PathBuf>,
}

impl Files {
    /// What every guest's process keeps, and what it finds out about its host.
    pub(crate) fn of_guest(state: &StateDir, guest: &GuestDir, uuid: Uuid) -> Self {
        let mut wanted: Vec<_> =
            ANY_GUESTS.iter().map(|(path, what)| (PathBuf::from(path), *what)).collect();
        let folders = [
            (guest.path().to_owned(), Use::Keep),
            (state.guests(), Use::RemoveFolders),
            (state.place_of_records(guest.name(), uuid), Use::Keep),
            // Those of an earlier guest of its name; see `StateDir::timestamp_after_records`.
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

    /// And the disks, taps and sockets of a guest of this shape.
    pub(crate) fn and_devices(mut self, shape: &VmShape) -> Self {
        shape.disks().for_each(|disk| self.add_disk(disk.path()));
        if shape.cid().is_some() {
            self.add_vsock();
        }
        self.means.taps |= shape.nets().next().is_some();
        self
    }

    /// And the sockets of a guest with vsock.
    pub(crate) fn add_vsock(&mut self) {
        self.means.unix_sockets = true;
        self.wanted.push((self.vsock_folder.clone(), Use::Keep));
    }

    /// And this disk.
    pub(crate) fn add_disk(&mut self, path: &Path) {
        self.wanted.push((path.to_owned(), Use::Disk));
        self.wanted.extend(block::facts_of(path).into_iter().map(|folder| (folder, Use::Read)));
    }

    /// The disks that were added.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &Path> {
        let disks = self.wanted.iter().filter(|(_, what)| *what == Use::Disk);
        disks.map(|(path, _)| path.as_path())
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

    /// And the disks and what else the process of a guest does that is not known yet, but for
    /// calling programs of the host. What comes along is made by a thread that is not confined: the
    /// folders for disks are not among the files.
    pub(crate) fn of_unknown_guest(mut self, disks: ArrivingDisks) -> Self {
        disks.paths.iter().for_each(|disk| self.add_disk(disk));
        self.means = Means { unix_sockets: self.means.unix_sockets, ..Means::OF_UNKNOWN };
        self.arriving = Some(disks);
        self
    }

    /// The disks of a guest that arrives: what it boots from comes to be known only when its
    /// process is confined.
    pub(crate) fn arriving(&self) -> Option<&ArrivingDisks> {
        self.arriving.as_ref()
    }

    /// And the template at this path.
    pub(crate) fn and_template(mut self, path: &Path) -> Self {
        self.means.template = true;
        self.and_file(path)
    }

    /// And this file to be read.
    pub(crate) fn and_file(mut self, path: &Path) -> Self {
        self.wanted.push((path.to_owned(), Use::Read));
        self
    }

    /// What else its process does.
    pub(crate) fn means(&self) -> Means {
        self.means
    }

    /// All of them.
    pub(super) fn wanted(&self) -> &[(PathBuf, Use)] {
        &self.wanted
    }
}
