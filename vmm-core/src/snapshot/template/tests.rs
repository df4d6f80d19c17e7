//! Clones that run, the memory they share, and files that are not templates.

use std::fs::{self, Permissions};
use std::io::sink;
use std::os::unix::fs::PermissionsExt;

use uuid::Uuid;

use super::super::DiskCopies;
use super::*;
use crate::Error;
use crate::boot::vmgenid;
use crate::memory::{HugePages, Prealloc};
use crate::testing::{
    COUNT_IN_MEMORY, DATA, empty_vm, restore_from, shape, vm_with, wait_for_more, word,
};
use crate::virtio::DeviceConfig;
use crate::virtio::net::NetConfig;

fn clone_of(template: &Template) -> Vm {
    template.start(&CloneConfig::default(), Box::new(sink())).unwrap()
}

/// Returns a template of a guest that counts in memory, with its folder and the count when it was
/// saved.
fn counting() -> (tempfile::TempDir, PathBuf, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counting.template");
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0]]);
    vm.resume().unwrap();
    wait_for_more(&vm, DATA, 10);
    vm.pause().unwrap();
    let report = save_template(&vm, &path).unwrap();
    assert_eq!(report.pages + report.zero_pages, 4096);
    assert_eq!(report.file_bytes, fs::metadata(&path).unwrap().len());
    (folder, path, word(&vm, DATA))
}

#[test]
fn clones_continue_from_the_template_independently() {
    let (_folder, path, counted) = counting();
    let before = fs::read(&path).unwrap();
    let template = Template::open(&path).unwrap();
    let (one, two) = (clone_of(&template), clone_of(&template));
    assert!(one.ram().is_from_template());
    assert_eq!([word(&one, DATA), word(&two, DATA)], [counted; 2]);
    one.resume().unwrap();
    wait_for_more(&one, DATA, counted);
    assert_eq!(word(&two, DATA), counted, "the other has its own memory");
    two.resume().unwrap();
    wait_for_more(&two, DATA, counted);
    one.stop();
    two.stop();
    assert!(fs::read(&path).unwrap() == before, "the file is as it was");
}

#[test]
fn each_clone_has_a_generation_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template");
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0]]);
    vmgenid::write(vm.ram(), Uuid::nil()).unwrap();
    save_template(&vm, &path).unwrap();
    let template = Template::open(&path).unwrap();
    let ids = [(), ()].map(|()| word(&clone_of(&template), vmgenid::ID));
    assert!(ids[0] != ids[1] && !ids.contains(&0), "{ids:x?}");
}

#[test]
fn holes_are_omitted_and_read_as_zeros() {
    let (_folder, path, _) = counting();
    let there = fs::metadata(&path).unwrap();
    assert!(there.blocks() * 512 < 4 << 20, "{} bytes on disk", there.blocks() * 512);
    assert_eq!(word(&clone_of(&Template::open(&path).unwrap()), 12 << 20), 0);
}

#[test]
fn a_clone_is_saved_and_restored_as_any_guest() {
    let (folder, path, counted) = counting();
    let clone = clone_of(&Template::open(&path).unwrap());
    let file = folder.path().join("clone");
    super::super::save(&clone, &file, &DiskCopies::default()).unwrap();
    let restored = restore_from(&file).unwrap();
    assert_eq!(word(&restored, DATA), counted);
    assert!(!restored.ram().is_from_template(), "ordinary memory");
    let again = folder.path().join("again");
    save_template(&clone, &again).unwrap();
    assert_eq!(word(&clone_of(&Template::open(&again).unwrap()), DATA), counted);
}

#[test]
fn a_template_that_is_replaced_stays_what_it_was_for_its_clones() {
    let (_folder, path, counted) = counting();
    let clone = clone_of(&Template::open(&path).unwrap());
    save_template(&empty_vm(16, 1), &path).unwrap();
    assert_eq!(word(&clone, DATA), counted);
    assert_eq!(word(&clone_of(&Template::open(&path).unwrap()), DATA), 0);
}

