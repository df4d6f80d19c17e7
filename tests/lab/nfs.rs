//! Disks on NFS, which both hosts share.

use crate::disks::{RUN, hosts};
use crate::fixtures::{Host, Lab, StockGuest};
use crate::qcow2::grows;

/// The folder that the first host exports, as both hosts have it.
pub(crate) const SHARED: &str = "/var/lib/disks/nfs";

/// Exports a folder by NFS 4, without the time of grace in which clients of an earlier server would
/// claim their locks. It goes on serving after the test: a process of the other host that has a
/// file open could not be killed without it.
const SERVE: &str = "set -e; rm -rf /srv/nfs; mkdir -p /srv/nfs; modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
echo '/srv/nfs *(rw,sync,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
rpc.nfsd --no-nfs-version 3 2
grep -q Y /proc/fs/nfsd/v4_end_grace || echo Y > /proc/fs/nfsd/v4_end_grace
exportfs -ra; pgrep -x rpc.mountd || rpc.mountd --no-nfs-version 3";

/// Lets the first host serve [`SHARED`], and mounts it on both.
pub(crate) fn share([here, there]: [Host<'_>; 2]) {
    here.sh(SERVE).ok();
    let server = here.address();
    for host in [here, there] {
        host.sh(&format!("mkdir -p {SHARED} && mount -t nfs4 {server}:/ {SHARED}")).ok();
    }
}

#[test]
fn a_disk_on_nfs_has_one_writer_on_all_hosts() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    share([here, there]);
    let disk = format!("{SHARED}/db.raw");
    here.sh(&format!("truncate -s 16M {disk}")).ok();
    here.lighter(&format!("{RUN} db --disk {disk}")).ok();
    let used = [disk.as_str(), "in use"];
    there.lighter(&format!("{RUN} other --disk {disk}")).complains(&used);
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
    let moved = [disk.as_str(), "belongs to the guest db", "has it as db (running)"];
    here.lighter(&format!("{RUN} other --disk {disk}")).complains(&moved);

    // The client holds a delegation, which the server recalls.
    let own = "/srv/nfs/own.raw";
    here.sh(&format!("truncate -s 16M {own}")).ok();
    there.sh(&format!("setsid -f sleep 600 < {SHARED}/own.raw > /dev/null 2>&1")).ok();
    here.sh("grep DELEG /proc/locks").ok();
    here.lighter(&format!("{RUN} own --disk {own}")).ok();
}

/// Writes block after block of the guest's second disk past its cache, in an order that comes to
/// each of the 1024, and each with the number of the write: some 20 a second, until `/run/stop`
/// exists. Then it says in `/run/wrote` how many it wrote.
const WRITER: &str = "import mmap, os, struct, time
disk, page, count = os.open('/dev/vdb', os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096), 0
while not os.path.exists('/run/stop'):
    count += 1
    page[:] = struct.pack('<Q', count) * 512
    os.pwrite(disk, page, count * 7 % 1024 * 4096)
    time.sleep(0.05)
open('/run/wrote', 'w').write(str(count))";

/// Checks that each block has what was written to it last; fails otherwise.
const CHECKER: &str = "import mmap, os, struct
disk, page, count = os.open('/dev/vdb', os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096), 0
last = {number * 7 % 1024: number for number in range(1, int(open('/run/wrote').read()) + 1)}
assert last, 'nothing was written'
for block in range(1024):
    os.preadv(disk, [page], block * 4096)
    found, expected = page[:], struct.pack('<Q', last.get(block, 0)) * 512
    assert found == expected, (block, last.get(block), found[:16])";

/// Has the guest write its second disk until [`expect_written`].
pub(crate) fn begin_writing(guest: &StockGuest, host: Host<'_>) {
    let start = format!("setsid -f python3 -c \"{WRITER}\" > /run/writer.log 2>&1 < /dev/null");
    guest.sh(host, &start).ok();
}

/// Ends the writes, and checks that the disk has all of them.
#[track_caller]
pub(crate) fn expect_written(guest: &StockGuest, host: Host<'_>) {
    let stop = "touch /run/stop; timeout 300 sh -c 'until [ -s /run/wrote ]; do sleep 1; done'";
    guest.sh(host, stop).ok();
    guest.sh(host, &format!("cat /run/writer.log; python3 -c \"{CHECKER}\"")).ok();
}

#[test]
fn a_disk_that_its_guest_writes_is_copied_to_nfs_and_back() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    share([here, there]);
    let (own, shared) = ("/var/lib/disks/data.raw", format!("{SHARED}/data.raw"));
    here.sh(&format!("rm -f {own} && truncate -s 4M {own}")).ok();
    let guest = StockGuest::boot(&lab, here, 1, &format!("--disk {own}"));
    begin_writing(&guest, here);
    for (from, to, [before, after], bytes) in
        [(here, there, [own, &shared], 8 << 20), (there, here, [&shared, own], 12 << 20)]
    {
        // On the way back there is the file that the guest left.
        let options = format!("--copy-disk {before} --disk-path {before}={after} --replace-disks");
        let migrate = format!("migrate debian {} {options} --downtime 10s --json", to.address());
        let report = from.lighter(&migrate).json();
        assert_eq!(report["outcome"], "migrated", "{report:#}");
        assert!(report["transfer"]["disk_pages"].as_u64() > Some(0), "{report:#}");
        // Nothing else is left there by the copy, either way.
        assert_eq!(there.sh(&format!("ls -A {SHARED}")).ok().trim(), "data.raw");
        grows(&guest, to, ("vdb", after), bytes);
    }
    expect_written(&guest, here);
    guest.shut_down(here);
}
