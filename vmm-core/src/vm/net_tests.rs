//! Network devices on real KVM, with taps on a bridge in the test's own network namespace.
//!
//! Needs CAP_NET_ADMIN and ip(8). Set `LIGHTER_TEST_SKIP_NETWORK=1` to skip these tests where they
//! are not available; otherwise the tests fail and say so. Where the host has vhost-net, its kernel
//! carries the frames.

#[cfg(feature = "vhost-tests")]
mod vhost;

use std::process::Command;
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};

use super::device_tests::{drive, handshake_for, register};
use super::*;
use crate::boot::start_protected_mode;
use crate::testing::*;
use crate::virtio::net::{NetConfig, NetLink};
use crate::virtio::testing::{Driver, SIZE, WRITABLE};
use crate::{DeviceConfig, VmState};

/// CSUM, GUEST_CSUM, MAC, GUEST_TSO4, MRG_RXBUF, STATUS, CTRL_VQ, GUEST_ANNOUNCE.
const FEATURES: u32 = 1 | 1 << 1 | 1 << 5 | 1 << 7 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 21;
/// Address of received frames, and of a frame to send.
const BUFFERS: u64 = 0x40_0000;
const BUFFER_BYTES: u64 = 0x2000;
const FRAME: u64 = 0x80_0000;
/// Bytes of virtio-net's header.
const HEADER_BYTES: usize = 12;

