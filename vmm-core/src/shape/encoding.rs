//! Encoding of a shape for a peer or a file, in versions that earlier releases know or refuse.

use bincode::error::DecodeError;

use super::{ShapeError, Slots, VmShape};
use crate::codec;
use crate::devices::MachineKind;
use crate::error::Result;
use crate::labels::Labels;
use crate::virtio::DeviceConfig;
use crate::virtio::block::{CacheMode, is_qcow2};

/// Version of the encoding of a [`VmShape`] without labels.
const SHAPE_VERSION: u16 = 6;
/// Version of the encoding of a [`VmShape`] that is followed by labels.
const SHAPE_VERSION_WITH_LABELS: u16 = 7;
/// Version of the encoding of a [`VmShape`] that is followed by labels and the kind of its machine.
const SHAPE_VERSION_WITH_MACHINE: u16 = 8;
/// Version of the encoding of a [`VmShape`] with a seed disk: encoded as with the kind of machine,
/// under a number that earlier releases refuse.
const SHAPE_VERSION_WITH_SEED: u16 = 9;
/// Version of the encoding of a [`VmShape`] with a disk in a qcow2 image: encoded as with the kind
/// of machine, under a number that earlier releases refuse, since they would use the file as a raw
/// disk.
const SHAPE_VERSION_WITH_IMAGE: u16 = 10;
/// Version of the encoding of a [`VmShape`] that is followed by labels, the kind of machine and the
/// devices' slots.
const SHAPE_VERSION_WITH_SLOTS: u16 = 11;
/// Version of the encoding of a [`VmShape`] that is followed by labels, the kind of machine, the
/// devices' slots, and the disks that bypass the host's cache, by their places among the devices.
const SHAPE_VERSION_WITH_CACHES: u16 = 12;
/// Version of the encoding of a [`VmShape`] as with caches, followed by the network devices that
/// are one half of a failover pair, by their places among the devices.
const SHAPE_VERSION_WITH_STANDBY: u16 = 13;

/// The newest version that this program knows.
pub(super) const NEWEST: u16 = SHAPE_VERSION_WITH_STANDBY;

impl VmShape {
    /// Returns the cache modes of disks that do not have the default, by their places among the
    /// devices.
    fn caches(&self) -> Vec<(u16, CacheMode)> {
        let caches = self.devices.iter().zip(0..).filter_map(|(device, index)| match device {
            DeviceConfig::Block(disk) => Some((index, disk.cache())),
            _ => None,
        });
        caches.filter(|(_, cache)| *cache != CacheMode::default()).collect()
    }

    fn with_caches(mut self, caches: &[(u16, CacheMode)]) -> Result<Self, DecodeError> {
        for (index, cache) in caches {
            match self.devices.get_mut(usize::from(*index)) {
                Some(DeviceConfig::Block(disk)) => *disk = disk.clone().with_cache(*cache),
                _ => {
                    return Err(DecodeError::OtherString(format!("device {index} is no disk")));
                }
            }
        }
        match self.caches() == caches {
            true => Ok(self),
            false => Err(DecodeError::OtherString(
                "a cache mode that is the default, or stands there twice".to_owned(),
            )),
        }
    }

    /// Returns the network devices that are one half of a failover pair, by their places among the
    /// devices.
    fn standbys(&self) -> Vec<u16> {
        let is_one =
            |device: &DeviceConfig| matches!(device, DeviceConfig::Net(net) if net.is_standby());
        self.devices
            .iter()
            .zip(0..)
            .filter(|(device, _)| is_one(device))
            .map(|(_, at)| at)
            .collect()
    }

    fn with_standbys(mut self, standbys: &[u16]) -> Result<Self, DecodeError> {
        for index in standbys {
            match self.devices.get_mut(usize::from(*index)) {
                Some(DeviceConfig::Net(net)) => *net = net.clone().with_standby(true),
                _ => {
                    let what = format!("device {index} is no network device");
                    return Err(DecodeError::OtherString(what));
                }
            }
        }
        match self.standbys() == standbys {
            true => Ok(self),
            false => {
                Err(DecodeError::Other("network devices out of order, or one that is named twice"))
            }
        }
    }

    /// Returns the lowest version that has all of the shape.
    fn version(&self) -> u16 {
        let has_seed = self.devices.iter().any(|device| matches!(device, DeviceConfig::Seed(_)));
        if !self.standbys().is_empty() {
            SHAPE_VERSION_WITH_STANDBY
        } else if self.disks().any(|disk| disk.cache() != CacheMode::default()) {
            SHAPE_VERSION_WITH_CACHES
        } else if self.slots != Slots::default() {
            SHAPE_VERSION_WITH_SLOTS
        } else if self.disks().any(|disk| is_qcow2(disk.path())) {
            SHAPE_VERSION_WITH_IMAGE
        } else if has_seed {
            SHAPE_VERSION_WITH_SEED
        } else if self.machine != MachineKind::Mmio {
            SHAPE_VERSION_WITH_MACHINE
        } else if !self.labels.is_empty() {
            SHAPE_VERSION_WITH_LABELS
        } else {
            SHAPE_VERSION
        }
    }

