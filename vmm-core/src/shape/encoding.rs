//! Encoding of a shape for a peer or a file, in versions that earlier releases know or refuse.

use bincode::error::DecodeError;
use serde::{Deserialize, Serialize};

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
/// devices' slots, and the options of devices, by their places among the devices. 12 and 13 were in
/// no release.
const SHAPE_VERSION_WITH_OPTIONS: u16 = 14;

/// The newest version that this program knows.
pub(super) const NEWEST: u16 = SHAPE_VERSION_WITH_OPTIONS;

/// What a device has that is not encoded with it, since the first releases did not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum DeviceOption {
    /// A disk has this cache mode, not the default.
    Cache(CacheMode),
    /// A network device is one half of a failover pair.
    Standby,
    /// A network device has so many pairs of queues, more than one.
    QueuePairs(u16),
}

/// Options of devices, by their places among the devices.
type Options = Vec<(u16, DeviceOption)>;

/// Returns the options of a device, in order.
fn options_of(device: &DeviceConfig) -> Vec<DeviceOption> {
    match device {
        DeviceConfig::Block(disk) if disk.cache() != CacheMode::default() => {
            vec![DeviceOption::Cache(disk.cache())]
        }
        DeviceConfig::Net(net) => {
            let standby = net.is_standby().then_some(DeviceOption::Standby);
            let pairs = net.queue_pairs();
            let pairs = (pairs != 1).then_some(DeviceOption::QueuePairs(pairs));
            standby.into_iter().chain(pairs).collect()
        }
        _ => Vec::new(),
    }
}

/// Gives a device an option; returns false if no device of its kind has it.
fn set_option(device: &mut DeviceConfig, option: DeviceOption) -> bool {
    match (device, option) {
        (DeviceConfig::Block(disk), DeviceOption::Cache(cache)) => {
            *disk = disk.clone().with_cache(cache);
        }
        (DeviceConfig::Net(net), DeviceOption::Standby) => *net = net.clone().with_standby(true),
        (DeviceConfig::Net(net), DeviceOption::QueuePairs(pairs)) => {
            *net = net.clone().with_queue_pairs(pairs);
        }
        _ => return false,
    }
    true
}

impl VmShape {
    fn options(&self) -> Options {
        let devices = self.devices.iter().zip(0..);
        let placed = |(device, at)| options_of(device).into_iter().map(move |option| (at, option));
        devices.flat_map(placed).collect()
    }

    fn with_options(mut self, options: &[(u16, DeviceOption)]) -> Result<Self, DecodeError> {
        for (at, option) in options {
            let device = self.devices.get_mut(usize::from(*at));
            if !device.is_some_and(|device| set_option(device, *option)) {
                let what = format!("device {at} cannot have {option:?}");
                return Err(DecodeError::OtherString(what));
            }
        }
        match self.options() == options {
            true => Ok(self),
            false => Err(DecodeError::Other(
                "options of devices out of order, twice, or those that each device has",
            )),
        }
    }

    /// Returns the lowest version that has all of the shape.
    fn version(&self) -> u16 {
        let has_seed = self.devices.iter().any(|device| matches!(device, DeviceConfig::Seed(_)));
        if !self.options().is_empty() {
            SHAPE_VERSION_WITH_OPTIONS
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
            (version @ SHAPE_VERSION_WITH_OPTIONS, labels, machine) => {
                codec::encode(&(version, self, labels, machine, &self.slots, self.options()))
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
            SHAPE_VERSION_WITH_OPTIONS => {
                type Encoded = (u16, VmShape, Labels, MachineKind, Slots, Options);
                let of = |(_, shape, labels, machine, slots, options): Encoded| {
                    Self { labels, machine, slots, ..shape }.with_options(&options)
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

    /// Devices of which each has another option, and one has none.
    fn devices_with_options() -> Vec<DeviceConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let disk = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        let net = NetConfig::nowhere;
        vec![
            DeviceConfig::Net(net().with_standby(true)),
            DeviceConfig::Block(disk.with_cache(CacheMode::None)),
            DeviceConfig::Net(net()),
            DeviceConfig::Net(net().with_queue_pairs(4)),
            DeviceConfig::Net(net().with_standby(true).with_queue_pairs(2)),
        ]
    }

    #[test]
    fn a_guest_whose_devices_have_options_has_a_version_of_its_own() {
        for device in devices_with_options() {
            let version = if options_of(&device).is_empty() { 6 } else { 14 };
            let shape = VmShape { devices: vec![DeviceConfig::Rng, device], ..shape() };
            let bytes = shape.to_bytes().unwrap();
            assert_eq!(bytes[..2], [version, 0], "{:?}", shape.devices);
            assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        }
    }

    #[test]
    fn the_newest_version_has_all_that_others_have() {
        let labels: Labels = [("team".to_owned(), "shop".to_owned())].into();
        let mut slots = Slots::default();
        slots.remove(0, 6);
        let (machine, devices) = (MachineKind::Pci, devices_with_options());
        let shape = VmShape { machine, devices, slots, labels, ..shape() };
        let bytes = shape.to_bytes().unwrap();
        assert_eq!(bytes[..2], [NEWEST as u8, 0]);
        assert_eq!(VmShape::from_bytes(&bytes).unwrap(), shape);
        for cut in 0..bytes.len() {
            assert!(VmShape::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    /// Encodes the guest with `options` in place of its own.
    fn encode_with<T: Serialize>(version: u16, shape: &VmShape, options: &T) -> Vec<u8> {
        let VmShape { labels, machine, slots, .. } = shape;
        codec::encode(&(version, shape, labels, machine, slots, options)).unwrap()
    }

    #[test]
    fn options_that_a_device_cannot_have_are_refused() {
        let shape = VmShape { devices: devices_with_options(), ..shape() };
        let read = |options: &Options| VmShape::from_bytes(&encode_with(14, &shape, options));
        let good = shape.options();
        assert_eq!(read(&good).unwrap(), shape);
        for (at, option) in [
            (0, DeviceOption::Cache(CacheMode::None)),
            (1, DeviceOption::Standby),
            (1, DeviceOption::QueuePairs(2)),
            (5, DeviceOption::Standby),
            (2, DeviceOption::QueuePairs(1)),
            (2, DeviceOption::QueuePairs(9)),
            (1, DeviceOption::Cache(CacheMode::Writeback)),
            (0, DeviceOption::Standby),
        ] {
            let options = [good.clone(), vec![(at, option)]].concat();
            assert!(read(&options).is_err(), "{at} {option:?}");
        }
        let mut unordered = good;
        unordered.reverse();
        assert!(read(&unordered).is_err());
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
        newer[0] = 15;
        let error = VmShape::from_bytes(&newer).unwrap_err();
        assert!(matches!(error, Error::Shape(ShapeError::Version(15))));
        let mut none = good;
        none[10] = 0;
        assert!(matches!(VmShape::from_bytes(&none), Err(Error::Shape(ShapeError::Vcpus(0)))));
    }
}
