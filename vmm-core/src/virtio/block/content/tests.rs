//! The content of a disk in a file.

use std::os::unix::fs::FileExt;

use super::*;
use crate::sys::file;
use crate::virtio::block::disk::Disk;

fn content_of(file: &tempfile::NamedTempFile) -> DiskContent {
    let config = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
    DiskContent::new(&config, Disk::open(&config).unwrap().store())
}

#[test]
fn holes_are_distinguished_from_data() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * CHUNK_BYTES as u64 + 512).unwrap();
    file.as_file().write_all_at(&[7; 5000], CHUNK_BYTES as u64 + 8192).unwrap();
    file.as_file().write_all_at(&[7; 512], 4 * CHUNK_BYTES as u64).unwrap();
    let content = content_of(&file);
    let mut words = vec![u64::MAX; content.chunks()];
    content.find_data(&mut words).unwrap();
    assert_eq!(words, [0, 0b1100, 0, 0, 1]);
    assert!(content.allocated_bytes() < 2 * CHUNK_BYTES as u64);
}

#[test]
fn content_is_read_and_written_up_to_the_end_of_the_disk() {
    let (from, to) = (tempfile::NamedTempFile::new(), tempfile::NamedTempFile::new());
    let (from, to) = (from.unwrap(), to.unwrap());
    for file in [&from, &to] {
        file.as_file().set_len(CHUNK_BYTES as u64 + 4608).unwrap();
    }
    from.as_file().write_all_at(&[9; 4608], CHUNK_BYTES as u64).unwrap();
    let (source, target) = (content_of(&from), content_of(&to));
    let mut buf = vec![1; 3 * 4096];
    source.copy_out(1, 0, &mut buf).unwrap();
    assert_eq!((&buf[..4608], &buf[4608..]), (&[9; 4608][..], &[0; 7680][..]));
    target.copy_in(1, 0, &buf).unwrap();
    assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
    target.zero(1, 0b11).unwrap();
    assert!(std::fs::read(&to).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::metadata(&to).unwrap().len(), CHUNK_BYTES as u64 + 4608);
}

#[test]
fn an_error_of_a_flush_is_reported_by_every_later_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let content = content_of(&file);
    content.sync().unwrap();
    content.note_synced(Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap_err();
    for _ in 0..2 {
        let error = content.sync().unwrap_err();
        assert!(
            matches!(&error, DeviceError::Flush { cause, .. } if cause.raw_os_error() == Some(libc::ENOSPC))
        );
    }
    assert!(matches!(content.seal(), Err(DeviceError::Flush { .. })));
    content_of(&file).sync().unwrap();
}

#[test]
fn ranges_outside_the_disk_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(CHUNK_BYTES as u64).unwrap();
    let content = content_of(&file);
    assert!(content.copy_in(1, 0, &[0; 4096]).is_err());
    assert!(content.copy_in(0, 63, &[0; 8192]).is_err());
    assert!(content.copy_out(usize::MAX, usize::MAX, &mut [0; 4096]).is_err());
    assert!(content.zero(1, 1).is_err());
}

#[test]
fn an_arriving_disk_has_no_name_until_it_is_adopted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [0; 8192]).unwrap();
    let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
    std::fs::remove_file(&path).unwrap();
    let arriving = config.arriving(Occupied::Refuse);
    let arrive = || {
        let arriving = arriving.made().unwrap();
        let disk = Disk::open(&arriving).unwrap();
        DiskContent::new(&arriving, disk.store())
    };
    let content = arrive();
    content.copy_in(0, 0, &[3; 4096]).unwrap();
    drop(content);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");

    let (content, rival) = (arrive(), arrive());
    content.copy_in(0, 0, &[4; 4096]).unwrap();
    content.check_adoption().unwrap();
    DiskContent::adopt(&[&content]).unwrap();
    DiskContent::adopt(&[&content]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [[4; 4096], [0; 4096]].concat());
    assert!(matches!(rival.check_adoption(), Err(DeviceError::DiskExists { .. })));
    assert!(matches!(DiskContent::adopt(&[&rival]), Err(DeviceError::DiskExists { .. })));
}

