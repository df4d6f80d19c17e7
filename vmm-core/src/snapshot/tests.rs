//! Saving to files and restoring from intact and damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::*;
use crate::boot::vmgenid;
use crate::testing::*;
use crate::{Error, RunState, Vm};

const NO_COPIES: DiskCopies = DiskCopies { paths: BTreeMap::new(), modified_unix_s: 0 };

/// A paused guest of 16 MiB that counts, with data above its program.
fn counting_guest() -> Vm {
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0], [DATA + 4096, 0]]);
    vm.ram().write((16 << 20) - 4096, &[0xa5; 4096]).unwrap();
    vm.resume().unwrap();
    wait_for_more(&vm, DATA, 1000);
    vm.pause().unwrap();
    vm
}

fn saved_file(folder: &Path) -> Vec<u8> {
    let path = folder.join("guest");
    save(&counting_guest(), &path, &NO_COPIES).unwrap();
    fs::read(path).unwrap()
}

/// Returns the error of restoring from `bytes`.
fn failure(folder: &Path, bytes: &[u8]) -> SnapshotError {
    let path = folder.join("broken");
    fs::write(&path, bytes).unwrap();
    match restore_from(&path) {
        Err(Error::Snapshot(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restored_guest_has_the_same_memory_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let vm = counting_guest();
    let report = save(&vm, &path, &NO_COPIES).unwrap();
    assert_eq!(vm.run_state(), RunState::Paused, "the guest that was saved can go on too");
    assert_eq!(report.file_bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(report.pages + report.zero_pages, 4096);
    assert!(report.pages < 50, "zero pages are left out: {report:?}");

    assert_eq!(read_guest(&path).unwrap().0, *vm.shape());
    let restored = restore_from(&path).unwrap();
    let (mut left, mut right) = (vec![0; 16 << 20], vec![0; 16 << 20]);
    vm.ram().read(0, &mut left).unwrap();
    restored.ram().read(0, &mut right).unwrap();
    assert!(left == right, "memory differs");
    let before = word(&restored, DATA);
    restored.resume().unwrap();
    wait_for_more(&restored, DATA, before);
}

/// The state of the second 8259, which keeps the edge of a masked line; the I/O APIC drops it.
fn second_8259(vm: &Vm) -> Vec<u8> {
    crate::codec::encode(&vm.save_state().unwrap().irqchip.pic_slave).unwrap()
}

#[test]
fn each_restored_guest_has_a_generation_of_its_own_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let vm = counting_guest();
    vmgenid::write(vm.ram(), Uuid::nil()).unwrap();
    save(&vm, &path, &NO_COPIES).unwrap();
    let id = |vm: &Vm| [word(vm, vmgenid::ID), word(vm, vmgenid::ID + 8)];
    assert_eq!(id(&vm), [0, 0], "the guest that was saved can go on as it was");

    let [one, two] = [(), ()].map(|()| restore_from(&path).unwrap());
    assert!(id(&one) != id(&two) && id(&one) != [0, 0] && id(&two) != [0, 0]);
    assert!(second_8259(&one) != second_8259(&vm), "an interrupt waits");
}

#[test]
fn a_running_guest_is_not_saved_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let vm = counting_guest();
    vm.resume().unwrap();
    let error = save(&vm, &folder.path().join("guest"), &NO_COPIES).unwrap_err();
    assert_eq!(error.to_string(), "cannot save: the guest is running");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_failed_save_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let vm = counting_guest();
    let error =
        save(&vm, &folder.path().join("missing/guest"), &NO_COPIES).unwrap_err().to_string();
    assert!(error.contains("missing/guest: No such file or directory"), "{error}");
    // A file replaces only files.
    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    assert!(matches!(
        save(&vm, &occupied, &NO_COPIES),
        Err(Error::Snapshot(SnapshotError::Write { .. }))
    ));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_device_or_a_socket_is_not_replaced_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    for path in [&socket, &link] {
        let error = save(&counting_guest(), path, &NO_COPIES).unwrap_err().to_string();
        assert!(error.ends_with("something that is not a file has this name"), "{error}");
        assert!(!fs::metadata(path).unwrap().is_file());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn files_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for foreign in [&b""[..], b"LIGHTER", b"#!/bin/sh\nexit 1\n", &[0; 4096]] {
        assert!(matches!(failure(folder.path(), foreign), SnapshotError::Foreign { .. }));
    }
    let template = [&format::TEMPLATE_MAGIC[..], &[0; 4096]].concat();
    let error = failure(folder.path(), &template).to_string();
    assert!(error.contains("is a template: `lighter run --template "), "{error}");
    let missing = restore_from(Path::new("/nowhere/guest")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read /nowhere/guest: No such file"));
    let mut newer = saved_file(folder.path());
    newer[8] = 3;
    let error = failure(folder.path(), &newer).to_string();
    assert!(error.contains("has snapshot format 3, this program knows 2"), "{error}");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = saved_file(folder.path());
    for cut in (12..good.len()).step_by(4099).chain(good.len() - 25..good.len()) {
        let error = failure(folder.path(), &good[..cut]);
        assert!(matches!(error, SnapshotError::Truncated { .. }), "cut at {cut}: {error}");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let good = saved_file(folder.path());
    for at in (12..good.len()).step_by(2053).chain(good.len() - 24..good.len()) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        let error = failure(folder.path(), &bytes);
        let found =
            matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Truncated { .. });
        assert!(found, "byte {at}: {error}");
    }
    let mut longer = good;
    longer.push(0);
    assert!(failure(folder.path(), &longer).to_string().ends_with("something follows its end"));
}

#[test]
fn a_pipe_or_a_folder_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, what) in [(pipe.as_path(), "it is a pipe"), (folder.path(), "it is a folder")] {
        let refused = restore_from(path).unwrap_err().to_string();
        assert!(refused.contains(what) && refused.contains("not a file"), "{refused}");
        assert!(read_guest(path).is_err());
    }
}
