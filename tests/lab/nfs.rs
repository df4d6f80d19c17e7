//! Disks on NFS: shared by both hosts, or copied there while the guest writes them.

use std::path::Path;

use crate::fixtures::{Host, Lab, StockGuest};
use support::kernel::sleeper;

const DISK: &str = "/var/lib/disks/data.raw";
/// The folder that the first host exports, as both hosts have it.
const SHARED: &str = "/var/lib/disks/nfs";

/// Exports a folder by NFS 4, without the time of grace in which clients of an earlier server would
/// claim their locks.
const SERVE: &str = "set -e; rm -rf /srv/nfs; mkdir -p /srv/nfs; modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
echo '/srv/nfs *(rw,sync,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
rpc.nfsd --no-nfs-version 3 2; echo Y > /proc/fs/nfsd/v4_end_grace
exportfs -ra; rpc.mountd --no-nfs-version 3";

/// Writes 8 MiB of the disk in the guest, block by block in a fixed order, again and again; each
/// block is filled with the number of its write. `stop` ends it and says whether each block has its
/// last write: then the numbers are consecutive.
const WRITER: &str = r#"
import os, signal, struct, sys
BLOCKS = 2048
disk = os.open("/dev/vdb", os.O_RDWR)
if sys.argv[1] == "write":
    running = True
    def stop(*_):
        global running
        running = False
    signal.signal(signal.SIGTERM, stop)
    number = 0
    while running:
        os.pwrite(disk, struct.pack("<Q", number) * 512, number * 7919 % BLOCKS * 4096)
        number += 1
        if number % 64 == 0:
            os.fsync(disk)
    os.fsync(disk)
    print(number, file=open("/run/written", "w"))
else:
    last = int(open("/run/written").read())
    for number in range(last - BLOCKS, last):
        block = os.pread(disk, 4096, number * 7919 % BLOCKS * 4096)
        if block != struct.pack("<Q", number) * 512:
            sys.exit(f"write {number} of {last} is not on the disk: {block[:16].hex()}")
    print("all", last)
"#;

/// Two hosts, both of which have [`SHARED`].
fn hosts(lab: &Lab) -> [Host<'_>; 2] {
    let hosts = lab.nodes();
    hosts[0].sh(SERVE).ok();
    for host in hosts {
        let server = hosts[0].address();
        host.sh(&format!("mkdir -p {SHARED} && mount -t nfs4 {server}:/ {SHARED}")).ok();
    }
    hosts
}

#[test]
fn a_disk_on_nfs_has_one_writer_on_all_hosts() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    let disk = format!("{SHARED}/db.raw");
    here.sh(&format!("truncate -s 16M {disk}")).ok();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kernel = sleeper(folder.path());
    for host in [here, there] {
        host.push(&[Path::new(&kernel)], "/var/lib/disks");
    }
    let run =
        format!("run --detach --memory 64M --kernel /var/lib/disks/sleeper --disk {disk} --name");
    here.lighter(&format!("{run} db")).ok();
    let used = [disk.as_str(), "in use"];
    there.lighter(&format!("{run} other")).complains(&used);
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
    here.lighter(&format!("{run} other")).complains(&used);
}

#[test]
fn a_disk_that_its_guest_writes_is_copied_to_nfs_and_back() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    here.sh(&format!("truncate -s 16M {DISK}")).ok();
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {DISK}"));
    let script = format!("cat > /run/writer.py << 'PYTHON'{WRITER}PYTHON\n");
    guest.sh(here, &script).ok();
    guest.sh(here, "systemd-run --quiet --unit writer python3 /run/writer.py write").ok();

    // The other disk stays where it is: both hosts have it.
    let copy = format!("{SHARED}/copy.raw");
    let options = format!("--copy-disk {DISK} --disk-path {DISK}={copy} --downtime 10s --json");
    let report = here.lighter(&format!("migrate debian {} {options}", there.address())).json();
    assert_eq!(report["outcome"], "migrated", "{report:#}");
    has_only(there, "copy.raw");
    let options = format!(
        "--copy-disk {copy} --disk-path {copy}={DISK} --replace-disks --downtime 10s --json"
    );
    let report = there.lighter(&format!("migrate debian {} {options}", here.address())).json();
    assert_eq!(report["outcome"], "migrated", "{report:#}");

    guest.sh(here, "systemctl stop writer && echo 3 > /proc/sys/vm/drop_caches").ok();
    let checked = guest.sh(here, "python3 /run/writer.py check").ok();
    assert!(checked.starts_with("all "), "{checked}");
    guest.shut_down(here);
}

/// Asserts that the shared folder has this file, and nothing else.
#[track_caller]
fn has_only(host: Host<'_>, file: &str) {
    assert_eq!(host.sh(&format!("ls -A {SHARED}")).ok().trim(), file);
}
