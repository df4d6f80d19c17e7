//! A disk that is copied with its guest, one of whose vCPUs writes the disk, and another one
//! memory, faster than the link between the hosts carries: both are throttled until all arrives.

use crate::fixtures::{Host, Lab, StockGuest, until};
use crate::nfs::{SHARED, share};

const DISK: &str = "/var/lib/disks/data.raw";
/// Where a host has a block device, which its node allows, for what [`DISK`] is elsewhere.
const DEVICE: &str = "/var/lib/disks/device";
/// netem options of a link that takes longer for all of the disk than the guest takes to write it.
const SLOW_LINK: &str = "rate 8mbit limit 60";

/// Writes each piece of the guest's second disk, again and again, past the guest's page cache, by 8
/// threads, each from one buffer: so it dirties the disk, and hardly any memory. Before that it
/// reads the piece, and counts those that are not as it has written them. Writes to /run/writer how
/// often it has written all, and that count; once it is told to end, also the checksum of what it
/// has written.
const WRITER: &str = r#"
import hashlib, mmap, os, signal, threading
from concurrent.futures import ThreadPoolExecutor

PIECE = 1 << 16
disk = os.open("/dev/vdb", os.O_RDWR | os.O_DIRECT)
pieces = os.lseek(disk, 0, os.SEEK_END) // PIECE
content = os.urandom(PIECE)
own = threading.local()
turn, bad, ended = 0, 0, []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))

def marked(turn, at):
    return turn.to_bytes(8, "little") + at.to_bytes(8, "little")

def write(at):
    if not hasattr(own, "piece"):
        own.piece, own.seen = mmap.mmap(-1, PIECE), mmap.mmap(-1, PIECE)
        own.piece[:] = content
    is_bad = False
    if turn > 0:
        own.piece[:16] = marked(turn, at)
        os.preadv(disk, [own.seen], at * PIECE)
        is_bad = own.seen[:] != own.piece[:]
    own.piece[:16] = marked(turn + 1, at)
    os.pwritev(disk, [own.piece], at * PIECE)
    return is_bad

def tell(text):
    with open("/run/writer.new", "w") as out:
        out.write(text)
    os.replace("/run/writer.new", "/run/writer")

with ThreadPoolExecutor(8) as threads:
    while not ended:
        bad += list(threads.map(write, range(pieces))).count(True)
        turn += 1
        tell(f"{turn} {bad}")
os.fsync(disk)
written = hashlib.sha256()
for at in range(pieces):
    written.update(marked(turn, at) + content[16:])
tell(f"{turn} {bad} {written.hexdigest()}")
"#;

/// Writes 8 MiB of memory over and over: far more pages than [`WRITER`].
const MEMORY_WRITER: &str = r#"
import mmap, os

memory = mmap.mmap(-1, 8 << 20)
memory[:] = os.urandom(len(memory))
turn = 0
while True:
    turn += 1
    for at in range(0, len(memory), 4096):
        memory[at:at + 8] = turn.to_bytes(8, "little")
"#;

#[test]
fn a_disk_that_is_written_faster_than_the_link_carries_arrives_as_a_file() {
    arrives_throttled(DISK, "");
}

#[test]
fn a_disk_that_is_written_faster_than_the_link_carries_arrives_on_a_block_device() {
    arrives_throttled(DEVICE, &format!("--replace-disks --unsafe --disk-path {DISK}={DEVICE}"));
}

#[test]
fn a_disk_that_is_written_faster_than_the_link_carries_arrives_over_nfs() {
    let place = format!("{SHARED}/data.raw");
    arrives_throttled(&place, &format!("--disk-path {DISK}={place}"));
}

fn arrives_throttled(place: &str, options: &str) {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    if place.starts_with(SHARED) {
        share([here, there]);
    }
    let device = format!(
        "truncate -s 16M /var/lib/disks/backing && loop=$(losetup --find --show /var/lib/disks/backing) && \
         mknod {DEVICE} b $(lsblk --noheadings --output maj:min $loop | tr : ' ')"
    );
    there.sh(&device).ok();
    here.sh(&format!("truncate -s 16M {DISK}")).ok();
    here.shape(SLOW_LINK);
    let guest = StockGuest::boot(&lab, here, 2, &format!("--disk {DISK}"));
    for (name, script, cpu) in [("writer", WRITER, 0), ("memory-writer", MEMORY_WRITER, 1)] {
        guest.sh(here, &format!("cat > /root/{name}.py <<E\n{script}\nE")).ok();
        let pinned = format!("--property CPUAffinity={cpu} python3 /root/{name}.py");
        guest.sh(here, &format!("systemd-run --quiet --unit {name} {pinned}")).ok();
    }
    await_turns(here, &guest, 2);

    let migrate = format!("migrate debian {} --copy-disk {DISK} {options}", there.address());
    let report =
        here.lighter(&format!("{migrate} --on-stall throttle --downtime 5s --json")).json();

    println!("{report:#}");
    assert_eq!(report["outcome"], "migrated", "{report:#}");
    assert!(report["stall"]["throttle_percent_max"].as_u64() >= Some(20), "{report:#}");
    assert_eq!(report["stall"]["forced"], false, "{report:#}");
    let decisions = report["decisions"].as_array().expect("a list");
    let limits = decisions.iter().filter_map(|one| one["disk_bytes_per_second"].as_u64());
    // A quarter of a link of 1 MB/s.
    assert!(limits.max().is_some_and(|limit| limit < 500_000), "{report:#}");
    assert_eq!(here.state_of("debian"), None);
    // It has read, and found as it was, each piece that was copied.
    let turn = await_turns(there, &guest, 0);
    await_turns(there, &guest, turn + 2);
    guest.sh(there, "systemctl kill --signal TERM writer").ok();
    let sum = until("the writer ends", || {
        let said = guest.sh(there, "cat /run/writer").stdout;
        said.split_whitespace().nth(2).map(str::to_owned).ok_or(said)
    });
    let content = there.sh(&format!("head -c 16M {place} | sha256sum")).ok();
    assert!(content.starts_with(&sum), "{content} instead of {sum}");
}

/// Waits until the guest has written its disk `turns` times, and asserts that it has always read
/// what it has written; returns how often it has written all of it.
#[track_caller]
fn await_turns(host: Host<'_>, guest: &StockGuest, turns: u64) -> u64 {
    until("the guest writes its disk", || {
        let said = guest.sh(host, "cat /run/writer");
        let words: Vec<u64> =
            said.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [turn, bad] = words[..] else { return Err(said) };
        assert_eq!(bad, 0, "pieces are not as they were written");
        if turn >= turns { Ok(turn) } else { Err(said) }
    })
}
