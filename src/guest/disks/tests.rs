//! A guest with a disk, both ways, with KVM but without a network.

use std::os::unix::fs::FileExt;

use migrate::{DestinationGuest, Refusal};
use uuid::Uuid;
use vmm_core::VmOptions;
use vmm_core::virtio::block::{Access, BlockConfig};

use super::*;
use crate::guest::console::Console;
use crate::guest::machine::{Machine, shape_of};

const MIB: u64 = 1 << 20;
const MEMORY_CHUNKS: usize = 256;

/// A machine of 64 MiB with these disks behind a source of entropy.
fn machine(disks: &[&Path]) -> SharedMachine {
    let mut shape = VmShape::for_host(64 * MIB, 1).unwrap();
    shape.devices.push(DeviceConfig::Rng);
    for disk in disks {
        let config = BlockConfig::new(disk, Access::ReadWrite, "").unwrap();
        shape.devices.push(DeviceConfig::Block(config));
    }
    create(shape)
}

fn create(shape: VmShape) -> SharedMachine {
    let folder = tempfile::tempdir().unwrap();
    let console = Console::log(folder.path().join("console.log"));
    let name = "web".parse().unwrap();
    Arc::new(
        Machine::create(name, Uuid::from_u128(3), shape, &VmOptions::default(), &console).unwrap(),
    )
}

/// Two folders, and a disk of 600 KiB in the first with content in its last page.
fn scene() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (here, there) = (root.join("here"), root.join("there"));
    for folder in [&here, &there] {
        std::fs::create_dir(folder).unwrap();
    }
    let disk = std::fs::File::create(here.join("disk.raw")).unwrap();
    disk.set_len(600 << 10).unwrap();
    disk.write_all_at(&[7; 512], (600 << 10) - 512).unwrap();
    (folder, here.join("disk.raw"), there.join("disk.raw"))
}

fn departing(from: &Path, to: &Path) -> Departing {
    let paths = [(from.to_owned(), to.to_owned())].into();
    Departing::new(machine(&[from]), Some(&CopyDisks { paths, replace: false })).unwrap()
}

fn expected(guest: &GuestDescription, folders: &[&Path]) -> Result<VmShape, Refusal> {
    let folders: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
    let mut shape = shape_of(guest)?;
    expect(guest, &mut shape, &DiskFolders::new(&folders)).map(|()| shape)
}

#[test]
fn content_goes_along_behind_memory() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    let description = source.describe();
    assert_eq!(description.chunks(), MEMORY_CHUNKS + 3);
    let shape = expected(&description, &[to.parent().unwrap()]).unwrap();
    shape.check_host().unwrap();
    let target = Arriving::new(create(shape), &description).unwrap();

    source.start_dirty_log().unwrap();
    let mut words = vec![u64::MAX; description.chunks()];
    source.leave_out(&mut words).unwrap();
    let disk_words = &words[MEMORY_CHUNKS..];
    assert_eq!(disk_words, [0, 0, 1 << 21], "holes are left out");
    for (chunk, word) in words.iter().enumerate().skip(MEMORY_CHUNKS - 1) {
        for page in (0..64).filter(|page| word >> page & 1 == 1) {
            let mut content = [0; 4096];
            source.copy_out(chunk, page, &mut content).unwrap();
            target.copy_in(chunk, page, &content).unwrap();
        }
    }
    assert!(!to.exists(), "half a disk has no name");
    target.adopt().unwrap();
    assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
    source.stop_dirty_log().unwrap();
}

#[test]
fn words_are_dealt_out_between_memory_and_disks() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    let disk = Arc::clone(source.machine.vm().disk(1).unwrap());
    source.start_dirty_log().unwrap();
    source.machine.vm().ram().copy_in(MEMORY_CHUNKS - 1, 3, &[1; 4096]).unwrap();
    let mut words = vec![0; MEMORY_CHUNKS + 3];
    source.collect_dirty(&mut words).unwrap();
    source.rearm_dirty(MEMORY_CHUNKS - 1, &words[MEMORY_CHUNKS - 1..]).unwrap();
    disk.rearm(0, &[u64::MAX; 3]);
    let mut again = vec![0; MEMORY_CHUNKS + 3];
    source.collect_dirty(&mut again).unwrap();
    assert_eq!(again[MEMORY_CHUNKS - 1..], [0; 4]);
    source.stop_dirty_log().unwrap();
}

#[test]
fn only_what_the_node_allows_is_made() {
    let (folder, from, to) = scene();
    let description = departing(&from, &to).describe();
    let refusal = |guest: &GuestDescription, folders: &[&Path]| {
        expected(guest, folders).unwrap_err().to_string()
    };
    assert!(refusal(&description, &[]).contains("takes no disks"));
    assert!(refusal(&description, &[from.parent().unwrap()]).contains("--disk-path"));
    let contradiction = |change: fn(&mut DiskCopy)| {
        let mut guest = description.clone();
        change(&mut guest.disks[0]);
        refusal(&guest, &[folder.path()])
    };
    assert!(contradiction(|disk| disk.device = 0).contains("contradicts"));
    assert!(contradiction(|disk| disk.device = 99).contains("contradicts"));
    assert!(contradiction(|disk| disk.bytes += 512).contains("contradicts"));
    let mut twice = description.clone();
    twice.disks.push(description.disks[0].clone());
    assert!(refusal(&twice, &[folder.path()]).contains("two of its disks"));
}

#[test]
fn what_is_asked_of_disks_that_are_not_there_is_refused() {
    let (_folder, from, to) = scene();
    let ask = |from: &Path, to: &Path, disks: &[&Path]| {
        let paths = [(from.to_owned(), to.to_owned())].into();
        let wanted = CopyDisks { paths, replace: false };
        Departing::new(machine(disks), Some(&wanted)).unwrap_err()
    };
    assert!(ask(&to, &from, &[&from]).contains("has no disk"));
    assert!(ask(&from, Path::new("disk.raw"), &[&from]).contains("absolute"));
}
