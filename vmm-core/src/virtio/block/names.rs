//! The names, from sysfs, by which two hosts recognize the same block device.
//!
//! A device of the device mapper has a UUID that LVM keeps on the disk itself, so two hosts that
//! were cloned from one image have equal UUIDs on different disks. Such a UUID counts only together
//! with the names of the physical disks below the device. The UUID of a multipath device is the
//! disk's WWID and needs no other names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use xxhash_rust::xxh3::xxh3_128;

use super::SECTOR_BYTES;
use super::proof::NAME_BYTES_MAX;

/// The file that identifies this boot of the host (proc(5)).
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Kinds of names, the most precise one first: if two hosts have several kinds in common, the first
/// one decides. A serial number may belong to a controller, or be any text that a user entered.
const KINDS: [&str; 6] = [BOOT, "wwid", "device/wwid", DM_UUID, "device/serial", "serial"];
const BOOT: &str = "boot";
const DM_UUID: &str = "dm/uuid";
/// Stands between the name of a disk and the first sector of its partition.
const FROM_SECTOR: &str = " from sector ";
/// Length of the UUID of an LVM group in a volume's UUID, in characters (`ID_LEN` in lvm2).
const LVM_GROUP_CHARS: usize = 32;
/// The name of a device-mapper device: valid only on its own host, and used there as the last
/// resort.
const DM_NAME: &str = "dm/name";

/// Kinds of names of the physical disks below a device, the most precise one first, and the sysfs
/// files that contain each disk's name.
const BELOW: [(&str, [&str; 2]); 2] =
    [("below/wwid", ["wwid", "device/wwid"]), ("below/serial", ["device/serial", "serial"])];

/// Most devices below a device, including those in between.
pub(super) const STACK_MAX: usize = 256;

/// Returns whether the names on two hosts are those of one device; `None` if they have no kind of
/// name in common.
pub(super) fn is_same_device(known: &[String], here: &[String]) -> Option<bool> {
    let both = |kind: &str| Some((of_kind(known, kind)?, of_kind(here, kind)?));
    KINDS.iter().find_map(|kind| {
        let (known, here) = both(kind)?;
        // Device numbers have no meaning for another kernel, nor after a reboot.
        let is_of_another_boot = *kind == BOOT && known.split(' ').next() != here.split(' ').next();
        if is_of_another_boot {
            return None;
        }
        if *kind == DM_UUID && known == here && !is_of_multipath(known) {
            let below = BELOW.iter().find_map(|(kind, _)| both(kind));
            return below.map(|(known, here)| known == here);
        }
        Some(known == here)
    })
}

/// As [`is_same_device`], for a caller that must not miss a device that two hosts share: a UUID in
/// the device mapper counts even if the disks below it are unknown.
pub(super) fn may_be_same_device(known: &[String], here: &[String]) -> Option<bool> {
    is_same_device(known, here)
        .or_else(|| Some(of_kind(known, DM_UUID)? == of_kind(here, DM_UUID)?))
}

/// As [`is_same_device`], for names from one host: the disks below need not be compared.
pub(super) fn is_same_here(known: &[String], now: &[String]) -> Option<bool> {
    KINDS
        .iter()
        .chain([&DM_NAME])
        .find_map(|kind| Some(of_kind(known, kind)? == of_kind(now, kind)?))
}

/// Returns whether two devices may have content in common: they are the same, or one is a partition
/// of the other. `None` if their names do not tell, as for a volume and a device below it.
pub(super) fn may_overlap(known: &[String], here: &[String]) -> Option<bool> {
    let both = |kind: &str| Some((of_kind(known, kind)?, of_kind(here, kind)?));
    let by_name = KINDS.iter().filter(|kind| **kind != BOOT).find_map(|kind| {
        let (known, here) = both(kind)?;
        if *kind != DM_UUID {
            return Some(Extent::of(known).overlaps(Extent::of(here)));
        }
        let below = BELOW.iter().find_map(|(kind, _)| both(kind));
        uuids_overlap(known, here, below.is_some_and(|(known, here)| known == here))
    });
    let boots =
        both(BOOT).filter(|(known, here)| known.split(' ').next() == here.split(' ').next());
    match boots {
        // Under one kernel, locks keep the writers of one disk apart.
        Some((known, here)) => Some(known == here || by_name == Some(true)),
        None => by_name,
    }
}

