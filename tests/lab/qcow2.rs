//! Disks in qcow2 images: shared, copied, and after a power cut.

use crate::firmware::install;
use crate::fixtures::{Host, Lab, StockGuest, holds, until};
use crate::nfs::{SHARED, begin_writing, expect_written, share};

/// Checks an image; space that it has lost (3) is no error.
#[track_caller]
pub(crate) fn is_sound(host: Host<'_>, image: &str) {
    let checked = host.sh(&format!("qemu-img check {image}"));
    assert!(matches!(checked.code, Some(0 | 3)), "{checked:#?}");
}

/// Grows a disk of a guest, which has it as `device` and sees the size at once.
#[track_caller]
pub(crate) fn grows(guest: &StockGuest, host: Host<'_>, (device, disk): (&str, &str), bytes: u64) {
    host.lighter(&format!("blockresize debian {disk} {bytes}")).ok();
    until("the guest sees the size", || {
        let seen = guest.sh(host, &format!("blockdev --getsize64 /dev/{device}")).ok();
        holds(seen.trim() == bytes.to_string(), seen)
    });
}

/// The bytes that these files occupy.
#[track_caller]
fn occupied_bytes(host: Host<'_>, files: &[&str]) -> u64 {
    let total = format!("du --block-size=1 --total {} | tail -n 1", files.join(" "));
    let shown = host.sh(&total).ok();
    shown.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number of bytes")
}

/// What a copy may take beyond the content of the disk: pages that the guest writes meanwhile are
/// sent again.
const SENT_AGAIN_BYTES_MAX: u64 = 64 << 20;

#[test]
fn an_image_is_shared_copied_and_sound_after_a_power_cut() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    share([here, there]);
    let (shared, own) = (format!("{SHARED}/data.qcow2"), "/var/lib/disks/data.qcow2");
    here.sh(&format!(
        "cd {SHARED} && truncate -s 256M base.raw && qemu-img create -q -f qcow2 -F raw -b base.raw {shared}"
    ))
    .ok();
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {shared}"));
    begin_writing(&guest, here);
    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    let options = format!("--copy-disk {shared} --disk-path {shared}={own}");
    let content = occupied_bytes(there, &[&shared, &format!("{SHARED}/base.raw")]);
    assert!(content + SENT_AGAIN_BYTES_MAX < 256 << 20, "{content} bytes: holes would not show");
    let report = there
        .lighter(&format!("migrate debian {} {options} --downtime 10s --json", here.address()))
        .json();
    let copied = report["transfer"]["disk_pages"].as_u64().map_or(0, |pages| pages * 4096);
    let possible = 1..=content + SENT_AGAIN_BYTES_MAX;
    assert!(possible.contains(&copied), "{copied} bytes of {content}: {report:#}");
    expect_written(&guest, here);

    grows(&guest, here, ("vdb", own), 1 << 40);
    guest
        .sh(here, "dd if=/dev/urandom of=/dev/vdb bs=4k oflag=direct,seek_bytes seek=1000G count=8")
        .ok();

    // What the guest discards, the host gets back.
    guest.sh(here, "dd if=/dev/urandom of=/dev/vdb bs=1M seek=500K count=32 conv=fsync").ok();
    let before = occupied_bytes(here, &[own]);
    guest.sh(here, "blkdiscard -o 500G -l 32M /dev/vdb && sync /dev/vdb").ok();
    let after = occupied_bytes(here, &[own]);
    assert!(after + (31 << 20) <= before, "{after} bytes of {before}");

    // Discards, and flushed writes to new clusters, until the power is cut.
    let fill = "dd if=/dev/urandom of=/dev/vdb bs=4k oflag=direct,seek_bytes conv=notrunc,fdatasync count=1";
    let forever = format!(
        "while :; do for at in $(seq 0 65536 4000000); do blkdiscard -o $at -l 65536 /dev/vdb; {fill} seek=$at; done; done"
    );
    guest
        .sh(here, &format!("setsid -f sh -c '{forever}' > /dev/null 2>&1 < /dev/null; sleep 5"))
        .ok();
    lab.cut_power(1);
    lab.restore_power(1);
    // It is marked as one that was being written.
    here.sh(&format!("qemu-img check -r all {own}"));
    is_sound(here, own);
    is_sound(here, "/srv/nfs/data.qcow2");
}

