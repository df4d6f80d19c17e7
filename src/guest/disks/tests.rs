//! A guest with a disk as source and as destination, with KVM but without a network.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use migrate::{DestinationGuest, Refusal};
use uuid::Uuid;
use vmm_core::virtio::QueuePosition;
use vmm_core::virtio::block::{Access, BlockConfig};
use vmm_core::{DeviceConfig, VmOptions};

use super::*;
use crate::disk_places::DiskPlaces;
use crate::guest::console::Console;
use crate::guest::machine::{Machine, shape_of};

const MIB: u64 = 1 << 20;
const MEMORY_CHUNKS: usize = 256;

/// A machine of 64 MiB with these disks after an entropy source.
fn machine(disks: &[&Path]) -> SharedMachine {
    let mut shape = VmShape::for_host(64 * MIB, 1).unwrap();
    shape.devices.push(DeviceConfig::Rng);
    for disk in disks {
        let config = BlockConfig::new(disk, Access::ReadWrite, "").unwrap();
        shape.devices.push(DeviceConfig::Block(config));
    }
    create(&shape)
}

fn create(shape: &VmShape) -> SharedMachine {
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

/// Id of the tests' migration; any id would do.
const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(7));

fn copied(wanted: &CopyDisks) -> Disks<'_> {
    Disks { copied: Some(wanted), are_vouched: false }
}

fn departing(from: &Path, to: &Path) -> Departing {
    let paths = [(from.to_owned(), to.to_owned())].into();
    let wanted = CopyDisks { paths, ..CopyDisks::default() };
    Departing::new(machine(&[from]), "host-b", MIGRATION, copied(&wanted)).unwrap()
}

fn expected(guest: &GuestDescription, folders: &[&Path]) -> Result<VmShape, Refusal> {
    let folders: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
    let mut shape = shape_of(guest)?;
    expect(guest, &mut shape, &DiskPlaces::new(folders, Vec::new())).map(|()| shape)
}

#[test]
fn disk_chunks_follow_memory_chunks() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    let description = source.describe();
    assert_eq!(description.chunks(), MEMORY_CHUNKS + 3);
    let shape = expected(&description, &[to.parent().unwrap()]).unwrap();
    shape.check_host().unwrap();
    let target = Arriving::new(create(&shape), &description, None, None).unwrap();

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
fn a_copied_disk_is_noted_as_gone_while_its_guest_is_released() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    source.start_dirty_log().unwrap();
    let open = || BlockConfig::new(&from, Access::ReadWrite, "");
    source.release().unwrap();
    assert!(open().unwrap_err().to_string().contains("has moved to host-b"));
    source.stop_dirty_log().unwrap();
    open().unwrap();
}

#[test]
fn a_copied_disk_that_is_only_read_stays_usable_here() {
    let (_folder, from, to) = scene();
    let base = from.with_file_name("base.img");
    std::fs::copy(&from, &base).unwrap();
    let read_only = || BlockConfig::new(&base, Access::ReadOnly, "");
    let written = BlockConfig::new(&from, Access::ReadWrite, "").unwrap();
    let mut shape = VmShape::for_host(64 * MIB, 1).unwrap();
    let disks = [read_only().unwrap(), written];
    shape.devices.extend(disks.into_iter().map(DeviceConfig::Block));
    let paths = [(from.clone(), to)].into();
    let wanted = CopyDisks { paths, ..CopyDisks::default() };
    let source = Departing::new(create(&shape), "host-b", MIGRATION, copied(&wanted)).unwrap();
    assert_eq!(source.describe().disks.len(), 2, "both are copied");
    source.release().unwrap();
    read_only().unwrap();
    BlockConfig::new(&from, Access::ReadWrite, "").unwrap_err();
    source.stop_dirty_log().unwrap();
    BlockConfig::new(&from, Access::ReadWrite, "").unwrap();
}