/// As [`may_overlap`], for two UUIDs in the device mapper.
fn uuids_overlap(known: &str, here: &str, is_same_below: bool) -> Option<bool> {
    let (known, here) = (Extent::of_uuid(known), Extent::of_uuid(here));
    let kind = |extent: &Extent<'_>| extent.disk.split('-').next().map(str::to_owned);
    // One may be a volume on the other.
    if kind(&known) != kind(&here) || may_be_layers(known.disk, here.disk) {
        return None;
    }
    let may_be_copies = known.disk == here.disk && !is_of_multipath(known.disk) && !is_same_below;
    (!may_be_copies).then(|| known.overlaps(here))
}

/// Returns whether one of two UUIDs of LVM may be that of a layer below the other's volume. Layers
/// of a snapshot have the volume's own UUID, those of a pool or cache only that of its group.
fn may_be_layers(known: &str, here: &str) -> bool {
    let (Some(one), Some(other)) = (LvmUuid::parse(known), LvmUuid::parse(here)) else {
        return false;
    };
    known != here && one.group == other.group && (one.is_layer || other.is_layer)
}

/// The parts of a UUID of LVM, which is that of a group, that of a volume in it and, of a layer, a
/// dash and its kind: `real`, `cow`, `tdata` and others (`build_dm_uuid` in lvm2).
#[derive(Debug)]
struct LvmUuid<'a> {
    group: &'a str,
    is_layer: bool,
}

impl<'a> LvmUuid<'a> {
    fn parse(uuid: &'a str) -> Option<Self> {
        let all = uuid.strip_prefix("LVM-")?;
        let volume = all.split_once('-').map_or(all, |(volume, _layer)| volume);
        let group = volume.get(..LVM_GROUP_CHARS).unwrap_or(volume);
        Some(Self { group, is_layer: volume.len() < all.len() })
    }
}

/// What part of a disk a name means.
#[derive(Debug, Clone, Copy)]
struct Extent<'a> {
    disk: &'a str,
    /// The first sector or the number of a partition; `None` for the whole disk.
    partition: Option<u64>,
}

impl<'a> Extent<'a> {
    fn of(name: &'a str) -> Self {
        let parts = name.rsplit_once(FROM_SECTOR);
        let parts = parts.and_then(|(disk, start)| Some((disk, start.parse().ok()?)));
        Self::from_parts(name, parts)
    }

    /// A partition that kpartx has made has its number in front of the disk's UUID.
    fn of_uuid(uuid: &'a str) -> Self {
        let parts = uuid.strip_prefix("part").and_then(|rest| rest.split_once('-'));
        let parts = parts.and_then(|(number, disk)| Some((disk, number.parse().ok()?)));
        Self::from_parts(uuid, parts)
    }

    fn from_parts(whole: &'a str, parts: Option<(&'a str, u64)>) -> Self {
        match parts {
            Some((disk, partition)) => Self { disk, partition: Some(partition) },
            None => Self { disk: whole, partition: None },
        }
    }

    fn overlaps(self, other: Self) -> bool {
        let partitions = self.partition.zip(other.partition);
        self.disk == other.disk && partitions.is_none_or(|(one, other)| one == other)
    }
}

fn of_kind<'a>(names: &'a [String], kind: &str) -> Option<&'a str> {
    names.iter().find_map(|name| name.strip_prefix(kind)?.strip_prefix(' '))
}

