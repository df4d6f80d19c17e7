//! A stock guest whose disks and network devices come and go while it runs.

use crate::fixtures::{Host, Lab, StockGuest, until};

const DISK: &str = "/var/lib/disks/data.raw";
const IMAGE: &str = "/var/lib/disks/image.qcow2";
const MAC: &str = "52:54:00:00:77:01";
/// The guest's IP address on the network device that it gets.
const SECOND_ADDRESS: &str = "10.77.0.102";
/// What a kernel warns of.
const COMPLAINTS: &str =
    "dmesg --level=emerg,alert,crit,err,warn | grep -iE 'pci|acpi|hotplug|virtio'";

/// Sends from the second address alone, and answers for it on its device alone.
fn use_second_address(guest: &StockGuest, host: Host<'_>) {
    guest
        .sh(
            host,
            &format!(
                "sysctl -q net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0 \
                 && ip address add {SECOND_ADDRESS}/24 dev eth1 && ip link set eth1 up"
            ),
        )
        .ok();
    await_ping(host);
}

/// Checks that the disk bypasses the host's cache, which may have its first pages: they are read
/// to see what it is.
#[track_caller]
fn is_not_cached(host: Host<'_>) {
    let disks = host.ask("debian", "/v1/guest").expect("a guest")["disks"].clone();
    assert_eq!(disks[1]["cache"], "none", "{disks}");
    let cached = host.sh(&format!("fincore --bytes --noheadings --output RES {DISK}")).ok();
    let bytes: u64 = cached.trim().parse().expect("a number of bytes");
    assert!(bytes < 1 << 20, "{bytes} bytes of the disk are cached");
}

#[track_caller]
fn await_ping(host: Host<'_>) {
    until("the second network device answers", || {
        let done = host.sh(&format!("ping -c 1 -W 2 {SECOND_ADDRESS}"));
        if done.code == Some(0) { Ok(()) } else { Err(done) }
    });
}

#[test]
fn disks_and_networks_come_move_along_and_go() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 2, "");
    let before = guest.health(here);
    here.sh(&format!("rm -f {DISK} && truncate -s 64M {DISK}")).ok();
    let said = here.lighter(&format!("attach-disk debian {DISK},serial=data,cache=none")).ok();
    assert_eq!(said, format!("disk {DISK} is attached to debian at 0000:00:06.0\n"));
    guest
        .sh(
            here,
            "mkfs.ext4 -q /dev/disk/by-id/virtio-data && mount /dev/disk/by-id/virtio-data /mnt \
             && head -c 8M /dev/urandom > /mnt/file && sha256sum < /mnt/file > /root/sum && sync",
        )
        .ok();
    is_not_cached(here);
    let said = here.lighter(&format!("attach-interface debian bridge=br0,mac={MAC}")).ok();
    assert!(said.contains(&format!("{MAC} is attached to debian at 0000:00:07.0")), "{said}");
    use_second_address(&guest, here);

    let copy = format!(
        "migrate debian {} --copy-disk {DISK} --replace-disks --downtime 10s",
        there.address()
    );
    here.lighter(&copy).ok();
    guest.health(there).is_as_good_as(&before);
    let sum = guest.sh(there, "cat /root/sum").ok();
    let read = "echo 1 > /proc/sys/vm/drop_caches; sha256sum < /mnt/file";
    assert_eq!(guest.sh(there, read).ok(), sum);
    is_not_cached(there);
    await_ping(there);

    guest.sh(there, "umount /mnt").ok();
    let said = there.lighter(&format!("detach-disk debian {DISK}")).ok();
    assert_eq!(said, format!("disk {DISK} is detached from debian\n"));
    assert_eq!(guest.sh(there, "lsblk -n -o NAME | grep -c vdb").stdout, "0\n");
    let there_too = format!("mount -o ro,loop {DISK} /mnt && sha256sum < /mnt/file && umount /mnt");
    assert_eq!(there.sh(&there_too).ok(), sum);
    let tap = there.ask("debian", "/v1/guest").expect("a guest")["nets"][1]["tap"].clone();
    there.lighter(&format!("detach-interface debian {MAC}")).ok();
    assert_eq!(guest.sh(there, "ip link show eth1 2> /dev/null").stdout, "");
    assert_ne!(there.sh(&format!("ip link show {tap}")).code, Some(0), "its tap is gone");

    // It is there at the next boot, too.
    let said = there.lighter(&format!("attach-disk debian {DISK},serial=data")).ok();
    assert!(said.ends_with("at 0000:00:08.0\n") || said.ends_with("at 0000:00:06.0\n"), "{said}");
    assert_eq!(guest.sh(there, COMPLAINTS).stdout, "");
    there.lighter("reboot debian --timeout 1h").ok();
    until("it boots again", || {
        let shown = there.ask("debian", "/v1/guest")?;
        if shown["restarts"] == 1 { Ok(()) } else { Err(shown.to_string()) }
    });
    guest.await_booted(there);
    let read =
        "mount -o ro /dev/disk/by-id/virtio-data /mnt && sha256sum < /mnt/file && umount /mnt";
    assert_eq!(guest.sh(there, read).ok(), sum);
    there.lighter("save debian /var/tmp/debian.lighter").ok();
    there.lighter("restore /var/tmp/debian.lighter --name debian --detach").ok();
    guest.await_booted(there);
    assert_eq!(guest.sh(there, read).ok(), sum);
    there.lighter(&format!("detach-disk debian {DISK}")).ok();
    assert_eq!(guest.sh(there, COMPLAINTS).stdout, "");
    guest.shut_down(there);
}

