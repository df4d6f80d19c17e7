//! A guest that boots from its own disk, by firmware (docs/adr/0032-firmware.md).

use std::path::Path;

use support::linux::image::script;

use crate::fixtures::{Host, Lab, StockGuest, until};

/// What each host has at the same path.
pub(crate) const FIRMWARE: &str = "/opt/CLOUDHV.fd";
/// The disk from which the guest boots; it is copied with the guest.
const DISK: &str = "/var/lib/disks/efi.raw";

/// Gives the hosts the firmware, and an empty folder for disks.
pub(crate) fn install(hosts: [Host<'_>; 2]) {
    let firmware = script("firmware.sh", &[]);
    for host in hosts {
        host.push(&[Path::new(&firmware)], "/opt");
        host.sh("mkdir -p /var/lib/disks && rm -rf /var/lib/disks/*").ok();
    }
}

#[test]
fn firmware_boots_a_disk_and_boots_it_again_on_another_host() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    install([here, there]);
    here.sh(&format!("cp --sparse=always /boot/efi.raw {DISK}")).ok();
    let disks = format!("--disk {DISK} --disk /dev/vdb");
    let guest = StockGuest::boot_by_firmware(&lab, here, 2, FIRMWARE, &disks);
    let firmwares = guest.sh(here, "ls /sys/firmware/efi && cat /sys/class/dmi/id/product_name");
    assert!(firmwares.ok().ends_with("lighter guest\n"), "EFI, with our tables");

    let first = boot_id(&guest, here);
    guest.sh(here, "reboot");
    await_another_boot(&guest, here, &first);
    let before = boot_id(&guest, here);
    here.lighter(&format!(
        "migrate debian {} --copy-disk {DISK} --downtime 10s --timeout 1h",
        there.address()
    ))
    .ok();
    assert_eq!(boot_id(&guest, there), before, "it goes on");
    there.lighter("reboot debian --timeout 1h").ok();
    await_another_boot(&guest, there, &before);
    guest.shut_down(there);
}

pub(crate) fn boot_id(guest: &StockGuest, host: Host<'_>) -> String {
    guest.sh(host, "cat /proc/sys/kernel/random/boot_id").ok()
}

pub(crate) fn await_another_boot(guest: &StockGuest, host: Host<'_>, before: &str) {
    until("it boots again", || {
        let done = guest.sh(host, "cat /proc/sys/kernel/random/boot_id");
        if done.code == Some(0) && done.stdout != before { Ok(()) } else { Err(done) }
    });
    guest.await_booted(host);
}