/// Returns whether a device-mapper UUID belongs to a multipath device, or to a partition of one
/// (kpartx).
fn is_of_multipath(uuid: &str) -> bool {
    let is_part =
        |head: &str| head.strip_prefix("part").is_some_and(|number| number.parse::<u16>().is_ok());
    match uuid.split_once("mpath-") {
        Some(("", _)) => true,
        Some((head, _)) => head.strip_suffix('-').is_some_and(is_part),
        None => false,
    }
}

/// Returns the names of a block device; those of a partition include its first sector.
pub(super) fn names_of(device: u64) -> Vec<String> {
    let Ok(place) = place_in_sysfs(device).canonicalize() else { return Vec::new() };
    let mut names = names_at(&place);
    // Only matches under the same kernel: two nodes on one host.
    if let Some(boot) = read(Path::new(BOOT_ID)) {
        names.push(format!("boot {boot} {}:{}", major(device), minor(device)));
    }
    names
}

/// Returns the names that stay valid on this host after a reboot.
pub(super) fn lasting_names_of(device: u64) -> Vec<String> {
    let Ok(place) = place_in_sysfs(device).canonicalize() else { return Vec::new() };
    let mut names = names_at(&place);
    names.extend(name_at(&place, DM_NAME).map(|name| format!("{DM_NAME} {name}")));
    names
}

/// Returns the size of a block device in bytes; 0 if it cannot be read.
pub(super) fn bytes_of(device: u64) -> u64 {
    let sectors = read(&place_in_sysfs(device).join("size")).and_then(|text| text.parse().ok());
    sectors.map_or(0, |sectors: u64| sectors.saturating_mul(SECTOR_BYTES))
}

/// Checks that this process may read what sysfs says about a block device.
///
/// # Errors
/// If it may not.
pub(super) fn expect_readable(device: u64) -> io::Result<()> {
    fs::read(place_in_sysfs(device).join("stat")).map(drop)
}

/// Returns the folder of a block device in sysfs.
pub(super) fn place_in_sysfs(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// Returns the folder of the disk to which `place` belongs: its own folder or that of a partition.
pub(super) fn disk_at(place: &Path) -> &Path {
    match place.join("partition").exists() {
        true => place.parent().unwrap_or(place),
        false => place,
    }
}

/// Returns the sysfs folders with the names and the write counters of the block device at `path`
/// and of those below it; none for anything else. A process needs read access to them to lock the
/// device, and to make and check a [`super::Seal`] or the evidence that two hosts share it.
pub fn facts_of(path: &Path) -> Vec<PathBuf> {
    let places = with_disks_below(path).into_iter().filter_map(|path| place_of(&path));
    let all: BTreeSet<PathBuf> = places.flat_map(|place| stack_at(&place).all).collect();
    let disks: BTreeSet<&Path> = all.iter().map(|place| disk_at(place)).collect();
    disks.into_iter().flat_map(facts_at).collect()
}

/// Returns the sysfs folders of [`facts_of`] for all block devices of this host, and the folder of
/// those that are made by software, which may get more: for a process that gets disks later.
pub fn facts_of_host() -> Vec<PathBuf> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let places = disks.filter_map(|disk| disk.path().canonicalize().ok());
    let made = PathBuf::from("/sys/devices/virtual/block");
    let physical = places.filter(|place| !place.starts_with(&made));
    let facts = physical.flat_map(|disk| facts_at(&disk));
    facts.chain([made.clone()]).collect()
}

/// Returns the sysfs folder of a disk, and that of the device that it is on.
fn facts_at(disk: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    [Some(disk.to_owned()), disk.join("device").canonicalize().ok()].into_iter().flatten()
}

/// Returns `path` and, if it is a block device, the paths of what is below it: of a loop device the
/// file, of a partition the disk, of a volume its disks. A disk may be in use under each of them.
pub fn with_disks_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while next < found.len().min(STACK_MAX) {
        let below: Vec<_> = place_of(&found[next]).map_or_else(Vec::new, |place| below(&place));
        for path in below {
            if !found.contains(&path) {
                found.push(path);
            }
        }
        next += 1;
    }
    found
}