#[test]
fn an_older_file_is_replaced_if_permitted_and_unused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [1; 8192]).unwrap();
    let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
    let arriving = config.arriving(Occupied::Replace).made().unwrap();
    let disk = Disk::open(&arriving).unwrap();
    let content = DiskContent::new(&arriving, disk.store());

    let mut user = Disk::open(&config).unwrap();
    user.take_over().unwrap();
    assert!(matches!(content.check_adoption(), Err(DeviceError::DiskInUse { .. })));
    assert!(matches!(DiskContent::adopt(&[&content]), Err(DeviceError::DiskInUse { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), [1; 8192]);
    user.release();
    content.copy_in(0, 0, &[5; 8192]).unwrap();
    DiskContent::adopt(&[&content]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [5; 8192]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn either_all_of_several_disks_get_their_names_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let arrive = |name: &str, occupied| {
        let old = tempfile::NamedTempFile::new().unwrap();
        old.as_file().set_len(4096).unwrap();
        let config = BlockConfig::new(old.path(), Access::ReadWrite, "").unwrap();
        let arriving = config.at(&path(name)).arriving(occupied).made().unwrap();
        let disk = Disk::open(&arriving).unwrap();
        (DiskContent::new(&arriving, disk.store()), disk)
    };
    std::fs::write(path("replaced"), "old").unwrap();
    std::fs::write(path("taken"), "old").unwrap();
    let (new, _) = arrive("new", Occupied::Refuse);
    let (replaced, _) = arrive("replaced", Occupied::Replace);
    let (taken, _) = arrive("taken", Occupied::Refuse);
    let outcome = DiskContent::adopt(&[&new, &replaced, &taken]);
    assert!(matches!(outcome, Err(DeviceError::DiskExists { .. })), "{outcome:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(std::fs::read(path("replaced")).unwrap(), b"old");

    std::fs::remove_file(path("taken")).unwrap();
    DiskContent::adopt(&[&new, &replaced, &taken]).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    for name in ["new", "replaced", "taken"] {
        assert_eq!(std::fs::read(path(name)).unwrap(), [0; 4096], "{name}");
    }
}

#[test]
fn a_disk_arrives_under_a_temporary_name_where_every_file_needs_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    std::fs::write(&path, [1; 4096]).unwrap();
    let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
    std::fs::remove_file(&path).unwrap();
    let arrive = |occupied| {
        let arriving = config.arriving(occupied).made_with_a_name();
        let disk = Disk::open(&arriving).unwrap();
        (DiskContent::new(&arriving, disk.store()), arriving)
    };
    let (content, arriving) = arrive(Occupied::Refuse);
    content.copy_in(0, 0, &[3; 4096]).unwrap();
    assert!(!path.exists() && files() == 1);
    arriving.abandon();
    assert_eq!(files(), 0, "a disk that does not arrive leaves nothing");

    let (content, arriving) = arrive(Occupied::Refuse);
    std::fs::write(&path, "another").unwrap();
    let refused = DiskContent::adopt(&[&content]);
    assert!(matches!(refused, Err(DeviceError::DiskExists { .. })), "{refused:?}");
    std::fs::remove_file(&path).unwrap();
    content.copy_in(0, 0, &[4; 4096]).unwrap();
    DiskContent::adopt(&[&content]).unwrap();
    arriving.abandon();
    assert_eq!((std::fs::read(&path).unwrap(), files()), (vec![4; 4096], 1));
    drop((content, arriving));

    let (content, _arriving) = arrive(Occupied::Replace);
    content.copy_in(0, 0, &[5; 4096]).unwrap();
    DiskContent::adopt(&[&content]).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), files()), (vec![5; 4096], 1));
}

#[test]
fn names_that_were_reserved_are_free_again_if_another_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("taken"), [1; 4096]).unwrap();
    let config = BlockConfig::new(&path("taken"), Access::ReadWrite, "").unwrap();
    let arrive = |name: &str| {
        let arriving = config.at(&path(name)).arriving(Occupied::Refuse).made_with_a_name();
        let disk = Disk::open(&arriving).unwrap();
        DiskContent::new(&arriving, disk.store())
    };
    let disks = ["new", "same", "same"].map(arrive);
    let refused = DiskContent::adopt(&disks.each_ref());
    assert!(matches!(refused, Err(DeviceError::DiskExists { .. })), "{refused:?}");
    drop(disks);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_arrived_disk_is_reserved_for_its_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [1; 4096]).unwrap();
    let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
    let arriving = config.arriving(Occupied::Replace);
    let arrive = || {
        let arriving = arriving.made().unwrap();
        let disk = Disk::open(&arriving).unwrap();
        (DiskContent::new(&arriving, disk.store()), disk)
    };
    let ((first, mut own), (second, _)) = (arrive(), arrive());
    DiskContent::adopt(&[&first]).unwrap();
    let stranger = Disk::open(&config).unwrap();
    let taken = file::lock(stranger.file(), file::Lock::Exclusive);
    assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let refused = DiskContent::adopt(&[&second]);
    assert!(matches!(refused, Err(DeviceError::DiskInUse { .. })), "{refused:?}");
    own.take_over().unwrap();
}

#[test]
fn a_disk_with_a_long_name_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d".repeat(255));
    std::fs::write(&path, [1; 4096]).unwrap();
    let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
    let arriving = config.arriving(Occupied::Replace).made().unwrap();
    let disk = Disk::open(&arriving).unwrap();
    DiskContent::adopt(&[&DiskContent::new(&arriving, disk.store())]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
    let config = config.at(&folder.path().join("d".repeat(256)));
    let config = config.arriving(Occupied::Replace).made().unwrap();
    let disk = Disk::open(&config).unwrap();
    let content = DiskContent::new(&config, disk.store());
    let refused = content.check_adoption().unwrap_err().to_string();
    assert!(refused.contains("too long"), "{refused}");
}
