//! A guest that boots from its own disk, by firmware (docs/adr/0032-firmware.md).

use std::path::Path;

use support::linux::image::script;

use crate::fixtures::{Host, Lab, StockGuest, holds, until};
use crate::nfs::{SHARED, share};

/// What each host has where lighter looks for it.
const FIRMWARE: &str = "/usr/local/share/lighter/CLOUDHV.fd";
/// The disks from which the guest can boot; they are copied with the guest. The boot loader of the
/// other one has the guest call itself `other`, not `guest`.
const DISK: &str = "/var/lib/disks/efi.raw";
const OTHER: &str = "/var/lib/disks/other.raw";

/// A UEFI variable of the guest, and what makes sure that it is there.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Lighter-c4b4014c-f120-4e38-a202-2ca9c79fa4da";
const MOUNT_VARIABLES: &str = "cd /sys/firmware/efi/efivars && \
    (mountpoint -q . || mount -t efivarfs none .)";
/// Puts what boots from the guest's second disk first in the order of its boot entries, as
/// `efibootmgr` would.
const PREFER_OTHER: &str = r#"
import glob, os, struct

os.chdir("/sys/firmware/efi/efivars")
KIND = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
function = os.path.basename(os.path.realpath("/sys/block/vdb/device/.."))
# Its place in a device path.
place = bytes([1, 1, 6, 0, 0, int(function[8:10], 16)])
entries = glob.glob("Boot[0-9A-F]???" + KIND)
other, = [int(entry[4:8], 16) for entry in entries if place in open(entry, "rb").read()]
order = open("BootOrder" + KIND, "rb").read()[4:]
order = [number for number, in struct.iter_unpack("<H", order) if number != other]
changed = struct.pack(f"<I{len(order) + 1}H", 7, other, *order)
assert os.write(os.open("BootOrder" + KIND, os.O_WRONLY), changed) == len(changed)
"#;
/// Where a host keeps the guest's variables.
const KEPT: &str = "/var/lib/lighter/ended/guests/debian/uefi-variables.fd";

/// Gives the hosts the firmware, and an empty folder for disks.
pub(crate) fn install(hosts: [Host<'_>; 2]) {
    let firmware = script("firmware.sh", &[]);
    for host in hosts {
        host.sh("mkdir -p /usr/local/share/lighter").ok();
        host.push(&[Path::new(&firmware)], "/usr/local/share/lighter");
        host.sh("mkdir -p /var/lib/disks && rm -rf /var/lib/disks/*").ok();
    }
}

#[test]
fn firmware_boots_the_first_disk_and_as_the_guest_says_here_and_on_another_host() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    install([here, there]);
    here.sh(&format!(
        "set -e; cp --sparse=always /boot/efi.raw {DISK}
         LC_ALL=C sed s/lab.name=guest/lab.name=other/ {DISK} > {OTHER}; fallocate -d {OTHER}"
    ))
    .ok();
    let disks = format!("--disk {DISK} --disk {OTHER} --disk /dev/vdb");
    let guest = StockGuest::boot_by_firmware(&lab, here, 2, &disks);
    let firmwares = guest.sh(here, "ls /sys/firmware/efi && cat /sys/class/dmi/id/product_name");
    assert!(firmwares.ok().ends_with("lighter guest\n"), "EFI, with our tables");
    assert_eq!(guest.sh(here, "hostname").ok(), "guest\n", "the first disk boots");

    guest.sh(here, &format!("{MOUNT_VARIABLES} && printf '\\7\\0\\0\\0kept' > {VARIABLE}")).ok();
    guest.sh(here, &format!("python3 - << 'END'{PREFER_OTHER}END")).ok();
    let keeps_variables = |host| {
        let read = guest.sh(host, &format!("{MOUNT_VARIABLES} && tail -c 4 {VARIABLE}"));
        assert_eq!(read.ok(), "kept");
        assert_eq!(guest.sh(host, "hostname").ok(), "other\n", "its own order is kept");
    };

    let first = boot_id(&guest, here);
    guest.sh(here, "reboot");
    await_another_boot(&guest, here, &first);
    keeps_variables(here);
    let before = boot_id(&guest, here);
    here.sh(&format!("test -s {KEPT}")).ok();
    here.lighter(&format!(
        "migrate debian {} --copy-disk {DISK} --copy-disk {OTHER} --downtime 10s --timeout 1h",
        there.address()
    ))
    .ok();
    assert_eq!(boot_id(&guest, there), before, "it goes on");
    there.lighter("reboot debian --timeout 1h").ok();
    await_another_boot(&guest, there, &before);
    keeps_variables(there);
    there.lighter("shutdown debian --timeout 1h").ok();

    // They come back from the file, also to where the firmware looks with more memory.
    let options = format!("--firmware {FIRMWARE} --net bridge=br0 --rng {disks}");
    let run = "run --detach --name debian --cpu x86-64-v2 --cpus 2 --memory 1G";
    there.lighter(&format!("{run} {options}")).ok();
    guest.await_booted(there);
    keeps_variables(there);
    guest.shut_down(there);
}