/// Runs `test` on a thread in a namespace with a bridge `br0`.
pub(super) fn on_a_bridge(test: fn()) {
    if std::env::var_os("LIGHTER_TEST_SKIP_NETWORK").is_some() {
        eprintln!("skipped, because LIGHTER_TEST_SKIP_NETWORK is set");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("CAP_SYS_ADMIN, for a network namespace");
        for conf in ["all", "default"] {
            // The host's own frames would only disturb.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1");
        }
        ip("link add br0 type bridge mcast_snooping 0");
        ip("link set br0 up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8)");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn on_bridge() -> NetLink {
    NetLink::Bridge { bridge: "br0".to_owned(), tap: None }
}

/// The shape of a guest on `link`.
fn shape_on(link: NetLink, mac: &str) -> VmShape {
    let config = NetConfig::new(link, mac.parse().unwrap()).unwrap();
    VmShape { devices: vec![DeviceConfig::Net(config)], ..shape(16, 1) }
}

/// A paused guest that only spins.
fn vm_of(shape: &VmShape) -> Vm {
    vm_with(shape, VmOptions { vhost_net: true, ..VmOptions::default() })
}

fn vm_with(shape: &VmShape, options: VmOptions) -> Vm {
    let vm = Vm::create_with(shape, &options, Box::new(std::io::sink())).unwrap();
    vm.ram().write(CODE, &[0xeb, 0xfe]).unwrap(); // jmp $
    start_protected_mode(&vm, CODE).unwrap();
    vm
}

/// A paused guest on the bridge that only spins.
fn vm(mac: &str) -> Vm {
    vm_of(&shape_on(on_bridge(), mac))
}

/// A running guest on the bridge, with a driver that has offered all its buffers.
fn receiving_vm(mac: &str) -> Vm {
    receiving(vm(mac))
}

fn receiving(vm: Vm) -> Vm {
    vm.resume().unwrap();
    drive(&vm, 0, &handshake_for(&vm, FEATURES, 3));
    offer_buffers(&vm);
    vm
}

/// Offers all receive buffers.
fn offer_buffers(vm: &Vm) {
    for index in 0..u64::from(SIZE) {
        let buffer = (BUFFERS + index * BUFFER_BYTES, BUFFER_BYTES as u32, WRITABLE);
        Driver::new(vm.ram().memory(), 0).offer(&[buffer]);
    }
    drive(vm, 0, &[(register::QUEUE_NOTIFY, 0)]);
}

/// Sends a broadcast that ends with `words`, and waits until the device has taken it.
fn broadcast(vm: &Vm, words: &str) {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend(vm.nets()[0].mac.bytes());
    frame.extend([0x88, 0xb5]); // for experiments
    frame.extend(words.bytes());
    vm.ram().write(FRAME, &frame).unwrap();
    let sent = || vm.nets()[0].transmitted.frames;
    // A kernel that is just taking over sends what is offered before it is notified.
    let (before, deadline) = (sent(), Instant::now() + PATIENCE);
    Driver::new(vm.ram().memory(), 1).offer(&[(FRAME, frame.len() as u32, 0)]);
    drive(vm, 0, &[(register::QUEUE_NOTIFY, 1)]);
    while sent() == before {
        assert!(Instant::now() < deadline, "it is not sent");
        std::thread::yield_now();
    }
}

/// Returns the frames that the guest has received.
fn received(vm: &Vm) -> Vec<Vec<u8>> {
    let used = Driver::new(vm.ram().memory(), 0).used();
    let frame = |(index, (_, bytes)): (u64, (u32, u32))| {
        let mut frame = vec![0; bytes as usize];
        vm.ram().read(BUFFERS + index * BUFFER_BYTES, &mut frame).unwrap();
        frame.split_off(HEADER_BYTES)
    };
    (0..).zip(used).map(frame).collect()
}

/// Waits for an effect of closing a descriptor: a process that another test forks holds a copy of
/// it for a moment.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

/// Waits for a matching frame after the first `known`.
#[track_caller]
fn wait_for_frame(vm: &Vm, known: usize, what: &str, is_it: impl Fn(&[u8]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !received(vm)[known..].iter().any(|frame| is_it(frame)) {
        assert!(Instant::now() < deadline, "{what} did not come: {:?}", received(vm));
        std::thread::yield_now();
    }
}

fn is_up(vm: &Vm) -> bool {
    ip(&format!("link show {}", vm.nets()[0].tap)).contains(",UP")
}

#[test]
fn frames_go_from_guest_to_guest() {
    on_a_bridge(|| {
        let (first, second) =
            (receiving_vm("52:54:00:00:00:01"), receiving_vm("52:54:00:00:00:02"));
        broadcast(&first, "hello");
        wait_for_frame(&second, 0, "the broadcast", |frame| frame.ends_with(b"hello"));
        assert_eq!(received(&first), Vec::<Vec<u8>>::new(), "nobody hears themselves");
        eventually("it is counted", || second.nets()[0].received.frames > 0);
        let [sent, heard] = [&first, &second].map(|vm| vm.nets().remove(0));
        assert_eq!((sent.transmitted.frames, heard.received.frames), (1, 1));
        assert_eq!((sent.transmitted.bytes, heard.received.bytes), (19, 19));
        assert_eq!((heard.mtu, heard.bridge.as_deref()), (1500, Some("br0")));
    });
}

#[test]
fn a_copy_forwards_no_frames_until_it_is_the_guest_and_is_then_announced() {
    on_a_bridge(|| {
        let neighbour = receiving_vm("52:54:00:00:00:01");
        let source = receiving_vm("52:54:00:00:00:02");
        source.pause().unwrap();
        let state = source.save_state().unwrap();
        let copy = vm("52:54:00:00:00:02");
        copy_memory(&source, &copy);
        copy.load_state(&VmState::from_bytes(&state.to_bytes().unwrap()).unwrap()).unwrap();
        assert_eq!((is_up(&source), is_up(&copy)), (true, false));

        source.release().unwrap();
        assert_eq!((is_up(&source), is_up(&copy)), (false, false));
        copy.resume().unwrap();
        assert_eq!((is_up(&source), is_up(&copy)), (false, true));
        let is_announcement = |frame: &[u8]| {
            frame[6..14] == [0x52, 0x54, 0, 0, 0, 2, 0x80, 0x35] && frame[..6] == [0xff; 6]
        };
        wait_for_frame(&neighbour, 0, "the announcement", is_announcement);
        broadcast(&neighbour, "there?");
        wait_for_frame(&copy, 0, "the broadcast", |frame| frame.ends_with(b"there?"));
        assert_eq!(received(&source), Vec::<Vec<u8>>::new());

        // The copy is gone, and the source takes over again.
        let made = copy.nets().remove(0).tap;
        drop(copy);
        eventually("what was made goes with its guest", || !ip("link show").contains(&made));
        let before = received(&neighbour).len();
        source.resume().unwrap();
        wait_for_frame(&neighbour, before, "another announcement", is_announcement);
    });
}

#[test]
fn an_existing_tap_has_carrier_while_its_guest_owns_it() {
    on_a_bridge(|| {
        ip("tuntap add tap0 mode tap");
        ip("link set tap0 master br0 up");
        let shape = shape_on(NetLink::Tap("tap0".to_owned()), "52:54:00:00:00:02");
        let neighbour = receiving_vm("52:54:00:00:00:01");
        let has_carrier = || ip("link show tap0").contains("LOWER_UP");

        let guest = vm_of(&shape);
        assert!(!has_carrier(), "a guest that has not run");
        let refused = shape.check_host().unwrap_err().to_string();
        assert!(refused.contains("tap0: it is in use by another guest or program"), "{refused}");
        let guest = receiving(guest);
        assert!(has_carrier());
        // The bridge may notice the carrier later.
        let deadline = Instant::now() + PATIENCE;
        while received(&guest).is_empty() {
            assert!(Instant::now() < deadline, "nothing gets through");
            broadcast(&neighbour, "there?");
            std::thread::yield_now();
        }
        guest.pause().unwrap();
        assert!(has_carrier(), "a paused guest keeps it");
        guest.release().unwrap();
        assert!(!has_carrier());
        drop(guest);
        assert!(ip("link show").contains("tap0"), "it stays");
        eventually("it is free again", || shape.check_host().is_ok());
    });
}

#[test]
fn a_host_without_the_network_is_detected_before_anything_is_created() {
    on_a_bridge(|| {
        ip("link set br0 mtu 9000");
        let shape = shape_on(on_bridge(), "52:54:00:00:00:01");
        shape.check_host().unwrap();
        eventually("nothing of the check stays", || !ip("link show").contains("lighter"));
        ip("link set br0 mtu 1500");
        let error = shape.check_host().unwrap_err().to_string();
        assert!(
            error.contains("br0: it has an MTU of 1500 bytes here, the guest knows 9000"),
            "{error}"
        );
        ip("link del br0");
        let error = shape.check_host().unwrap_err().to_string();
        assert!(error.contains("br0: there is none"), "{error}");
    });
}
