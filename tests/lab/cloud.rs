//! Guests from cloud images as Debian and Ubuntu make them, which keep their kernels their own
//! business.

use std::fs;
use std::path::Path;

use support::linux::image::script;

use crate::firmware::{await_another_boot, boot_id, install};
use crate::fixtures::{Host, Lab, StockGuest, Stream, holds, until};
use crate::nfs::{SHARED, share};
use crate::qcow2::is_sound;
use crate::stock::RESEEDED;
use crate::vfio::{DRIVE, equip};

/// What the guest is asked to do: it stays reachable in the way that the lab needs, and says back
/// what comes on TCP port 7.
const USER_DATA: &str = "#cloud-config
disable_root: false
locale: false
write_files:
- path: /usr/local/sbin/echo
  permissions: '0755'
  content: |
    #!/usr/bin/python3
    import socket, threading
    def echo(link):
        while data := link.recv(1 << 16): link.sendall(data)
    with socket.create_server(('', 7)) as server:
        while True: threading.Thread(target=echo, args=server.accept()[:1], daemon=True).start()
runcmd:
- systemd-run --quiet /usr/local/sbin/echo";

const NETWORK: &str = "version: 2
ethernets: {eth0: {addresses: [10.77.0.101/24]}}";

/// Complaints of the kernel that are due to its configuration, to the processor, of whose power it
/// finds no controls, and to how slow that is, to a disk that is larger than its partitions until
/// cloud-init grows these, and to a pause, after which it skips a check of its clocks.
const USUAL: &str = "CONFIG_IMA_DISABLE_HTABLE|Speculative Return Stack Overflow|amd_pstate|\
    hrtimer: interrupt took|workqueue: .* hogged CPU|GPT:|Long readout interval";

/// Checks that the guest's kernel, its services and `lspci` have nothing to complain of.
#[track_caller]
fn has_no_complaints(guest: &StockGuest, host: Host<'_>) {
    let logged =
        guest.sh(host, &format!("dmesg --level=emerg,alert,crit,err,warn | grep -vE '{USUAL}'"));
    let clocks = || guest.sh(host, "dmesg | grep -iE 'tsc|clock'").stdout;
    assert_eq!(logged.stdout, "", "its kernel complains; of clocks it says: {}", clocks());
    assert_eq!(guest.sh(host, "systemctl --failed --no-legend").ok(), "");
    // It does not know by its name the access to BARs by the configuration space.
    let functions = guest.sh(host, "lspci -vv 2>&1 | grep -v 'VirtIO: <unknown>'").ok();
    let odd = ["!!!", "unknown", "denied", "lspci:", "invalid", "disabled]", "virtual]"];
    let odd = functions.lines().filter(|line| odd.iter().any(|word| line.contains(word)));
    assert_eq!(odd.collect::<Vec<_>>(), Vec::<&str>::new(), "{functions}");
}

/// Boots a guest from the image in the folder `made`, and waits until cloud-init has set it up.
fn boot(lab: &Lab, here: Host<'_>, made: &str, options: &str) -> StockGuest {
    here.push(&[&Path::new(made).join("cloud.qcow2")], "/srv/nfs");
    here.sh(&format!(
        "set -e; cd /srv/nfs; qemu-img create -q -f qcow2 -F qcow2 -b cloud.qcow2 web.qcow2 8G
         echo \"{USER_DATA}\" > user-data; echo '{NETWORK}' > network
         ssh-keygen -y -f /root/.ssh/id_ed25519 > key.pub"
    ))
    .ok();
    let guest = start(lab, here, options);
    // 2: it is done, with warnings.
    guest.sh(here, "cloud-init status --wait || test $? = 2").ok();
    let size = "df --output=source,size -B1G / | tail -n 1; hostname";
    assert_eq!(
        guest.sh(here, size).ok().split_whitespace().collect::<Vec<_>>(),
        ["/dev/vda1", "8", "shop"]
    );
    guest
}

/// Starts the guest that [`boot`] has set up.
fn start(lab: &Lab, host: Host<'_>, options: &str) -> StockGuest {
    let options = format!(
        "--disk {SHARED}/web.qcow2 --hostname shop --ssh-key {SHARED}/key.pub \
         --seed {SHARED}/user-data,network-config={SHARED}/network {options}"
    );
    StockGuest::boot_by_firmware(lab, host, 2, &options)
}

/// Starts what says back what comes on the guest's port 7, as its first boot does, and waits until
/// it listens.
#[track_caller]
fn starts_echo(guest: &StockGuest, host: Host<'_>) {
    guest.sh(host, "systemd-run --quiet /usr/local/sbin/echo").ok();
    until("it listens", || {
        let done = guest.sh(host, "ss --listening --tcp --numeric | grep ':7 '");
        holds(done.code == Some(0), done)
    });
}