    /// Encodes the shape for a peer or a file.
    ///
    /// # Errors
    /// [`ShapeError::Malformed`] if the encoding is too long, which takes absurdly many CPUID
    /// entries.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        // Earlier releases take a guest whose shape has a version that they know.
        let bytes = match (self.version(), &self.labels, self.machine) {
            (version @ SHAPE_VERSION, ..) => codec::encode(&(version, self)),
            (version @ SHAPE_VERSION_WITH_LABELS, labels, _) => {
                codec::encode(&(version, self, labels))
            }
            (version @ SHAPE_VERSION_WITH_SLOTS, labels, machine) => {
                codec::encode(&(version, self, labels, machine, &self.slots))
            }
            (version @ SHAPE_VERSION_WITH_CACHES, labels, machine) => {
                codec::encode(&(version, self, labels, machine, &self.slots, self.caches()))
            }
            (version @ SHAPE_VERSION_WITH_STANDBY, labels, machine) => {
                let places = (self.caches(), self.standbys());
                codec::encode(&(version, self, labels, machine, &self.slots, places))
            }
            (version, labels, machine) => codec::encode(&(version, self, labels, machine)),
        };
        Ok(bytes.map_err(|error| ShapeError::Malformed(error.to_string()))?)
    }

    /// Decodes bytes that [`VmShape::to_bytes`] produced; they may be hostile. Checks bounds but
    /// not the host: see [`VmShape::check_host`].
    ///
    /// # Errors
    /// [`ShapeError`] if the bytes are malformed or out of bounds;
    /// [`crate::memory::MemoryError::Size`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let version = bytes
            .first_chunk()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .ok_or_else(|| ShapeError::Malformed("it is empty".into()))?;
        let shape = match version {
            SHAPE_VERSION => codec::decode(bytes).map(|(_, shape): (u16, Self)| shape),
            SHAPE_VERSION_WITH_LABELS => codec::decode(bytes)
                .map(|(_, shape, labels): (u16, Self, Labels)| Self { labels, ..shape }),
            SHAPE_VERSION_WITH_MACHINE | SHAPE_VERSION_WITH_SEED | SHAPE_VERSION_WITH_IMAGE => {
                codec::decode(bytes).map(
                    |(_, shape, labels, machine): (u16, Self, Labels, MachineKind)| Self {
                        labels,
                        machine,
                        ..shape
                    },
                )
            }
            SHAPE_VERSION_WITH_SLOTS => codec::decode(bytes).map(
                |(_, shape, labels, machine, slots): (u16, Self, Labels, MachineKind, Slots)| {
                    Self { labels, machine, slots, ..shape }
                },
            ),
            SHAPE_VERSION_WITH_CACHES => {
                type Encoded = (u16, VmShape, Labels, MachineKind, Slots, Vec<(u16, CacheMode)>);
                let of = |(_, shape, labels, machine, slots, caches): Encoded| {
                    Self { labels, machine, slots, ..shape }.with_caches(&caches)
                };
                codec::decode(bytes).and_then(of)
            }
            SHAPE_VERSION_WITH_STANDBY => {
                type Places = (Vec<(u16, CacheMode)>, Vec<u16>);
                type Encoded = (u16, VmShape, Labels, MachineKind, Slots, Places);
                let of = |(_, shape, labels, machine, slots, (caches, standbys)): Encoded| {
                    let shape = Self { labels, machine, slots, ..shape };
                    shape.with_caches(&caches)?.with_standbys(&standbys)
                };
                codec::decode(bytes).and_then(of)
            }
            version => return Err(ShapeError::Version(version).into()),
        };
        let shape = shape.map_err(|error| ShapeError::Malformed(error.to_string()))?;
        if version < SHAPE_VERSION_WITH_IMAGE && shape.disks().any(|it| is_qcow2(it.path())) {
            // To the release that encoded it, it is a raw disk.
            let what = "a disk has the name of a qcow2 image, and is none: rename it".to_owned();
            return Err(ShapeError::Malformed(what).into());
        }
        shape.check()?;
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::virtio::block::{Access, BlockConfig, SeedConfig};
    use crate::virtio::net::NetConfig;

    fn shape() -> VmShape {
        VmShape::for_host(64 << 20, 2).unwrap()
    }

    #[test]
    fn what_earlier_releases_can_run_has_a_version_that_they_know() {
        let labels: Labels = [("team".to_owned(), "shop".to_owned())].into();
        for (machine, labels, version) in [
            (MachineKind::Mmio, Labels::new(), 6),
            (MachineKind::Mmio, labels.clone(), 7),
            (MachineKind::Pci, Labels::new(), 8),
            (MachineKind::Pci, labels, 8),
        ] {
            let shape = VmShape { machine, labels, ..shape() };
            let bytes = shape.to_bytes().unwrap();
            assert_eq!(bytes[..2], [version, 0], "{machine}");
            assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        }
    }

    #[test]
    fn a_guest_with_a_seed_has_a_version_of_its_own() {
        let documents = [("user-data".to_owned(), b"#cloud-config".to_vec())];
        let devices = vec![DeviceConfig::Seed(SeedConfig::new(documents).unwrap())];
        for machine in [MachineKind::Mmio, MachineKind::Pci] {
            let shape = VmShape { machine, devices: devices.clone(), ..shape() };
            let bytes = shape.to_bytes().unwrap();
            assert_eq!(bytes[..2], [9, 0], "{machine}");
            assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        }
    }

    #[test]
    fn a_guest_with_an_image_has_a_version_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [0; 512]).unwrap();
        let disk = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        for (name, version) in [("disk.raw", 6), ("disk.qcow2", 10)] {
            let devices = vec![DeviceConfig::Block(disk.at(&folder.path().join(name)))];
            let bytes = VmShape { devices, ..shape() }.to_bytes().unwrap();
            assert_eq!(bytes[..2], [version, 0], "{name}");
            VmShape::from_bytes(&bytes).unwrap();
        }
    }

    #[test]
    fn a_guest_with_a_disk_that_bypasses_the_cache_has_a_version_of_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let disk = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        let devices = [DeviceConfig::Rng, DeviceConfig::Block(disk.with_cache(CacheMode::None))];
        let shape = VmShape { devices: devices.to_vec(), ..shape() };
        let bytes = shape.to_bytes().unwrap();
        assert_eq!(bytes[..2], [12, 0]);
        assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        for strange in [[0, 0], [2, 0]] {
            let mut bytes = bytes.clone();
            let at = bytes.len() - 6;
            bytes[at..at + 2].copy_from_slice(&strange);
            let refused = VmShape::from_bytes(&bytes).unwrap_err().to_string();
            assert!(refused.contains("is no disk"), "{refused}");
        }
    }

    #[test]
    fn a_guest_with_one_half_of_a_failover_pair_has_a_version_of_its_own() {
        let net = NetConfig::nowhere();
        let devices = [false, true].map(|half| DeviceConfig::Net(net.clone().with_standby(half)));
        let shape = VmShape { devices: devices.to_vec(), ..shape() };
        let bytes = shape.to_bytes().unwrap();
        assert_eq!(bytes[..2], [13, 0]);
        assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        let (end, strange) = (bytes.len() - 2, [2, 0]);
        let refused = VmShape::from_bytes(&[&bytes[..end], &strange].concat()).unwrap_err();
        assert!(refused.to_string().contains("device 2 is no network device"), "{refused}");
        for cut in 0..bytes.len() {
            assert!(VmShape::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let others = VmShape { devices: vec![DeviceConfig::Net(net); 2], ..shape };
        assert_eq!(others.to_bytes().unwrap()[..2], [6, 0]);
    }

    #[test]
    fn the_newest_version_has_all_that_others_have() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let disk = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        let net = || DeviceConfig::Net(NetConfig::nowhere().with_standby(true));
        let devices = vec![net(), DeviceConfig::Block(disk.with_cache(CacheMode::None)), net()];
        let labels: Labels = [("team".to_owned(), "shop".to_owned())].into();
        let mut slots = Slots::default();
        slots.remove(0, 4);
        let shape = VmShape { machine: MachineKind::Pci, devices, slots, labels, ..shape() };
        let bytes = shape.to_bytes().unwrap();
        assert_eq!(bytes[..2], [13, 0]);
        assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        let end = bytes.len() - 4;
        for strange in [[0, 0, 0, 0], [2, 0, 0, 0]] {
            assert!(VmShape::from_bytes(&[&bytes[..end], &strange].concat()).is_err());
        }
    }

    #[test]
    fn a_guest_with_a_device_out_of_place_has_a_version_of_its_own() {
        let devices = vec![DeviceConfig::Rng; 2];
        let mut slots = Slots::default();
        slots.remove(0, 3);
        let shape = VmShape { machine: MachineKind::Pci, devices, slots, ..shape() };
        let bytes = shape.to_bytes().unwrap();
        assert_eq!(bytes[..2], [11, 0]);
        let read = VmShape::from_bytes(&bytes).unwrap();
        assert_eq!(read.slotted().map(|(slot, _)| slot).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(read, shape);
        let other = VmShape { devices: vec![DeviceConfig::Rng; 3], ..shape };
        assert!(VmShape::from_bytes(&other.to_bytes().unwrap()).is_err());
    }

    #[test]
    fn hostile_descriptions_are_refused() {
        let good = shape().to_bytes().unwrap();
        for cut in 0..good.len() {
            assert!(VmShape::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut newer = good.clone();
        newer[0] = 14;
        let error = VmShape::from_bytes(&newer).unwrap_err();
        assert!(matches!(error, Error::Shape(ShapeError::Version(14))));
        let mut none = good;
        none[10] = 0;
        assert!(matches!(VmShape::from_bytes(&none), Err(Error::Shape(ShapeError::Vcpus(0)))));
    }
}
