//! A stock Debian guest in ordinary use: it boots, shuts down and reboots by ACPI, uses its
//! devices, and migrates while a client on a third host streams a file through it.

use crate::fixtures::{Host, Lab, StockGuest, Stream, holds, until};

/// The limit of a migration's downtime. It is generous: emulated hosts are slow, their link carries
/// 1 MB/s, and nothing is timed here.
const DOWNTIME: &str = "10s";

/// netem options of the link between the hosts.
const LINK: &str = "delay 5ms loss 0.1%";

/// Runs a guest without a PCI bus.
const ON_MMIO: &str = "--machine mmio";

#[test]
fn one_vcpu_moves_ten_times() {
    moves(1, 10, "");
}

#[test]
fn two_vcpus_move_twice() {
    moves(2, 2, "");
}

#[test]
fn two_vcpus_on_mmio_move_twice() {
    moves(2, 2, ON_MMIO);
}

#[test]
fn two_vcpus_move_ten_times() {
    moves(2, 10, "");
}

#[test]
fn four_vcpus_move_ten_times() {
    moves(4, 10, "");
}

#[test]
fn four_vcpus_on_mmio_move_ten_times() {
    moves(4, 10, ON_MMIO);
}

fn moves(cpus: u16, moves: usize, options: &str) {
    let lab = Lab::of(3);
    let mut hosts = lab.nodes();
    for host in hosts {
        host.shape(LINK);
    }
    let guest = StockGuest::boot(&lab, hosts[0], cpus, options);
    let stream = Stream::begin(lab.host(3), &guest);
    let before = guest.health(hosts[0]);
    for turn in 1..=moves {
        let [from, to] = hosts;
        let streamed = stream.bytes();
        let done =
            from.lighter(&format!("migrate debian {} --json --downtime {DOWNTIME}", to.address()));
        let report = done.json();
        println!(
            "move {turn}: downtime {} s, total {} s",
            report["downtime_seconds"], report["total_seconds"]
        );
        assert!(stream.bytes() > streamed, "the guest did not run while it was migrated");
        assert_eq!(from.state_of("debian"), None);
        stream.await_more();
        hosts.reverse();
        if turn == 1 {
            guest.health(hosts[0]).is_as_good_as(&before);
        }
    }
    let seen = stream.finish();
    println!("{cpus} vCPUs: {seen}");
    let after = guest.health(hosts[0]);
    println!("before {before:?}, after {after:?}");
    after.is_as_good_as(&before);
    guest.shut_down(hosts[0]);
}

#[test]
fn sixteen_vcpus_move_and_are_restored() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 16, "");
    let topology = "lscpu | grep -E '^(Thread|Core|Socket)'; cat /sys/devices/system/cpu/online";
    let before = guest.sh(here, topology).ok();
    here.lighter(&format!("migrate debian {} --downtime {DOWNTIME}", there.address())).ok();
    assert_eq!(guest.sh(there, topology).ok(), before);
    there.lighter("save debian /var/tmp/debian.lighter").ok();
    there.lighter("restore /var/tmp/debian.lighter --name debian --detach").ok();
    guest.await_booted(there);
    let log = guest.sh(there, "dmesg").ok();
    assert!(log.contains("x2apic enabled"), "{log}");
    let complaints = guest.sh(there, "dmesg | grep -iE 'apic id mismatch|firmware bug'").stdout;
    assert_eq!(complaints, "");
    guest.shut_down(there);
}

/// Counts how often a guest's kernel says that it has reseeded its random numbers because it is a
/// copy.
pub(crate) const RESEEDED: &str = "grep -c 'crng reseeded due to virtual machine fork'";

/// A migration continues the one guest that there is; from a file, several could continue.
#[test]
fn a_restored_guest_reseeds_its_random_numbers() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 1, "");
    here.lighter(&format!("migrate debian {} --downtime {DOWNTIME}", there.address())).ok();
    assert_eq!(guest.sh(there, &format!("dmesg | {RESEEDED}")).stdout, "0\n");
    for time in 1..=2 {
        there.lighter("save debian /var/tmp/debian.lighter").ok();
        there.lighter("restore /var/tmp/debian.lighter --name debian --detach").ok();
        guest.await_booted(there);
        assert_eq!(guest.sh(there, &format!("dmesg | {RESEEDED}")).stdout, format!("{time}\n"));
    }
    guest.shut_down(there);
}

#[test]
fn one_vcpu_uses_its_devices_and_reboots() {
    uses_its_devices_and_reboots(1, "");
}

#[test]
fn two_vcpus_use_their_devices_and_reboot() {
    uses_its_devices_and_reboots(2, "");
}

#[test]
fn two_vcpus_on_mmio_use_their_devices_and_reboot() {
    uses_its_devices_and_reboots(2, ON_MMIO);
}

#[test]
fn four_vcpus_use_their_devices_and_reboot() {
    uses_its_devices_and_reboots(4, "");
}

#[test]
fn a_pci_bus_is_found_without_a_warning() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    let guest = StockGuest::boot(&lab, host, 2, "");
    let complaints =
        "dmesg --level=emerg,alert,crit,err,warn | grep -iE 'pci|acpi|ecam|mmconfig|msi'";
    assert_eq!(guest.sh(host, complaints).stdout, "");
    let functions = guest.sh(host, "cat /sys/bus/pci/devices/*/vendor | sort | uniq -c").ok();
    let counts: Vec<&str> = functions.split_whitespace().collect();
    // Disk, network, entropy, balloon and vsock behind the host bridge.
    assert_eq!(counts, ["5", "0x1af4", "1", "0x8086"], "{functions}");
    let interrupts = guest.sh(host, "grep -c 'PCI-MSI.*virtio' /proc/interrupts").ok();
    assert!(interrupts.trim().parse().is_ok_and(|count: u32| count >= 10), "{interrupts}");
    guest.shut_down(host);
}