/// Moves the guest, which says back what comes on its port 7, while it is talked to.
fn moves(guest: &StockGuest, here: Host<'_>, there: Host<'_>, options: &str) {
    let stream = Stream::begin(here, guest);
    let before = boot_id(guest, here);
    here.lighter(&format!("migrate debian {} --downtime 10s {options}", there.address())).ok();
    stream.await_more();
    println!("{}", stream.finish());
    assert_eq!(boot_id(guest, there), before, "it goes on");
}

/// Clones the guest, which loses its network for that and does not get it back, and waits until the
/// clone has drawn random numbers of its own.
#[track_caller]
fn its_clone_draws_others(guest: &StockGuest, host: Host<'_>) {
    let times = |name: &str| {
        let count = format!("{RESEEDED} /var/lib/lighter/guests/{name}/console.log");
        host.sh(&count).stdout.trim().parse::<u64>().expect("a number of lines")
    };
    guest.sh(host, "dmesg --console-level info").ok();
    let before = times("debian");
    let mac = host.ask("debian", "/v1/guest").expect("a guest")["nets"][0]["mac"].clone();
    host.lighter(&format!("detach-interface debian {mac}")).ok();
    host.lighter("pause debian").ok();
    host.lighter("template debian /var/tmp/debian.template").ok();
    let copy = format!("{SHARED}/copy.qcow2");
    host.sh(&format!("cp --sparse=always {SHARED}/web.qcow2 {copy}")).ok();
    host.lighter("resume debian").ok();
    host.lighter(&format!(
        "run --template /var/tmp/debian.template --name copy --disk {copy} --detach"
    ))
    .ok();
    until("the clone draws other random numbers", || {
        let seen = times("copy");
        if seen == 1 { Ok(()) } else { Err(seen) }
    });
    assert_eq!(times("debian"), before, "the guest is no clone");
    host.lighter("destroy copy").ok();
}

/// A driver of the guest's own for its drive, which has that read a command and then write what
/// came of one where the guest has no memory: at 8 GiB.
const REACH_OUT: &str = r#"
import ctypes, mmap, os, time

NOWHERE = 8 << 30
device = os.path.realpath("/sys/class/nvme/nvme0/device")
address = os.path.basename(device)

def write(file, text):
    with open(file, "w") as opened: opened.write(text)

write(device + "/driver/unbind", address)
with open(device + "/config", "r+b", buffering=0) as config:
    config.seek(4)
    config.write(b"\6\0")
registers = mmap.mmap(os.open(device + "/resource0", os.O_RDWR), 0x2000)
register = lambda at: ctypes.c_uint32.from_buffer(registers, at)

def await_status(mask, bits):
    while register(0x1c).value & mask != bits: time.sleep(0.01)

def fail(commands, completions):
    register(0x14).value = 0
    await_status(1, 0)
    queues = (0x24, 0x1f001f), (0x28, commands), (0x30, completions)
    for at, value in queues:
        register(at).value, register(at + 4).value = value & 0xffffffff, value >> 32
    register(0x14).value = 0x460001
    await_status(1, 1)
    register(0x1000).value = 1
    # The bit of an earlier failure may still be set.
    time.sleep(3)
    await_status(2, 2)