/// Returns the sysfs folder of the block device at `path`; `None` if there is none.
pub(super) fn place_of(path: &Path) -> Option<PathBuf> {
    let device = fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
    place_in_sysfs(device.rdev()).canonicalize().ok()
}

/// Returns the paths of what is directly below the block device whose sysfs folder is `place`.
fn below(place: &Path) -> Vec<PathBuf> {
    let disk = disk_at(place);
    let whole = (disk != place).then(|| disk.to_owned());
    let devices = whole.into_iter().chain(slaves_of(disk).unwrap_or_default());
    // A device in a folder of /dev has an exclamation mark for the slash.
    let node = |place: PathBuf| {
        Some(Path::new("/dev").join(place.file_name()?.to_str()?.replace('!', "/")))
    };
    devices.filter_map(node).chain(behind_loop(disk)).collect()
}

/// Returns the path of the file or device behind a loop device.
pub(super) fn behind_loop(disk: &Path) -> Option<PathBuf> {
    let file = fs::read_to_string(disk.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(file.trim_end()))
}

fn names_at(place: &Path) -> Vec<String> {
    let named = |kind: &&str| Some(format!("{kind} {}", name_at(place, kind)?));
    let mut names: Vec<String> = KINDS.iter().filter_map(named).collect();
    if of_kind(&names, DM_UUID).is_some() {
        let stack = stack_at(place);
        let below = |(kind, own): &(&str, [&str; 2])| Some(format!("{kind} {}", stack.name(own)?));
        names.extend(BELOW.iter().filter_map(below));
    }
    names
}

/// Returns one name of a disk or, with its first sector, of a partition; `None` for a partition
/// whose start is unknown.
fn name_at(place: &Path, kind: &str) -> Option<String> {
    let disk = disk_at(place);
    let name = read(&disk.join(kind))?;
    if disk == place {
        return Some(name);
    }
    let start = read(&place.join("start"))?;
    Some(format!("{name}{FROM_SECTOR}{start}"))
}

/// A device and all devices below it.
#[derive(Debug, Default)]
struct Stack {
    /// The sysfs folders of all of them.
    all: BTreeSet<PathBuf>,
    /// The folders of those that have no device below them.
    physical: BTreeSet<PathBuf>,
    /// There are more than [`STACK_MAX`] devices, or one cannot be read.
    is_incomplete: bool,
}

impl Stack {
    /// Returns one name for all physical disks together, using for each disk the first kind of
    /// `own` that it has; `None` if a disk has none.
    fn name(&self, own: &[&str]) -> Option<String> {
        if self.is_incomplete || self.physical.is_empty() {
            return None;
        }
        // Several paths to one disk have the same name, which counts once.
        let name = |place: &PathBuf| own.iter().find_map(|kind| name_at(place, kind));
        let names: BTreeSet<String> = self.physical.iter().map(name).collect::<Option<_>>()?;
        let text = names.into_iter().collect::<Vec<_>>().join("\n");
        Some(format!("{:032x}", xxh3_128(text.as_bytes())))
    }
}

/// Returns the device at `place` and all devices below it.
fn stack_at(place: &Path) -> Stack {
    let mut stack = Stack::default();
    let mut left = vec![place.to_owned()];
    while let Some(place) = left.pop() {
        if stack.all.len() >= STACK_MAX {
            stack.is_incomplete = true;
            break;
        }
        if !stack.all.insert(place.clone()) {
            continue;
        }
        match slaves_of(disk_at(&place)) {
            Some(below) if below.is_empty() => {
                stack.physical.insert(place);
            }
            Some(below) => left.extend(below),
            None => stack.is_incomplete = true,
        }
    }
    stack
}