#[test]
fn memory_that_a_clone_cannot_have_is_refused() {
    let (_folder, path, _) = counting();
    let template = Template::open(&path).unwrap();
    let memories = [
        MemoryConfig { huge_pages: HugePages::Pool2M, ..MemoryConfig::default() },
        MemoryConfig { prealloc: Prealloc::AtStart, ..MemoryConfig::default() },
    ];
    for memory in memories {
        let own = CloneConfig { memory, ..CloneConfig::default() };
        assert!(matches!(template.start(&own, Box::new(sink())), Err(Error::Memory(_))));
    }
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let (folder, path, _) = counting();
    let good = fs::read(&path).unwrap();
    let bad = folder.path().join("bad");
    let refusal = |bytes: &[u8]| {
        fs::write(&bad, bytes).unwrap();
        Template::open(&bad).unwrap_err().to_string()
    };
    for at in [20, 200, 2000] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(refusal(&bytes).contains("checksum"), "byte {at}");
    }
    assert!(refusal(&good[..good.len() - 1]).contains("cut off"));
    assert!(refusal(&good[..100]).contains("cut off"));
    assert!(refusal(&[&good[..], b"x"].concat()).contains("follows its end"));
    assert!(refusal(b"").contains("neither a saved guest nor a template"));
    let mut newer = good.clone();
    newer[8] = 9;
    assert!(refusal(&newer).contains("format 9"));
    let saved = folder.path().join("saved");
    super::super::save(&empty_vm(16, 1), &saved, &DiskCopies::default()).unwrap();
    assert!(
        Template::open(&saved)
            .unwrap_err()
            .to_string()
            .contains("is a saved guest: `lighter restore ")
    );
    assert!(restore_from(&path).is_err());
    let mut huge = good[..12].to_vec();
    huge.extend(u32::MAX.to_le_bytes());
    assert!(refusal(&huge).contains("section of"));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let (_folder, path, _) = counting();
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = Template::open(&path).unwrap_err().to_string();
        assert!(error.contains("other users can write it"), "{error}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    Template::open(&path).unwrap();
    let of = |owner, own| check_owner(Path::new("t"), owner, 0o600, own).is_ok();
    assert!(of(7, 7) && of(0, 7) && !of(8, 7) && !of(7, 0));
}

#[test]
fn a_guest_with_an_address_in_a_network_is_no_template() {
    let net = NetConfig::nowhere();
    let with = |device| VmShape { devices: vec![device], ..shape(16, 1) };
    let error = expect_no_network(&with(DeviceConfig::Net(net))).unwrap_err().to_string();
    assert!(error.contains("network devices"), "{error}");
    expect_no_network(&with(DeviceConfig::Vsock { cid: 3 })).unwrap();
}

#[test]
fn a_written_disk_is_not_shared_and_a_replacement_has_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str, bytes: u64, access| {
        let path = folder.path().join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        file.set_len(bytes).unwrap();
        BlockConfig::new(&path, access, "").unwrap()
    };
    let template_with = |access| {
        let devices = vec![DeviceConfig::Rng, DeviceConfig::Block(disk("a.raw", 1 << 20, access))];
        let shape = VmShape { devices, ..shape(16, 1) };
        let vm = Vm::create(&shape, Box::new(sink())).unwrap();
        let path = folder.path().join("template");
        save_template(&vm, &path).unwrap();
        Template::open(&path).unwrap()
    };
    clone_of(&template_with(Access::ReadOnly));

    let template = template_with(Access::ReadWrite);
    let with = |disks| {
        let own = CloneConfig { disks, ..CloneConfig::default() };
        template.start(&own, Box::new(sink())).map_err(|error| error.to_string())
    };
    let error = with(Vec::new()).unwrap_err();
    assert!(error.contains("a.raw") && error.contains("--disk"), "{error}");
    let own = disk("b.raw", 1 << 20, Access::ReadWrite);
    let clone = with(vec![own.clone()]).unwrap();
    assert_eq!(clone.shape().devices[1], DeviceConfig::Block(own.clone()));
    for disks in [vec![own.clone(), own], vec![disk("c.raw", 2 << 20, Access::ReadWrite)]] {
        let error = with(disks).unwrap_err();
        assert!(error.contains("disks of 1048576 bytes"), "{error}");
    }
}