#[test]
fn an_image_on_another_comes_and_what_cannot_come_changes_nothing() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    let guest = StockGuest::boot(&lab, host, 1, "");
    host.sh(&format!(
        "cd /var/lib/disks && rm -f *.qcow2 && qemu-img create -q -f qcow2 base.qcow2 32M \
         && qemu-io -c 'write -q -P 0x41 0 1M' base.qcow2 \
         && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 {IMAGE} && truncate -s 1M plain.raw"
    ))
    .ok();
    host.lighter(&format!("attach-disk debian {IMAGE},engine=sync")).ok();
    let first = "dd if=/dev/vdb bs=1M count=1 iflag=direct status=none | tr -d A | wc -c";
    assert_eq!(guest.sh(host, first).ok(), "0\n");
    guest.sh(host, "head -c 2M /dev/zero | tr '\\0' B | dd of=/dev/vdb bs=1M oflag=direct status=none && sync").ok();

    let disks = || host.ask("debian", "/v1/guest").expect("a guest")["disks"].clone();
    let before = disks();
    let refused = |arguments: &str, words: &[&str]| {
        host.lighter(arguments).complains(words);
        assert_eq!(disks(), before);
    };
    refused(&format!("attach-disk debian {IMAGE}"), &["has the disk", "already"]);
    refused("attach-disk debian /var/lib/disks/none.raw", &["none.raw", "No such file"]);
    refused("attach-disk debian /dev/null", &["neither a regular file"]);
    refused("attach-disk debian /var/lib/disks/plain.raw,engine=io_uring", &["io_uring"]);
    refused("attach-interface debian bridge=br9", &["br9"]);
    refused("detach-disk debian /var/lib/disks/plain.raw", &["has no disk"]);
    refused("detach-interface debian 52:54:00:00:00:09", &["has no network device"]);
    host.sh("loop=$(losetup --show -f /var/lib/disks/plain.raw) && ln -sf $loop /root/loop").ok();
    refused("attach-disk debian /root/loop", &["loop device"]);
    host.lighter("pause debian").ok();
    host.lighter(&format!("detach-disk debian {IMAGE}")).complains(&["paused"]);
    host.lighter("resume debian").ok();

    host.lighter(&format!("detach-disk debian {IMAGE}")).ok();
    host.sh(&format!("qemu-img check -q {IMAGE} && qemu-io -r -c 'read -q -P 0x42 0 2M' {IMAGE}"))
        .ok();
    let claim = "python3 -c 'import os; os.open(\"/dev/ram0\", os.O_EXCL)'";
    host.sh(&format!("modprobe brd rd_nr=1 rd_size=32768 && {claim}")).ok();
    host.lighter("attach-disk debian /dev/ram0,serial=ram").ok();
    assert!(host.sh(claim).stderr.contains("busy"), "the host may still use it");
    guest
        .sh(host, "echo kept | dd of=/dev/disk/by-id/virtio-ram oflag=direct conv=sync status=none")
        .ok();
    host.lighter("save debian /var/tmp/debian.lighter").ok();
    host.sh(claim).ok();
    // The kernel does not count the writes to a RAM disk.
    host.lighter("restore /var/tmp/debian.lighter --name debian --detach --unsafe").ok();
    guest.await_booted(host);
    host.lighter("detach-disk debian /dev/ram0").ok();
    host.lighter("attach-disk debian /dev/ram0,serial=again").ok();
    let read = "head -c 4 /dev/disk/by-id/virtio-again";
    assert_eq!(guest.sh(host, read).ok(), "kept");
    host.lighter("detach-disk debian /dev/ram0").ok();
    host.sh(claim).ok();

    let pid = host.ask("debian", "/v1/guest").expect("a guest")["pid"].clone();
    host.lighter("attach-interface debian bridge=br0").ok();
    let taps = "ip -o link show master br0 | grep -c lighter";
    assert_eq!(host.sh(taps).stdout, "2\n");
    host.sh(&format!("kill -9 {pid}")).ok();
    until("its taps are gone", || {
        let left = host.sh(taps).stdout;
        if left == "0\n" { Ok(()) } else { Err(left) }
    });
}