#[test]
fn one_disk_is_copied_and_another_is_shared() {
    let (_folder, from, to) = scene();
    let shared = from.with_file_name("shared.raw");
    std::fs::copy(&from, &shared).unwrap();
    let paths = [(from.clone(), to.clone())].into();
    let wanted = CopyDisks { only: [from.clone()].into(), paths, replace: false };
    let machine = machine(&[&shared, &from]);
    let source = Departing::new(machine, "host-b", MIGRATION, copied(&wanted)).unwrap();
    let description = source.describe();
    assert_eq!(description.disks.iter().map(|disk| disk.device).collect::<Vec<_>>(), [2]);
    let shape = expected(&description, &[to.parent().unwrap()]).unwrap();
    shape.check_shared_disks().unwrap();

    let departures = source.departures(&"web".parse().unwrap());
    let path = |departure: &Departure| departure.disks[0].path.clone();
    let recorded: Vec<_> = departures.iter().map(|it| (it.is_shared, path(it))).collect();
    assert_eq!(recorded, [(false, from.clone()), (true, shared.clone())]);
    source.release().unwrap();
    BlockConfig::new(&from, Access::ReadWrite, "").unwrap_err();
    BlockConfig::new(&shared, Access::ReadWrite, "").unwrap();

    // At the destination, another file has the path of the shared disk.
    std::fs::remove_file(&shared).unwrap();
    std::fs::copy(&from, &shared).unwrap();
    assert!(shape.check_shared_disks().unwrap_err().to_string().contains("--copy-disks"));
}

#[test]
fn a_guest_that_arrives_paused_has_its_disks_locked() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    let description = source.describe();
    let shape = expected(&description, &[to.parent().unwrap()]).unwrap();
    let copied = Arriving::new(create(&shape), &description, None, None).unwrap();
    copied.adopt().unwrap();
    assert!(machine(&[&to]).vm().take_over().unwrap_err().to_string().contains("in use"));

    // A disk on storage that both hosts share.
    let description = Departing::new(machine(&[&from]), "host-b", MIGRATION, Disks::default())
        .unwrap()
        .describe();
    let shared = Arriving::new(machine(&[&from]), &description, None, None).unwrap();
    shared.adopt().unwrap();
    assert!(machine(&[&from]).vm().take_over().unwrap_err().to_string().contains("in use"));
    drop(shared);
    machine(&[&from]).vm().take_over().unwrap();
}

/// Where a driver of the disk would have its data structures, as page numbers.
const TABLE: u64 = 1;
const AVAILABLE: u64 = 2;
const USED: u64 = 3;
const REQUEST: u64 = 4;
const DATA: u64 = 5;
const CODE: u64 = 6;

/// Prepares the guest of `machine` to halt, with a request in its queue that writes page `page` of
/// the disk in slot 1. The device handles the request when the guest resumes.
fn prepare_write(machine: &Machine, page: u64) {
    let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
        let (flags, next) = (flags.to_le_bytes(), next.to_le_bytes());
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags, &next].concat()
    };
    let (follows, written) = (1, 2);
    let table = [
        descriptor(REQUEST * 4096, 16, follows, 1),
        descriptor(DATA * 4096, 4096, follows, 2),
        descriptor(REQUEST * 4096 + 16, 1, written, 0),
    ];
    let write = [&1_u64.to_le_bytes()[..], &(page * 8).to_le_bytes(), &[0xee]].concat();
    let one_request = [0, 0, 1, 0, 0, 0];
    let content = [
        (TABLE, &table.concat()[..]),
        (AVAILABLE, &one_request),
        (REQUEST, &write),
        (DATA, &[9; 4096]),
        (CODE, &[0xf4; 16]), // hlt
    ];
    for (at, bytes) in content {
        let mut page = [0; 4096];
        page[..bytes.len()].copy_from_slice(bytes);
        machine.vm().ram().copy_in(0, at as usize, &page).unwrap();
    }
    let mut state = machine.vm().save_state().unwrap();
    let vcpu = &mut state.vcpus[0];
    (vcpu.sregs.cs.base, vcpu.sregs.cs.selector, vcpu.regs.rip) = (0, 0, CODE * 4096);
    let disk = &mut state.devices[1];
    (disk.transport.status, disk.transport.driver_features) = (0xf, 1 << 32);
    let queue = &mut disk.transport.queues[0];
    (queue.size, queue.ready) = (4, true);
    (queue.descriptors, queue.available, queue.used) =
        (TABLE * 4096, AVAILABLE * 4096, USED * 4096);
    disk.backend.positions[0] = Some(QueuePosition { next_available: 0, next_used: 0 });
    machine.vm().load_state(&state).unwrap();
}