page = mmap.mmap(-1, 4096)
page.write(bytes(4096))
place = ctypes.addressof(ctypes.c_char.from_buffer(page))
assert ctypes.CDLL(None).mlock(ctypes.c_void_p(place), 4096) == 0
with open("/proc/self/pagemap", "rb", buffering=0) as frames:
    frames.seek(place // 4096 * 8)
    commands = (int.from_bytes(frames.read(8), "little") & (1 << 55) - 1) << 12
assert commands

fail(NOWHERE, NOWHERE)
fail(commands, NOWHERE)
write("/sys/bus/pci/drivers/nvme/bind", address)
"#;

/// Checks that the guest reaches no memory but its own by its drive, as the host's IOMMU says, and
/// can use that afterwards.
#[track_caller]
fn reaches_nothing_of_the_host(guest: &StockGuest, host: Host<'_>) {
    guest.sh(host, &format!("cat > /root/reach.py << 'END'{REACH_OUT}END")).ok();
    guest.sh(host, "timeout 300 python3 /root/reach.py").ok();
    for access in ["Read", "Write"] {
        host.sh(&format!("dmesg | grep 'DMA {access}.*08\\.0.* fault addr 0x200000000'")).ok();
    }
    has_drive(guest, host);
}

/// Waits until the guest can read its drive.
#[track_caller]
fn has_drive(guest: &StockGuest, host: Host<'_>) {
    let read = "dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4 iflag=direct";
    until("the guest reads its drive", || {
        let done = guest.sh(host, read);
        holds(done.code == Some(0), done)
    });
}

/// Attaches a disk to the guest, which writes to it, and detaches it again.
#[track_caller]
fn a_disk_comes_and_goes(guest: &StockGuest, host: Host<'_>) {
    let disk = "/var/lib/disks/data.raw";
    host.sh(&format!("truncate -s 64M {disk}")).ok();
    host.lighter(&format!("attach-disk debian {disk},serial=data")).ok();
    let write = "mkfs.ext4 -q /dev/disk/by-id/virtio-data && mount /dev/disk/by-id/virtio-data /mnt \
        && echo kept > /mnt/file && umount /mnt";
    until("the guest has written to the disk", || {
        let done = guest.sh(host, write);
        holds(done.code == Some(0), done)
    });
    host.lighter(&format!("detach-disk debian {disk}")).ok();
    guest.sh(host, "! grep data /sys/block/vd*/serial").ok();
    let read = format!("mount -o ro,loop {disk} /mnt && cat /mnt/file && umount /mnt");
    assert_eq!(host.sh(&read).ok(), "kept\n");
}

/// Checks that the guest has been booted by the entry that its boot loader has added.
#[track_caller]
fn is_booted_by_its_own_entry(guest: &StockGuest, host: Host<'_>) {
    let entries = guest.sh(host, "efibootmgr").ok();
    let current = entries.lines().find_map(|line| line.strip_prefix("BootCurrent: "));
    let own = format!("Boot{}* ubuntu", current.expect("an entry"));
    assert!(entries.lines().any(|line| line.starts_with(&own)), "{entries}");
}

#[test]
fn a_cloud_image_of_ubuntu_has_a_device_of_its_host_moves_without_it_and_boots_again() {
    let lab = Lab::of(2);
    equip(&lab, 1);
    let [here, there] = lab.nodes();
    install([here, there]);
    share([here, there]);
    let made = script("cloud-image.sh", &["ubuntu"]);
    let guest = boot(&lab, here, &made, &format!("--device vfio={DRIVE}"));
    let system = guest.sh(here, ". /etc/os-release && echo $ID $VERSION_ID").ok();
    assert_eq!(system, "ubuntu 24.04\n");
    has_drive(&guest, here);
    a_disk_comes_and_goes(&guest, here);
    has_no_complaints(&guest, here);
    reaches_nothing_of_the_host(&guest, here);

    // The firmware finds the drive again, and boots from the disk.
    let before = boot_id(&guest, here);
    guest.sh(here, "reboot");
    await_another_boot(&guest, here, &before);
    has_drive(&guest, here);
    is_booted_by_its_own_entry(&guest, here);

    starts_echo(&guest, here);
    moves(&guest, here, there, "--detach-on-migrate");
    guest.sh(there, "! ls /dev/nvme0*").ok();
    is_booted_by_its_own_entry(&guest, there);
    there.lighter("shutdown debian --timeout 1h").ok();
    let guest = start(&lab, there, "");
    is_booted_by_its_own_entry(&guest, there);
    guest.shut_down(there);
    is_sound(here, "/srv/nfs/web.qcow2");
}

#[test]
fn a_cloud_image_upgrades_its_kernel_moves_is_restored_and_cloned() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    install([here, there]);
    share([here, there]);
    let made = script("cloud-image.sh", &["debian"]);
    let kernel = fs::read_dir(Path::new(&made).join("kernel")).expect("a folder");
    let kernel = kernel.map(|entry| entry.expect("an entry").path()).next().expect("a package");
    here.push(&[&kernel], "/srv");
    let guest = boot(&lab, here, &made, "");
    has_no_complaints(&guest, here);

    let old = guest.sh(here, "uname -r").ok();
    let first = boot_id(&guest, here);
    let package = kernel.file_name().and_then(|name| name.to_str()).expect("a name");
    here.sh(&format!("scp /srv/{package} {}:/root/", guest.address())).ok();
    guest.sh(here, &format!("dpkg -i /root/{package}")).ok();
    guest.sh(here, "reboot");
    await_another_boot(&guest, here, &first);
    let new = guest.sh(here, "uname -r").ok();
    assert!(new != old && package.contains(new.trim()), "{new} after {old}, from {package}");
    has_no_complaints(&guest, here);

    starts_echo(&guest, here);
    moves(&guest, here, there, "");
    has_no_complaints(&guest, there);

    assert_eq!(guest.sh(there, &format!("dmesg | {RESEEDED}")).stdout, "0\n");
    there.lighter("save debian /var/tmp/debian.lighter").ok();
    there.lighter("restore /var/tmp/debian.lighter --name debian --detach").ok();
    guest.await_booted(there);
    until("it draws other random numbers", || {
        let seen = guest.sh(there, &format!("dmesg | {RESEEDED}"));
        if seen.stdout == "1\n" { Ok(()) } else { Err(seen) }
    });
    has_no_complaints(&guest, there);
    its_clone_draws_others(&guest, there);
    guest.shut_down(there);
    is_sound(here, "/srv/nfs/web.qcow2");
}
