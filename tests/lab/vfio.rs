//! A stock guest with devices of its host: two NVMe drives of one IOMMU group and a network card.

use std::fs::File;

use crate::fixtures::{Host, Lab, StockGuest, holds, until};

/// The drive, another one of its group, and the card, as the host has them.
pub(crate) const DRIVE: &str = "0000:00:08.0";
const OTHER: &str = "0000:00:08.1";
const CARD: &str = "0000:01:00.0";
/// The address behind the card, and the guest's own there.
const BEHIND_CARD: &str = "10.99.0.2";
const ON_CARD: &str = "10.99.0.15/24";
/// What a kernel warns of.
const COMPLAINTS: &str =
    "dmesg --level=emerg,alert,crit,err,warn | grep -iE 'pci|acpi|nvme|hotplug|virtio'";

/// Gives a host the drives and the card, in the hands of vfio-pci.
pub(crate) fn equip(lab: &Lab, number: usize) {
    let [drive, other] = ["drive", "other"].map(|name| {
        let drive = lab.folder().join(format!("{name}{number}.raw"));
        File::create(&drive).and_then(|file| file.set_len(64 << 20)).expect("a drive");
        format!("file={},if=none,id={name},format=raw", drive.display())
    });
    // Behind a port: elsewhere such a card cannot be reset.
    let card = "virtio-net-pci,bus=rootport,netdev=user,iommu_platform=on,disable-legacy=on";
    lab.restart_with(
        number,
        &[
            "-drive",
            &drive,
            "-device",
            "nvme,drive=drive,serial=drive,addr=0x8.0,multifunction=on",
            "-drive",
            &other,
            "-device",
            "nvme,drive=other,serial=other,addr=0x8.1",
            "-netdev",
            "user,id=user,net=10.99.0.0/24",
            "-device",
            "pcie-root-port,id=rootport,addr=0x9,chassis=1",
            "-device",
            card,
        ],
    );
    give_to_vfio(lab.host(number), &[DRIVE, OTHER, CARD]);
}

/// Puts devices of a host in the hands of vfio-pci.
#[track_caller]
pub(crate) fn give_to_vfio(host: Host<'_>, devices: &[&str]) {
    let bind = format!(
        "modprobe vfio-pci; for device in {}; do cd /sys/bus/pci/devices/$device; \
         echo vfio-pci > driver_override; [ ! -e driver ] || echo $device > driver/unbind; \
         echo $device > /sys/bus/pci/drivers_probe; done",
        devices.join(" ")
    );
    host.sh(&bind).ok();
}

/// Uses the card that the guest has as `eth1`.
#[track_caller]
fn uses_card(guest: &StockGuest, host: Host<'_>) {
    let up = format!("ip link set eth1 up && ip address replace {ON_CARD} dev eth1");
    let ping = format!("ping -c 1 -W 5 {BEHIND_CARD}");
    until("the card carries frames", || {
        let done = guest.sh(host, &format!("{up} && {ping}"));
        if done.code == Some(0) { Ok(()) } else { Err(done) }
    });
}

/// Has the guest's kernel not hear of devices that come and are to leave.
const DEAFEN: &str = "cd /sys/bus/platform/drivers/acpi-ged; ls -d ACPI* > /run/events; \
    for it in $(cat /run/events); do echo $it > unbind; done";
/// Has it hear of them again.
const UNDEAFEN: &str = "cd /sys/bus/platform/drivers/acpi-ged; \
    for it in $(cat /run/events); do echo $it > bind; done";

/// Waits until the guest's driver has the drive: one that loses it earlier complains.
#[track_caller]
fn await_drive(guest: &StockGuest, host: Host<'_>) {
    until("the guest finds the drive", || {
        let done = guest.sh(host, "ls /dev/nvme0n1");
        if done.code == Some(0) { Ok(()) } else { Err(done) }
    });
}

