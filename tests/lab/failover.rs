//! A failover pair: a network device and a card of the host with the same address, of which the
//! guest's system makes one.

use crate::fixtures::{Host, Lab, StockGuest, Stream, holds, until};
use crate::vfio::give_to_vfio;

/// The card, as both hosts have it and as nodes give it to guests from other hosts.
const CARD: &str = "0000:01:00.0";
/// The address of the pair.
const MAC: &str = "52:54:00:99:00:01";
/// The guest's IP address at the pair, and the client's.
const ADDRESS: &str = "10.88.0.15";
const CLIENT: &str = "10.88.0.3/24";
/// The interfaces of which the guest has made one.
const PARTS: &str = "ls -d /sys/class/net/*/lower_*";
/// The stream moves that much for a file; what else is sent meanwhile is less.
const FILE_BYTES: u64 = 1 << 18;

/// Gives a host the card, in the hands of vfio-pci.
fn equip(lab: &Lab, number: usize) {
    let cable = format!("tap,id=spare,ifname=spare{number},script=no,downscript=no");
    // Behind a port: elsewhere such a card cannot be reset.
    let port = "pcie-root-port,id=rootport,addr=0x9,chassis=1";
    // Linux makes pairs with devices that are on a PCI bus themselves, as virtio's are not.
    let card = format!("e1000e,bus=rootport,netdev=spare,mac={MAC}");
    lab.restart_with(number, &["-netdev", &cable, "-device", port, "-device", &card]);
    give_to_vfio(lab.host(number), &[CARD]);
}

/// Waits until the guest sends by the card: then it has two parts, and what the client gets does
/// not come by the network device.
#[track_caller]
fn sends_by_card(guest: &StockGuest, host: Host<'_>, stream: &Stream<'_>) {
    until("the guest makes one of the two", || {
        let parts = guest.sh(host, PARTS);
        holds(parts.stdout.lines().count() == 2, parts)
    });
    until("the guest sends by the card", || {
        let before = sent(host);
        stream.await_more();
        let after = sent(host);
        holds(after - before < FILE_BYTES / 2, (before, after))
    });
}

/// The bytes that the guest has sent by its network device.
fn sent(host: Host<'_>) -> u64 {
    let shown = host.ask("debian", "/v1/guest").expect("a guest");
    let net = &shown["nets"][1];
    assert_eq!(net["standby"], true, "{net}");
    net["transmitted"]["bytes"].as_u64().expect("a number")
}

#[test]
fn a_guest_sends_by_its_network_device_while_it_has_no_card() {
    let lab = Lab::of(3);
    [1, 2].into_iter().for_each(|number| equip(&lab, number));
    let [here, there] = lab.nodes();
    let client = lab.host(3);
    client.sh(&format!("ip address add {CLIENT} dev br0")).ok();
    let net = format!("--net bridge=br0,mac={MAC},standby");
    let guest = StockGuest::boot(&lab, here, 1, &net);
    let up = format!(
        "pair=$({PARTS} | head -n 1 | cut -d/ -f5) && ip address add {ADDRESS}/24 dev $pair && ip link set $pair up"
    );
    guest.sh(here, &up).ok();
    let stream = Stream::begin_to(client, ADDRESS);
    assert!(sent(here) > FILE_BYTES);

    here.lighter(&format!("attach-device debian vfio={CARD}")).ok();
    sends_by_card(&guest, here, &stream);

    // What the destination does not give is refused before the card is taken away.
    let migrate = format!("migrate debian {} --downtime 10s --detach-on-migrate", there.address());
    for (device, why) in [("00:08.0", "--device vfio=0000:00:08.0"), ("0000:01:00.1", "--device")] {
        let refused = here.lighter(&format!("{migrate} --attach-there vfio={device}"));
        refused.complains(&["would not get", device, why]);
    }
    assert_eq!(here.ask("debian", "/v1/guest").expect("a guest")["host_devices"][0]["host"], CARD);

    let moved = here.lighter(&format!("{migrate} --attach-there vfio={CARD}"));
    assert!(moved.stderr.contains(&format!("has vfio={CARD} of")), "{moved:?}");
    moved.ok();
    sends_by_card(&guest, there, &stream);
    println!("{}", stream.finish());
    there.lighter(&format!("detach-device debian vfio={CARD}")).ok();
    let stream = Stream::begin_to(client, ADDRESS);
    stream.finish();
    guest.shut_down(there);
}

/// Migrates the guest in the background, and waits until its memory is on its way.
fn begin_migration(here: Host<'_>, there: Host<'_>, bandwidth: &str) {
    here.sh(&format!(
        "systemctl reset-failed; systemd-run --quiet --unit lab-migrate-debian lighter migrate debian {} --downtime 10s \
         --bandwidth {bandwidth} --detach-on-migrate --attach-there vfio={CARD}",
        there.address()
    ))
    .ok();
    until("its memory is sent", || {
        let status = here.ask("debian", "/v1/guest/migration")?;
        let is_on_its_way = status["progress"]["phase"] == "precopy" && status["report"].is_null();
        holds(is_on_its_way, status.to_string())
    });
    assert_eq!(cards(here), 0);
}

/// How many of the host's devices the guest has.
fn cards(host: Host<'_>) -> usize {
    let shown = host.ask("debian", "/v1/guest").expect("a guest");
    shown["host_devices"].as_array().expect("a list").len()
}

/// What the migration in the background has printed.
fn printed(host: Host<'_>) -> String {
    let log = "journalctl --quiet --no-pager --unit lab-migrate-debian --lines 20";
    host.sh(log).stdout
}

#[test]
fn a_guest_gets_its_card_there_though_the_node_stands_still_when_it_arrives() {
    let lab = Lab::of(2);
    [1, 2].into_iter().for_each(|number| equip(&lab, number));
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 1, "");
    here.lighter(&format!("attach-device debian vfio={CARD}")).ok();
    begin_migration(here, there, "20MB/s");
    // The guest arrives without the node, which then does not answer.
    there.sh("systemctl kill --signal STOP lighter-node").ok();
    until("the command asks again", || {
        holds(printed(here).contains("asking again"), printed(here))
    });
    assert_eq!(cards(there), 0);
    there.sh("systemctl restart lighter-node").ok();
    let has_it = format!("has vfio={CARD} of");
    until("it has the card", || holds(printed(here).contains(&has_it), printed(here)));
    assert_eq!(cards(there), 1);
    guest.shut_down(there);
}

#[test]
fn a_guest_that_stays_because_of_cables_or_power_has_its_card_again() {
    let lab = Lab::of(2);
    [1, 2].into_iter().for_each(|number| equip(&lab, number));
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 1, "");
    here.lighter(&format!("attach-device debian vfio={CARD}")).ok();
    let has_it_again = || {
        until("the guest has its card again", || holds(cards(here) == 1, printed(here)));
        until("its driver has it", || {
            let found = guest.sh(here, "ls /sys/bus/pci/drivers/e1000e | grep 0000");
            holds(found.code == Some(0), found)
        });
        assert_eq!(here.state_of("debian").as_deref(), Some("running"));
    };
    begin_migration(here, there, "1MB/s");
    here.cut_cable();
    has_it_again();
    here.mend_cable();
    begin_migration(here, there, "1MB/s");
    lab.cut_power(2);
    has_it_again();
    guest.shut_down(here);
}