/// Reasons of exits (`KVM_EXIT_IO`, `KVM_EXIT_MMIO`): the guest accesses a port, or a register in
/// memory.
const PORT: &str = "2";
const MEMORY: &str = "6";

/// The kernel passes on what the guest notifies its devices of, and their interrupts.
#[test]
fn requests_to_disks_and_networks_cause_no_exits_to_user_space() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    let guest = StockGuest::boot(&lab, host, 2, "");
    let (tracing, event) = ("/run/tracing", "/run/tracing/events/kvm/kvm_userspace_exit");
    host.sh(&format!(
        "mkdir -p {tracing} && mount -t tracefs none {tracing} && echo hist:keys=reason > {event}/trigger"
    ))
    .ok();
    let exits = |reason: &str| {
        let counted = host.sh(&format!("cat {event}/hist")).ok();
        let mut lines = counted.lines().filter(|line| line.starts_with("{ reason: "));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let line = lines.find(|line| words(line)[2] == reason).map(words);
        line.map_or(0, |words| words[5].parse::<u64>().expect("a number of exits"))
    };
    let before = exits(PORT);
    guest.sh(host, "head -c 1000 /dev/zero | tr '\\0' x > /dev/ttyS0").ok();
    // The guest's kernel sends them on its own, after the program that wrote them has ended.
    until("each byte for the serial console is an exit", || {
        let since = exits(PORT) - before;
        holds(since >= 1000, since)
    });
    guest.sh(host, "dd if=/dev/vda of=/dev/null bs=4k count=4000 iflag=direct status=none").ok();
    host.sh(&format!("ping -q -f -c 2000 {}", guest.address())).ok();
    let (requests, port) = (exits(MEMORY), exits(PORT));
    println!("{requests} exits for registers in memory and {port} for ports, for 6000 requests");
    host.sh(&format!("echo '!hist:keys=reason' > {event}/trigger; umount {tracing}")).ok();
    assert!(requests < 60, "{requests} for 6000 requests");
}

fn uses_its_devices_and_reboots(cpus: u16, options: &str) {
    let lab = Lab::of(1);
    let host = lab.host(1);
    let guest = StockGuest::boot(&lab, host, cpus, options);
    follows_its_balloon(host);
    reports_free_pages(&guest, host);
    draws_entropy(&guest, host);
    answers_by_vsock(host);
    knows_who_it_is(&guest, host);
    host.lighter("reboot debian --timeout 1h").ok();
    await_restarts(host, 1);
    guest.await_booted(host);
    knows_who_it_is(&guest, host);
    guest.sh(host, "reboot");
    await_restarts(host, 2);
    guest.await_booted(host);
    guest.shut_down(host);
}

fn await_restarts(host: Host<'_>, count: u64) {
    until("it boots again", || {
        let shown = host.ask("debian", "/v1/guest")?;
        if shown["restarts"] == count { Ok(()) } else { Err(shown.to_string()) }
    });
}

fn follows_its_balloon(host: Host<'_>) {
    for target_mib in [384, 512] {
        host.lighter(&format!("balloon debian {target_mib}M")).ok();
        until("it follows its balloon's target", || {
            let seen = host.lighter("balloon debian --json").json();
            holds(seen["actual_bytes"] == target_mib << 20_u64, seen)
        });
    }
}

fn reports_free_pages(guest: &StockGuest, host: Host<'_>) {
    let resident = || host.lighter("balloon debian --json").json();
    // In huge pages: the guest's kernel reports free blocks of 2 MiB and more, and may keep smaller
    // ones.
    guest
        .sh(
            host,
            "mount -t tmpfs -o huge=always none /mnt && head -c 128M /dev/urandom > /mnt/filler",
        )
        .ok();
    let before = resident();
    guest.sh(host, "umount /mnt").ok();
    until("the host has what it freed", || {
        let now = resident();
        let given = before["resident_bytes"].as_u64().zip(now["resident_bytes"].as_u64());
        holds(
            given.is_some_and(|(before, now)| now + (96 << 20) < before),
            (before.to_string(), now),
        )
    });
}

fn draws_entropy(guest: &StockGuest, host: Host<'_>) {
    let entropy = "cat /sys/class/misc/hw_random/rng_current; head -c 64 /dev/hwrng | wc -c";
    assert_eq!(guest.sh(host, entropy).ok(), "virtio_rng.0\n64\n");
}

fn knows_who_it_is(guest: &StockGuest, host: Host<'_>) {
    let seen = guest.sh(host, "cd /sys/class/dmi/id && cat sys_vendor product_name product_uuid");
    let shown = host.ask("debian", "/v1/guest").expect("a guest");
    let uuid = shown["uuid"].as_str().expect("a UUID");
    assert_eq!(seen.ok(), format!("lighter\nlighter guest\n{uuid}\n"));
}

fn answers_by_vsock(host: Host<'_>) {
    let hello = "printf 'CONNECT 7\\nhello\\n' | socat -t 20 - UNIX-CONNECT:/var/lib/lighter/vsock/debian.sock";
    let heard = host.sh(hello).ok();
    assert!(heard.starts_with("OK ") && heard.ends_with("hello\n"), "{heard}");
}