/// Interrupts a migration while the guest does not hear that it is to let go of the drive: it has
/// the card then. It may let go of the drive when it hears again, and gets it once more.
#[track_caller]
fn interrupt(guest: &StockGuest, [here, there]: [Host<'_>; 2]) {
    guest.sh(here, DEAFEN).ok();
    let migrate = format!("lighter migrate debian {} --detach-on-migrate", there.address());
    here.sh(&format!("timeout --preserve-status --signal INT 5 {migrate}"))
        .complains(&["debian stays, and may still let go", DRIVE]);
    guest.sh(here, UNDEAFEN).ok();
    here.lighter(&format!("detach-device debian vfio={DRIVE} --timeout 5m"));
    until("the guest has let go of the drive", || {
        let devices = host_devices(here);
        holds(!devices.contains(DRIVE) && devices.contains(CARD), devices)
    });
    here.lighter(&format!("attach-device debian vfio={DRIVE}")).ok();
    await_drive(guest, here);
}

/// Reads what the guest has written to the drive.
fn sum(guest: &StockGuest, host: Host<'_>) -> String {
    let read = "mount /dev/nvme0n1 /mnt && sha256sum < /mnt/file && umount /mnt";
    guest.sh(host, read).ok()
}

fn host_devices(host: Host<'_>) -> String {
    host.ask("debian", "/v1/guest").expect("a guest")["host_devices"].to_string()
}

#[test]
fn a_guest_has_devices_of_its_host_and_moves_without_them() {
    let lab = Lab::of(2);
    equip(&lab, 1);
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 2, &format!("--device vfio={DRIVE}"));
    let make = "mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt \
        && head -c 8M /dev/urandom > /mnt/file && sha256sum < /mnt/file && umount /mnt \
        && echo 3 > /proc/sys/vm/drop_caches";
    let content = guest.sh(here, make).ok();
    assert_eq!(sum(&guest, here), content);
    let interrupts = guest.sh(here, "grep -c 'PCI-MSI.*nvme0q' /proc/interrupts").ok();
    assert_eq!(interrupts, "3\n", "one for each vCPU, and one for administration");
    let said = here.lighter(&format!("attach-device debian vfio={CARD}")).ok();
    assert!(said.starts_with(&format!("host device {CARD} is attached to debian at")), "{said}");
    uses_card(&guest, here);
    assert_eq!(guest.sh(here, COMPLAINTS).stdout, "");

    // All of its memory is there, and stays.
    let resident = here.ask("debian", "/v1/guest/balloon").expect("a balloon");
    assert!(resident["resident_bytes"].as_u64() >= Some(512 << 20), "{resident}");
    here.lighter("balloon debian 256M").complains(&[DRIVE, "gets nothing"]);
    let status = here.lighter("density status").ok();
    assert!(status.contains("pins all of its memory"), "{status}");

    // It cannot move or be saved with them, and stays as it is.
    let to = there.address();
    here.lighter(&format!("migrate debian {to}")).complains(&[DRIVE, "--detach-on-migrate"]);
    here.lighter("save debian /var/tmp/debian.lighter").complains(&[
        DRIVE,
        CARD,
        "cannot be saved",
    ]);
    here.lighter(&format!("attach-device debian vfio={CARD}")).complains(&[CARD, "already"]);
    here.lighter("attach-device debian vfio=00:1f.2").complains(&["0000:00:1f.2", "vfio-pci"]);
    here.lighter("attach-device debian vfio=00:1e.7").complains(&["no such device"]);

    // They are there after a reset, as after a power-on.
    here.lighter("reset debian").ok();
    until("it boots again", || {
        let shown = here.ask("debian", "/v1/guest")?;
        if shown["restarts"] == 1 { Ok(()) } else { Err(shown.to_string()) }
    });
    guest.await_booted(here);
    assert_eq!(sum(&guest, here), content);
    uses_card(&guest, here);

    // A migration that fails gives them back.
    let nowhere = "migrate debian 10.77.0.2:9 --detach-on-migrate";
    let failed = here.lighter(nowhere);
    assert!(failed.stderr.contains(&format!("has the host's device {DRIVE} again")), "{failed:?}");
    assert!(failed.stderr.contains(&format!("has the host's device {CARD} again")), "{failed:?}");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    await_drive(&guest, here);
    assert_eq!(sum(&guest, here), content);

    interrupt(&guest, [here, there]);
    assert_eq!(sum(&guest, here), content);

    let moved = here.lighter(&format!("migrate debian {to} --downtime 10s --detach-on-migrate"));
    assert!(moved.stderr.contains("left 2 of its host's devices behind"), "{moved:?}");
    moved.ok();
    assert_eq!(here.state_of("debian"), None);
    assert_eq!(host_devices(there), "[]");
    assert_eq!(guest.sh(there, "ls /dev/nvme* /sys/class/net/eth1 2> /dev/null").stdout, "");
    // The host may have its devices again.
    let back = "echo > /sys/bus/pci/devices/0000:00:08.0/driver_override \
        && echo 0000:00:08.0 > /sys/bus/pci/drivers/vfio-pci/unbind \
        && modprobe nvme && echo 0000:00:08.0 > /sys/bus/pci/drivers_probe && sleep 5 && mount -o ro /dev/nvme0n1 /mnt \
        && sha256sum < /mnt/file && umount /mnt";
    assert_eq!(here.sh(back).ok(), content);
    guest.shut_down(there);
}