/// Writes the blocks of the guest's second disk past its cache, all over its 2 GiB: each with its
/// number, and flushed before the next. `/run/flushed` says how many there are.
const FLUSHER: &str = "import mmap, os, struct
disk, page = os.open('/dev/vdb', os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
count = int(open('/run/flushed').read())
while True:
    page[:] = struct.pack('<Q', count + 1) * 512
    os.pwrite(disk, page, count * 300007 % (1 << 19) * 4096)
    os.fdatasync(disk)
    count += 1
    with open('/run/now', 'w') as now: now.write(str(count))
    os.rename('/run/now', '/run/flushed')";

/// Prints how many blocks [`FLUSHER`] has written, by the content of an image; fails if one is
/// missing before another, or anything else is there.
const READER: &str = "import os, struct, sys
disk, found, at = os.open('/var/lib/disks/read.raw', os.O_RDONLY), set(), 0
size = os.fstat(disk).st_size
while at < size:
    try: at = os.lseek(disk, at, os.SEEK_DATA) // 4096 * 4096
    except OSError: break
    page = os.pread(disk, 4096, at)
    (number,) = struct.unpack('<Q', page[:8])
    if page != bytes(4096):
        assert page == page[:8] * 512, ('torn', at, number)
        assert (number - 1) * 300007 % (1 << 19) * 4096 == at, ('misplaced', at, number)
        found.add(number)
    at += 4096
last = max(found, default=0)
assert size == 2 << 30 and len(found) == last, (size, len(found), last)
print(last)";

/// Has the guest write from block `first` on; returns up to which it has flushed some time later.
fn flushed(guest: &StockGuest, host: Host<'_>, first: u64) -> u64 {
    guest.sh(host, &format!("echo {first} > /run/flushed")).ok();
    let start = format!("setsid -f python3 -c \"{FLUSHER}\" > /run/flusher.log 2>&1 < /dev/null");
    guest.sh(host, &start).ok();
    let read = "sleep 40; cat /run/flusher.log /run/flushed";
    let last = guest.sh(host, read).ok().trim().parse().expect("a number of blocks");
    assert!(last > first + 100, "from {first} to {last}");
    last
}

/// Checks that no guest runs on the image until it was repaired, and that it then has all blocks
/// that were flushed, `at_least` so many; returns how many.
#[track_caller]
fn is_repaired_and_has(host: Host<'_>, image: &str, at_least: u64) -> u64 {
    let started = host.lighter(&format!("run --name other --kernel /boot/vmlinuz --disk {image}"));
    started.complains(&[image, "qemu-img check -r all"]);
    host.sh(&format!("qemu-img check -r all {image}"));
    is_sound(host, image);
    let read = format!(
        "qemu-img convert -O raw {image} /var/lib/disks/read.raw && python3 -c \"{READER}\"; rm /var/lib/disks/read.raw"
    );
    let found = host.sh(&read).ok();
    let count: u64 = found.trim().parse().expect("a number of blocks");
    println!("{count} blocks, of which {at_least} were known");
    assert!(count >= at_least, "{count} of {at_least} blocks");
    count
}

#[test]
fn what_a_guest_has_flushed_outlasts_a_power_cut() {
    let lab = Lab::of(1);
    let here = lab.host(1);
    let image = "/var/lib/disks/flushed.qcow2";
    here.sh(&format!("qemu-img create -q -f qcow2 {image} 2G")).ok();
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {image}"));
    let killed = flushed(&guest, here, 0);
    let process = here.ask("debian", "/v1/guest").expect("a guest")["pid"].clone();
    here.sh(&format!("kill -KILL {process}")).ok();
    let killed = is_repaired_and_has(here, image, killed);

    // Now past the host's cache, and over clusters that are compressed.
    here.sh(&format!("qemu-img convert -c -O qcow2 {image} {image}.new && mv {image}.new {image}"))
        .ok();
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {image},cache=none"));
    let cached = format!("fincore -nbo RES {image}");
    here.sh("sync; echo 1 > /proc/sys/vm/drop_caches").ok();
    let written = flushed(&guest, here, killed);
    assert_eq!(here.sh(&cached).ok().trim(), "0", "bytes of the image in the host's cache");
    lab.cut_power(1);
    lab.restore_power(1);
    is_repaired_and_has(here, image, written);
}

/// Makes a cloud image as distributions do: a GPT, with a system partition from which
/// firmware boots and the root file system.
const MAKE: &str = "set -e; cd /srv/nfs; cp --sparse=always /boot/efi.raw cloud.raw
truncate -s $(($(stat -c %s cloud.raw) + $(blockdev --getsize64 /dev/vdb) + (1 << 20))) cloud.raw
sfdisk -q --no-reread --append cloud.raw <<< start=96MiB
dd if=/dev/vdb of=cloud.raw bs=1M seek=96 conv=notrunc,sparse status=none
qemu-img convert -q -c -O qcow2 cloud.raw cloud.qcow2; rm cloud.raw
qemu-img create -q -f qcow2 -F qcow2 -b cloud.qcow2 web.qcow2 8G
ssh-keygen -q -t ed25519 -N '' -f key; echo 'disable_root: false' | sed '1i #cloud-config' > user-data";

#[test]
fn a_cloud_image_boots_is_set_up_and_moves() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    install([here, there]);
    share([here, there]);
    lab.reset_shared_disk();
    here.sh(MAKE).ok();
    let options = format!(
        "--disk {SHARED}/web.qcow2,cache=none --hostname shop --seed {SHARED}/user-data --ssh-key {SHARED}/key.pub"
    );
    let guest = StockGuest::boot_by_firmware(&lab, here, 1, &options);
    let read = "findmnt -n -o SOURCE / && grep -c . /home/debian/.ssh/authorized_keys && cat /etc/hostname";
    let found = guest.sh(here, read).ok();
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["/dev/vda2", "1", "shop"]);

    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    let read = "echo 3 > /proc/sys/vm/drop_caches; find /usr/lib -xdev -type f | head -n 300 | xargs cat > /dev/null";
    guest.sh(there, read).ok();
    let shown = there.lighter("show debian").ok();
    assert!(shown.contains("web.qcow2, 8 GiB, qcow2"), "{shown}");
    grows(&guest, there, ("vda", &format!("{SHARED}/web.qcow2")), 12 << 30);
    guest.shut_down(there);
    is_sound(here, "/srv/nfs/web.qcow2");
}
