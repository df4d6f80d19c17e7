//! Disks on NFS, which both hosts share.

use crate::disks::{RUN, hosts};
use crate::fixtures::Lab;

/// The folder that the first host exports, as both hosts have it.
const SHARED: &str = "/var/lib/disks/nfs";

/// Exports a folder by NFS 4, without the time of grace in which clients of an earlier server would
/// claim their locks. It goes on serving after the test: a process of the other host that has a
/// file open could not be killed without it.
const SERVE: &str = "set -e; rm -rf /srv/nfs; mkdir -p /srv/nfs; modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
echo '/srv/nfs *(rw,sync,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
rpc.nfsd --no-nfs-version 3 2; echo Y > /proc/fs/nfsd/v4_end_grace
exportfs -ra; pgrep -x rpc.mountd || rpc.mountd --no-nfs-version 3";

#[test]
fn a_disk_on_nfs_has_one_writer_on_all_hosts() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    here.sh(SERVE).ok();
    let server = here.address();
    for host in [here, there] {
        host.sh(&format!("mkdir -p {SHARED} && mount -t nfs4 {server}:/ {SHARED}")).ok();
    }
    let disk = format!("{SHARED}/db.raw");
    here.sh(&format!("truncate -s 16M {disk}")).ok();
    here.lighter(&format!("{RUN} db --disk {disk}")).ok();
    let used = [disk.as_str(), "in use"];
    there.lighter(&format!("{RUN} other --disk {disk}")).complains(&used);
    here.lighter(&format!("migrate db {} --downtime 10s", there.address())).ok();
    assert_eq!(there.state_of("db").as_deref(), Some("running"));
    let moved = [disk.as_str(), "belongs to the guest db", "has it as db (running)"];
    here.lighter(&format!("{RUN} other --disk {disk}")).complains(&moved);
}