#[test]
fn a_device_comes_and_goes_and_the_host_gets_it_back_when_it_asks() {
    let lab = Lab::of(1);
    equip(&lab, 1);
    let host = lab.host(1);
    let guest = StockGuest::boot(&lab, host, 1, "");
    for _ in 0..2 {
        host.lighter(&format!("attach-device debian vfio={DRIVE}")).ok();
        host.lighter(&format!("attach-device debian vfio={CARD}")).ok();
        uses_card(&guest, host);
        await_drive(&guest, host);
        host.lighter(&format!("detach-device debian vfio={CARD}")).ok();
        host.lighter(&format!("detach-device debian vfio={DRIVE}")).ok();
        assert_eq!(host_devices(host), "[]");
        let refused = host.lighter(&format!("detach-device debian vfio={DRIVE}"));
        refused.complains(&["has no host device"]);
    }
    // Memory is given back again.
    host.lighter("balloon debian 256M").ok();
    until("the host gets it", || {
        let resident = host.ask("debian", "/v1/guest/balloon")?["resident_bytes"].clone();
        if resident.as_u64() < Some(400 << 20) { Ok(()) } else { Err(resident.to_string()) }
    });
    host.lighter(&format!("attach-device debian vfio={DRIVE}")).ok();
    let target =
        host.ask("debian", "/v1/guest/balloon").expect("a balloon")["target_bytes"].clone();
    assert_eq!(target, 512 << 20, "the guest need not do without what is taken anyway");
    await_drive(&guest, host);
    // Who takes the driver away waits until the guest has let go.
    host.sh(&format!("timeout 300 sh -c 'echo {DRIVE} > /sys/bus/pci/drivers/vfio-pci/unbind'"))
        .ok();
    until("the device has left", || {
        let left = host_devices(host);
        if left == "[]" { Ok(()) } else { Err(left) }
    });
    assert_eq!(guest.sh(host, COMPLAINTS).stdout, "");
    guest.shut_down(host);
}

/// Reads all of the drives with these serial numbers in the guest, past its cache.
#[track_caller]
fn reads_drives(guest: &StockGuest, host: Host<'_>, serials: &str) {
    let read =
        "for it in /dev/nvme?n1; do dd if=$it of=/dev/null bs=1M iflag=direct || exit 1; done";
    until("the drives can be read", || {
        let done = guest.sh(host, &format!("cat /sys/class/nvme/nvme*/serial && {read}"));
        let found = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        if done.code == Some(0) && found == serials { Ok(()) } else { Err(done) }
    });
}

#[test]
fn devices_of_one_iommu_group_are_for_one_guest() {
    let lab = Lab::of(1);
    equip(&lab, 1);
    let host = lab.host(1);
    let options = format!("--device vfio={DRIVE} --device vfio={OTHER}");
    let guest = StockGuest::boot(&lab, host, 1, &options);
    reads_drives(&guest, host, "drive other");
    let another = "run --detach --name another --memory 64M --kernel /boot/vmlinuz";
    host.lighter(&format!("detach-device debian vfio={DRIVE}")).ok();
    reads_drives(&guest, host, "other");
    host.lighter(&format!("{another} --device vfio={DRIVE}")).complains(&[DRIVE, "in use"]);
    host.lighter(&format!("attach-device debian vfio={DRIVE}")).ok();
    host.lighter(&format!("attach-device debian vfio={CARD}")).ok();
    host.lighter(&format!("detach-device debian vfio={OTHER}")).ok();
    uses_card(&guest, host);
    reads_drives(&guest, host, "drive");
    host.lighter(&format!("detach-device debian vfio={DRIVE}")).ok();
    assert_eq!(guest.sh(host, COMPLAINTS).stdout, "");

    // The group is the host's again, and none for a guest while the host uses one of its devices.
    host.sh(&format!(
        "cd /sys/bus/pci/devices/{OTHER} && echo nvme > driver_override && echo {OTHER} > driver/unbind \
         && modprobe nvme && echo {OTHER} > /sys/bus/pci/drivers_probe && test -d nvme"
    ))
    .ok();
    let used = "the host uses another device of its IOMMU group";
    host.lighter(&format!("attach-device debian vfio={DRIVE}")).complains(&[DRIVE, used]);
    give_to_vfio(host, &[OTHER]);
    host.lighter(&format!("attach-device debian vfio={DRIVE}")).ok();
    reads_drives(&guest, host, "drive");
    guest.shut_down(host);
}