/// Returns the folders of the devices below a disk; `None` if they cannot be read.
pub(super) fn slaves_of(disk: &Path) -> Option<Vec<PathBuf>> {
    let entries = match fs::read_dir(disk.join("slaves")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    entries.map(|entry| entry.ok()?.path().canonicalize().ok()).collect()
}

/// Returns the line in a sysfs file, if there is one that is not empty and not too long.
pub(super) fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.trim();
    (!line.is_empty() && line.len() <= NAME_BYTES_MAX / 2).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::proof::DiskProof;
    use super::*;

    fn same(known: &[&str], here: &[&str]) -> Option<bool> {
        let [known, here] = [known, here]
            .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        is_same_device(&known, &here)
    }

    #[test]
    fn the_most_exact_name_that_both_hosts_know_decides() {
        assert_eq!(same(&["wwid a", "serial s"], &["serial s", "wwid b"]), Some(false));
        assert_eq!(same(&["wwid a", "serial s"], &["serial t", "wwid a"]), Some(true));
        assert_eq!(same(&["serial s"], &["wwid a", "serial s"]), Some(true));
        assert_eq!(same(&["serial s"], &["wwid a"]), None);
        assert_eq!(same(&["boot 1 7:0"], &["boot 1 7:0"]), Some(true), "two nodes on one host");
        assert_eq!(same(&["boot 1 7:0", "wwid a"], &["boot 1 7:1", "wwid a"]), Some(false));
        assert_eq!(same(&["boot 1 7:0"], &["boot 2 7:0"]), None, "after a reboot");
        assert_eq!(same(&["boot 1 7:0", "wwid a"], &["boot 2 7:1", "wwid a"]), Some(true));
    }

    #[test]
    fn a_partition_and_its_whole_disk_overlap_and_two_partitions_do_not() {
        for (known, here, expected) in [
            ("wwid a", "wwid a", Some(true)),
            ("wwid a", "wwid b", Some(false)),
            ("wwid a from sector 2048", "wwid a", Some(true)),
            ("wwid a from sector 2048", "wwid a from sector 2048", Some(true)),
            ("wwid a from sector 2048", "wwid a from sector 4096", Some(false)),
            ("wwid a from sector 2048", "wwid b", Some(false)),
            ("serial s from sector 8", "serial s", Some(true)),
            ("wwid a", "serial a", None),
            ("dm/uuid mpath-a", "dm/uuid mpath-b", Some(false)),
            ("dm/uuid part1-mpath-a", "dm/uuid mpath-a", Some(true)),
            ("dm/uuid part1-mpath-a", "dm/uuid part1-mpath-a", Some(true)),
            ("dm/uuid part1-mpath-a", "dm/uuid part2-mpath-a", Some(false)),
            ("dm/uuid part1-mpath-a", "dm/uuid mpath-b", Some(false)),
            ("dm/uuid CRYPT-LUKS2-a", "dm/uuid LVM-a", None),
            ("dm/uuid LVM-a", "dm/uuid mpath-a", None),
            ("dm/uuid LVM-a", "dm/uuid LVM-b", Some(false)),
            ("dm/uuid LVM-a", "dm/uuid LVM-a", None),
            ("dm/uuid LVM-a", "dm/uuid LVM-a-real", None),
            ("dm/uuid LVM-a-cow", "dm/uuid LVM-a-real", None),
            ("dm/uuid part1-LVM-a", "dm/uuid LVM-a-real", None),
            ("dm/uuid LVM-a", "dm/uuid LVM-b-real", Some(false)),
        ] {
            let [one, other] = [known, here].map(|name| [name.to_owned()]);
            assert_eq!(may_overlap(&one, &other), expected, "{known}, {here}");
            assert_eq!(may_overlap(&other, &one), expected, "{here}, {known}");
        }
    }

    #[test]
    fn a_layer_in_lvm_may_be_below_each_volume_of_its_group() {
        let uuid = |group: char, volume: char, layer: &str| {
            let [group, volume] = [group, volume].map(|it| it.to_string().repeat(LVM_GROUP_CHARS));
            [format!("dm/uuid LVM-{group}{volume}{layer}"), "below/wwid 1".to_owned()]
        };
        let volume = uuid('g', 'v', "");
        for (other, expected) in [
            (uuid('g', 'v', "-real"), None),
            (uuid('g', 'p', "-tdata"), None),
            (uuid('g', 'w', ""), Some(false)),
            (uuid('h', 'p', "-tdata"), Some(false)),
        ] {
            assert_eq!(may_overlap(&volume, &other), expected, "{other:?}");
            assert_eq!(may_overlap(&other, &volume), expected, "{other:?}");
            assert_eq!(may_overlap(&other, &other), Some(true), "{other:?}");
        }
    }

    #[test]
    fn a_volume_and_another_boot_overlap_by_more_than_one_name() {
        let overlap = |known: &[&str], here: &[&str]| {
            let [known, here] = [known, here]
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            may_overlap(&known, &here)
        };
        let volume = ["dm/uuid LVM-a", "below/wwid 1"];
        assert_eq!(overlap(&volume, &volume), Some(true));
        assert_eq!(overlap(&volume, &["dm/uuid LVM-a", "below/wwid 2"]), None);
        assert_eq!(overlap(&["boot 1 7:0"], &["boot 1 7:0"]), Some(true));
        assert_eq!(overlap(&["boot 1 7:0"], &["boot 1 7:1"]), Some(false));
        assert_eq!(overlap(&["boot 1 7:0"], &["boot 2 7:1"]), None);
        let part = "wwid a from sector 8";
        assert_eq!(overlap(&["boot 1 8:0", "wwid a"], &["boot 1 8:1", part]), Some(true));
        assert_eq!(overlap(&["boot 1 8:0", "wwid a"], &["boot 2 8:1", part]), Some(true));
    }

    #[test]
    fn a_uuid_of_lvm_counts_with_the_disks_below_alone() {
        let lvm = |more: &'static [&str]| [&["dm/uuid LVM-x"][..], more].concat();
        let (one, other) = (lvm(&["below/wwid 1"]), lvm(&["below/wwid 2"]));
        assert_eq!(same(&one, &one), Some(true));
        assert_eq!(same(&one, &other), Some(false), "hosts from one image");
        assert_eq!(same(&lvm(&["below/serial 1"]), &one), None);
        assert_eq!(same(&lvm(&[]), &lvm(&[])), None, "an earlier version names no disks below");
        let both = lvm(&["below/wwid 1", "below/serial 7"]);
        assert_eq!(same(&both, &lvm(&["below/serial 7"])), Some(true));
        assert_eq!(same(&["dm/uuid LVM-y"], &one), Some(false));
        for multipath in ["dm/uuid mpath-3600", "dm/uuid part2-mpath-3600"] {
            assert_eq!(same(&[multipath], &[multipath]), Some(true));
        }
        for other in ["dm/uuid CRYPT-mpath-3600", "dm/uuid partx-mpath-3600"] {
            assert_eq!(same(&[other], &[other]), None);
        }
    }

    /// A folder with a device-mapper device, `dm-0`, above a partition and a whole disk with these
    /// names.
    fn sysfs(names: [Option<&str>; 2]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let lies_on = |disk: &str, below: &str, name: &str| {
            let slaves = folder.path().join(disk).join("slaves");
            fs::create_dir_all(&slaves).unwrap();
            symlink(folder.path().join(below), slaves.join(name)).unwrap();
        };
        write("dm-0/dm/uuid", "LVM-x\n");
        write("dm-1/dm/uuid", "CRYPT-LUKS2-y\n");
        write("sda/sda3/partition", "3\n");
        write("sda/sda3/start", "2048\n");
        write("sdb/size", "1\n");
        for (disk, name) in ["sda", "sdb"].into_iter().zip(names) {
            if let Some(name) = name {
                write(&format!("{disk}/device/wwid"), name);
            }
        }
        lies_on("dm-0", "dm-1", "dm-1");
        lies_on("dm-1", "sda/sda3", "sda3");
        lies_on("dm-1", "sdb", "sdb");
        folder
    }

    fn names_in(folder: &tempfile::TempDir) -> Vec<String> {
        names_at(&folder.path().join("dm-0").canonicalize().unwrap())
    }

    #[test]
    fn a_volume_is_named_with_all_physical_disks_below_it() {
        let names = names_in(&sysfs([Some("naa.1"), Some("naa.2")]));
        assert_eq!(names, names_in(&sysfs([Some("naa.1\n"), Some("naa.2")])));
        assert!(names.len() == 2 && names[1].starts_with("below/wwid "), "{names:?}");
        let other = names_in(&sysfs([Some("naa.1"), Some("naa.3")]));
        assert_eq!(is_same_device(&names, &other), Some(false));
        let unnamed = names_in(&sysfs([Some("naa.1"), None]));
        assert_eq!(unnamed, ["dm/uuid LVM-x"]);
        assert_eq!(is_same_device(&unnamed, &unnamed), None);
    }

    #[test]
    fn a_partition_elsewhere_on_the_same_disk_is_another_place_for_a_volume() {
        let (one, other) =
            (sysfs([Some("naa.1"), Some("naa.2")]), sysfs([Some("naa.1"), Some("naa.2")]));
        fs::write(other.path().join("sda/sda3/start"), "4096\n").unwrap();
        assert_eq!(is_same_device(&names_in(&one), &names_in(&other)), Some(false));
        fs::remove_file(other.path().join("sda/sda3/start")).unwrap();
        assert_eq!(is_same_device(&names_in(&one), &names_in(&other)), None);
    }

    #[test]
    fn what_is_below_a_device_is_found_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["vdb/vdb1", "dm-0/slaves", "loop0/loop", "loop0/loop0p1", "cciss!c0d0/p1"] {
            fs::create_dir_all(place(name)).unwrap();
        }
        for partition in ["vdb/vdb1", "loop0/loop0p1", "cciss!c0d0/p1"] {
            fs::write(place(partition).join("partition"), "1\n").unwrap();
        }
        std::os::unix::fs::symlink(place("vdb/vdb1"), place("dm-0/slaves/vdb1")).unwrap();
        fs::write(place("loop0/loop/backing_file"), "/srv/a disk.raw\n").unwrap();
        for (name, expected) in [
            ("vdb", &[][..]),
            ("vdb/vdb1", &["/dev/vdb"]),
            ("dm-0", &["/dev/vdb1"]),
            ("loop0", &["/srv/a disk.raw"]),
            ("loop0/loop0p1", &["/dev/loop0", "/srv/a disk.raw"]),
            ("cciss!c0d0/p1", &["/dev/cciss/c0d0"]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(below(&place(name).canonicalize().unwrap()), expected, "{name}");
        }
        let file = folder.path().join("disk.raw");
        fs::write(&file, "").unwrap();
        assert_eq!(with_disks_below(&file).len(), 1, "a file is all there is");
    }

    #[test]
    fn a_device_has_one_of_the_names() {
        // Any block devices of this host; there may be none.
        let devices = fs::read_dir("/sys/dev/block").into_iter().flatten().flatten();
        for device in devices {
            let name = device.file_name().into_string().unwrap();
            let numbers: Vec<u64> = name.split(':').map(|number| number.parse().unwrap()).collect();
            let names = names_of(nix::sys::stat::makedev(numbers[0], numbers[1]));
            assert!(names.iter().any(|name| name.starts_with("boot ")), "{names:?}");
            assert!(DiskProof::Device(names).is_bounded());
        }
    }
}