/// Makes an installation medium as distributions have them: an ISO file with GRUB for UEFI, a
/// kernel, and more. This one starts what is on the file system `guest`.
const MAKE_MEDIUM: &str = r"set -e; cd $(mktemp -d); mkdir -p medium/boot/grub
cp /boot/vmlinuz /boot/initrd.img medium/boot/; echo 'read me' > medium/README
cat > medium/boot/grub/grub.cfg << 'GRUB'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
linux /boot/vmlinuz root=LABEL=guest rw console=ttyS0 net.ifnames=0 lab.name=guest lab.ip=10.77.0.101 lab.medium
initrd /boot/initrd.img
boot
GRUB
grub-mkrescue -o MEDIUM medium";

#[test]
fn firmware_boots_an_installation_medium_and_has_a_shell_when_nothing_boots() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    install([here, there]);
    share([here, there]);
    let medium = format!("{SHARED}/medium.iso");
    here.sh(&MAKE_MEDIUM.replace("MEDIUM", &medium)).ok();
    // The first disk has no boot loader, as one to which a system is to be installed.
    let disks = format!("--disk /dev/vdb --disk {medium}");
    let guest = StockGuest::boot_by_firmware(&lab, here, 1, &disks);
    let uses_medium = |host| {
        let cmdline = guest.sh(host, "cat /proc/cmdline").ok();
        assert!(cmdline.contains("lab.medium"), "{cmdline}");
        let read = "mount -t iso9660 -o ro /dev/vdb /mnt && cat /mnt/README && umount /mnt";
        assert_eq!(guest.sh(host, read).ok(), "read me\n");
        let write = guest.sh(host, "dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct");
        assert_ne!(write.code, Some(0), "{write:?}");
    };
    uses_medium(here);
    let before = boot_id(&guest, here);
    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    there.lighter("reboot debian --timeout 1h").ok();
    await_another_boot(&guest, there, &before);
    uses_medium(there);
    guest.shut_down(there);

    here.sh("head -c 64M /dev/urandom > /var/lib/disks/nonsense.iso").ok();
    let disks = "--disk /var/lib/disks/nonsense.iso";
    here.lighter(&format!("run --detach --name none --memory 256M --firmware {FIRMWARE} {disks}"))
        .ok();
    until("the firmware offers its shell", || {
        let console = here.sh("tail -c 3000 /var/lib/lighter/guests/none/console.log").stdout;
        holds(console.contains("Shell> "), console)
    });
    says_that_nothing_boots(here);
    here.lighter("reset none").ok();
    says_that_nothing_boots(here);
    here.lighter("destroy none").ok();
}

/// Waits until it is shown and logged of the guest `none` that nothing boots, once for each boot.
#[track_caller]
fn says_that_nothing_boots(host: Host<'_>) {
    let log = "cat /var/lib/lighter/guests/none/lighter.log";
    until("it is said that nothing boots", || {
        let (shown, log) = (host.lighter("show none --json").json(), host.sh(log).stdout);
        let detail = shown["detail"].as_str().unwrap_or_default();
        let boots = shown["restarts"].as_u64().unwrap_or_default() + 1;
        let logged = log.matches("has found nothing to boot").count() as u64;
        let is_said = detail.contains("has found nothing to boot") && logged == boots;
        holds(is_said, (shown, log))
    });
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
