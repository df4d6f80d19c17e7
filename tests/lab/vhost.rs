//! A stock guest whose frames the host's kernel carries (vhost-net), also while it migrates.

use serde_json::Value;

use crate::fixtures::{Host, Lab, StockGuest, Stream, holds, until};

/// Moves all interrupts of the guest's network device from one vCPU to the other and back, a
/// hundred times: with each move, the guest masks them and lets them through again.
const MOVE_INTERRUPTS: &str = r"
for turn in $(seq 100); do
    for irq in $(sed -n '/virtio.*-\(input\|output\)/s/:.*//p' /proc/interrupts); do
        echo $((turn % 2 + 1)) > /proc/irq/$irq/smp_affinity
    done
done";

/// Prints how often the queues with this number have interrupted.
const INTERRUPTS: &str = r"awk '/-(in|out)put\.NUMBER/ { print $2 + $3 }' /proc/interrupts";

/// Sends a file of 4 MiB into the guest, and says how it was.
const SEND_FILE: &str = "head -c 4M /dev/urandom > /tmp/lab/file; \
    ssh -o ServerAliveInterval=10 -o ServerAliveCountMax=90 ADDRESS 'cat > /dev/shm/file' < /tmp/lab/file \
    && sha256sum < /tmp/lab/file > /tmp/lab/sum";

fn net(host: Host<'_>) -> Value {
    host.ask("debian", "/v1/guest").expect("a guest")["nets"][0].clone()
}

/// Waits until the guest's frames are carried by the host's kernel, or by lighter.
#[track_caller]
fn await_vhost(host: Host<'_>, expected: bool) {
    until("the right one carries the frames", || {
        let net = net(host);
        holds(net["vhost"] == expected, net)
    });
}

/// Checks that the guest on `host` receives and sends by the second pair of queues of its network
/// device: what its second vCPU sends, and the answers.
#[track_caller]
fn expect_second_pair(guest: &StockGuest, host: Host<'_>) {
    let interrupts = || -> Vec<u64> {
        let printed = guest.sh(host, &INTERRUPTS.replace("NUMBER", "1")).ok();
        printed.lines().map(|line| line.parse().expect("a number")).collect()
    };
    let before = interrupts();
    assert_eq!(before.len(), 2, "a pair");
    guest.sh(host, "taskset -c 1 ping -c 10 -i 0.2 -w 300 10.77.0.3").ok();
    let after = interrupts();
    assert!(
        before.iter().zip(&after).all(|(before, after)| before < after),
        "{before:?} {after:?}"
    );
}

#[test]
fn a_guest_moves_between_hosts_with_and_without_it_and_loses_no_byte() {
    let lab = Lab::of(3);
    lab.host(2).sh("echo LIGHTER_VHOST_NET=off > /run/lab/node.env").ok();
    let [with, without] = lab.nodes();
    let guest = StockGuest::boot_on_net(&lab, with, 2, "bridge=br0,queues=2", "");
    await_vhost(with, true);
    expect_second_pair(&guest, with);
    let stream = Stream::begin(lab.host(3), &guest);
    guest.sh(with, MOVE_INTERRUPTS).ok();
    stream.await_more();

    for (from, to, expected) in [(with, without, false), (without, with, true)] {
        let send = SEND_FILE.replace("ADDRESS", guest.address());
        lab.host(3)
            .sh(&format!(
                "rm -f /tmp/lab/sum; systemd-run --quiet --collect --unit lab-file sh -c \"{send}\""
            ))
            .ok();
        from.lighter(&format!("migrate debian {} --downtime 10s", to.address())).ok();
        await_vhost(to, expected);
        let sent = until("the file has come", || {
            let done = lab.host(3).sh("cat /tmp/lab/sum");
            if done.code == Some(0) { Ok(done.stdout) } else { Err(done) }
        });
        assert_eq!(guest.sh(to, "sha256sum < /dev/shm/file").ok(), sent);
        stream.await_more();
        expect_second_pair(&guest, to);
        for count in ["1", "2"] {
            guest.sh(to, &format!("ethtool --set-channels eth0 combined {count}")).ok();
            stream.await_more();
        }
        expect_second_pair(&guest, to);
    }

    with.lighter("pause debian").ok();
    assert_eq!(net(with)["vhost"], false, "a paused guest is left alone");
    with.lighter("resume debian").ok();
    stream.await_more();
    let seen = net(with);
    assert!(seen["received"]["bytes"].as_u64() > Some(256 << 10), "{seen}");
    assert!(seen["transmitted"]["packets"].as_u64() > Some(100), "{seen}");
    with.lighter("save debian /var/tmp/debian.lighter").ok();
    with.lighter("restore /var/tmp/debian.lighter --name debian --detach").ok();
    await_vhost(with, true);
    stream.await_more();
    println!("{}", stream.finish());
    guest.shut_down(with);
}

#[test]
fn a_guest_runs_on_a_host_without_it() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    host.sh("mv /dev/vhost-net /dev/vhost-net.away").ok();
    let guest = StockGuest::boot(&lab, host, 1, "");
    host.sh("mv /dev/vhost-net.away /dev/vhost-net").ok();
    assert_eq!(net(host)["vhost"], false);
    assert!(host.lighter("show debian").stdout.contains("br0; received"));
    guest.shut_down(host);
}