/// Resumes the guest until its request is answered.
fn write_prepared(machine: &Machine) {
    machine.vm().resume().unwrap();
    let mut page = [0xee; 4096];
    let deadline = Instant::now() + Duration::from_secs(20);
    while page[16] == 0xee {
        assert!(Instant::now() < deadline, "the disk does not answer");
        std::thread::yield_now();
        machine.vm().ram().copy_out(0, REQUEST as usize, &mut page).unwrap();
    }
    assert_eq!(page[16], 0, "the disk refuses");
    machine.vm().pause().unwrap();
}

#[test]
fn dirty_words_are_split_between_memory_and_disks() {
    let (_folder, from, to) = scene();
    let source = departing(&from, &to);
    prepare_write(&source.machine, 69);
    source.start_dirty_log().unwrap();
    let rearm_all = || {
        let words = [u64::MAX; MEMORY_CHUNKS + 3];
        source.rearm_dirty(0, &words).unwrap();
    };
    let collected = || {
        let mut words = vec![0; MEMORY_CHUNKS + 3];
        source.collect_dirty(&mut words).unwrap();
        words[MEMORY_CHUNKS - 1..].to_vec()
    };
    rearm_all();
    assert_eq!(collected(), [0; 4]);

    write_prepared(&source.machine);
    source.machine.vm().ram().copy_in(MEMORY_CHUNKS - 1, 3, &[1; 4096]).unwrap();
    assert_eq!(collected(), [1 << 3, 0, 1 << 5, 0]);
    assert_eq!(std::fs::read(&from).unwrap()[69 * 4096..][..4096], [9; 4096]);

    source.rearm_dirty(MEMORY_CHUNKS - 1, &[u64::MAX]).unwrap();
    assert_eq!(collected(), [0, 0, 1 << 5, 0], "memory alone");
    source.rearm_dirty(MEMORY_CHUNKS + 1, &[u64::MAX]).unwrap();
    assert_eq!(collected(), [0; 4]);
    source.stop_dirty_log().unwrap();
}

#[test]
fn only_permitted_disks_are_created() {
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

    // Nor onto a disk that both hosts share.
    let shared = from.with_file_name("shared.raw");
    std::fs::copy(&from, &shared).unwrap();
    let paths = [(from.clone(), shared.clone())].into();
    let wanted = CopyDisks { only: [from.clone()].into(), paths, replace: true };
    let machine = machine(&[&from, &shared]);
    let source = Departing::new(machine, "host-b", MIGRATION, copied(&wanted)).unwrap();
    assert!(refusal(&source.describe(), &[folder.path()]).contains("two of its disks"));
}

#[test]
fn invalid_disk_copies_are_refused() {
    let (_folder, from, to) = scene();
    let ask_for = |only: &[&Path], from: &Path, to: &Path, disks: &[&Path]| {
        let only = only.iter().map(|path| path.to_path_buf()).collect();
        let paths = [(from.to_owned(), to.to_owned())].into();
        let wanted = CopyDisks { only, paths, ..CopyDisks::default() };
        Departing::new(machine(disks), "host-b", MIGRATION, copied(&wanted)).unwrap_err()
    };
    let ask = |from: &Path, to: &Path, disks: &[&Path]| ask_for(&[], from, to, disks);
    assert!(ask(&to, &from, &[&from]).contains("has no disk"));
    assert!(ask_for(&[&to], &from, &to, &[&from]).contains("has no disk"));
    let other = from.with_file_name("other.raw");
    std::fs::copy(&from, &other).unwrap();
    let refused = ask_for(&[&other], &from, &to, &[&from, &other]);
    assert!(refused.contains("disk.raw is not copied"), "{refused}");
    assert!(ask(&from, Path::new("disk.raw"), &[&from]).contains("absolute"));
}
