//! Disks that bypass the host's cache.

use crate::fixtures::{Host, Lab, StockGuest, until};
use crate::nfs::{begin_writing, expect_written};

/// Where the disk is copied to.
const COPY: &str = "/var/lib/disks/slow.raw";

/// Makes a disk of 16 MiB in the kernel's memory, with these parameters of `scsi_debug`; returns
/// its path.
fn make_device(host: Host<'_>, parameters: &str) -> String {
    host.sh(&format!("modprobe scsi_debug dev_size_mb=16 {parameters}")).ok();
    until("the disk is there", || {
        let found =
            host.sh("ls /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*:*/block");
        match found.code {
            Some(0) => Ok(format!("/dev/{}", found.stdout.trim())),
            _ => Err(found),
        }
    })
}

#[test]
fn a_device_is_copied_while_its_guest_writes_past_the_cache() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let large = make_device(here, "sector_size=4096");
    let run = format!("run --name other --kernel /boot/vmlinuz --disk {large},cache=none");
    here.lighter(&run).complains(&[&large, "sectors of more than 512 bytes"]);
    until("the host has no more use for it", || {
        let removed = here.sh("rmmod scsi_debug");
        if removed.code == Some(0) { Ok(()) } else { Err(removed) }
    });

    // Each request takes a fifth of a second, so pages are read for the copy while others are
    // written.
    let slow = make_device(here, "delay=50");
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {slow},cache=none"));
    begin_writing(&guest, here);
    let copy = format!("--copy-disk {slow} --disk-path {slow}={COPY}");
    here.lighter(&format!("migrate debian {} {copy} --downtime 10s", there.address())).ok();
    expect_written(&guest, there);
    let shown = there.ask("debian", "/v1/guest").expect("a guest");
    assert_eq!(shown["disks"][1]["cache"], "none", "{shown}");
    guest.shut_down(there);
}
