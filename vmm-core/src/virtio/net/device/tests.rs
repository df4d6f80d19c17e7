//! The device with a driver, and a socket instead of a tap.

mod pairs;

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::Bitmap;

use super::super::{HEADER_BYTES, RECEIVE, TRANSMIT};
use super::*;
use crate::virtio::net::{Flow, MacAddress, NetLink, NetStatus};
use crate::virtio::testing::{Bench, SIZE, WRITABLE};

const MTU: usize = 1500;
/// Noted among the calls of a [`Cable`], it has [`Port::use_pairs`] fail.
const FAIL: &str = "fail";
/// Index of the control queue of a device with one pair of queues.
const CONTROL: usize = 2;
/// Address of the buffers, with space for all that a queue holds.
const BUFFERS: u64 = 0x10_0000;
const BUFFER_BYTES: u32 = 0x2000;

/// A socket for each pair of queues instead of a tap, and the calls that it received.
#[derive(Debug)]
struct Cable {
    ends: Vec<UnixDatagram>,
    used: usize,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Cable {
    fn note(&self, what: String) {
        self.calls.lock().unwrap().push(what);
    }
}

impl Port for Cable {
    fn name(&self) -> &'static str {
        "cable"
    }

    fn mtu(&self) -> usize {
        MTU
    }

    fn frames(&self, pair: usize) -> BorrowedFd<'_> {
        self.ends[pair].as_fd()
    }

    fn used_pairs(&self) -> usize {
        self.used
    }

    /// Fails once its calls have been told to.
    fn use_pairs(&mut self, pairs: usize) -> std::io::Result<()> {
        if self.calls.lock().unwrap().iter().any(|call| call == FAIL) {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        if self.ends.len() > 1 {
            self.note(format!("{pairs} in use"));
        }
        self.used = pairs;
        Ok(())
    }

    fn set_offloads(&self, offloads: u32) -> std::io::Result<()> {
        self.note(format!("offloads {offloads:#x}"));
        Ok(())
    }

    fn open_to_traffic(&mut self) -> Result<(), DeviceError> {
        self.note("open".to_owned());
        Ok(())
    }

    fn close_to_traffic(&mut self) {
        self.note("closed".to_owned());
    }
}

/// A device on a test bench, and the network's end of its socket.
struct Scene {
    bench: Bench,
    network: UnixDatagram,
    calls: Arc<Mutex<Vec<String>>>,
}

fn description() -> NetConfig {
    crate::codec::decode(
        &crate::codec::encode(&(
            NetLink::Tap("cable".to_owned()),
            "52:54:00:12:34:56".parse::<MacAddress>().unwrap(),
            MTU as u16,
        ))
        .unwrap(),
    )
    .unwrap()
}

fn device() -> (Box<NetDevice>, UnixDatagram, Arc<Mutex<Vec<String>>>) {
    device_of(&description())
}

/// A device with this configuration, its network, and the calls that its port receives.
fn device_of(config: &NetConfig) -> (Box<NetDevice>, UnixDatagram, Arc<Mutex<Vec<String>>>) {
    let (device, mut networks, calls) = device_with_ends(config);
    (device, networks.remove(0), calls)
}

/// As [`device_of`], with the network's end of each pair of queues.
fn device_with_ends(
    config: &NetConfig,
) -> (Box<NetDevice>, Vec<UnixDatagram>, Arc<Mutex<Vec<String>>>) {
    let wire = |_| {
        let (end, network) = UnixDatagram::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        network.set_nonblocking(true).unwrap();
        (end, network)
    };
    let (ends, networks) = (0..config.queue_pairs()).map(wire).unzip();
    let calls = Arc::default();
    let cable = Cable { ends, used: 1, calls: Arc::clone(&calls) };
    (Box::new(NetDevice::on(Box::new(cable), config)), networks, calls)
}

impl Scene {
    /// Creates a running device, with all features but `without`.
    fn without(without: &[u32]) -> Self {
        let (device, network, calls) = device();
        let without = without.iter().fold(0, |bits, feature| bits | 1u64 << feature);
        let features = device.features() & !without;
        let mut bench = Bench::switched_off(device);
        bench.backend.activate(features, &bench.registers);
        bench.backend.resume();
        Self { bench, network, calls }
    }

    /// Offers `count` receive buffers, the first at [`BUFFERS`].
    fn offer(&mut self, count: u64) {
        for index in 0..count {
            let at = BUFFERS + index * u64::from(BUFFER_BYTES);
            self.bench.driver(RECEIVE).offer(&[(at, BUFFER_BYTES, WRITABLE)]);
        }
        self.bench.kick(RECEIVE);
    }

    /// Sends a frame of `bytes`, each of them `fill`, from the network.
    fn arrive(&mut self, bytes: usize, fill: u8) {
        let mut frame = vec![0; HEADER_BYTES];
        frame.resize(HEADER_BYTES + bytes, fill);
        self.network.send(&frame).unwrap();
        self.bench.backend.ready(0);
        self.bench.run();
    }

    fn used(&self) -> Vec<(u32, u32)> {
        self.bench.driver(RECEIVE).used()
    }

    fn status(&mut self) -> NetStatus {
        let device: &dyn Any = self.bench.backend.device();
        device.downcast_ref().map(NetDevice::meter).unwrap().status()
    }

    /// Returns the next frame that the network received, without its header.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let len = self.network.recv(&mut bytes).ok()?;
        Some(bytes[HEADER_BYTES..len].to_vec())
    }

    /// Sends a command and returns the answer.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        command(&mut self.bench, CONTROL, bytes)
    }

    /// Returns the status in the configuration space.
    fn configured_status(&self) -> u16 {
        let mut bytes = [0; 2];
        self.bench.signals.read_config(STATUS.start, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Pauses the guest, and resumes it as one that has arrived from another host.
    fn migrate(&mut self, features: u64) {
        self.bench.backend.pause();
        let state = self.bench.backend.save().unwrap();
        let registers = self.bench.registers.clone();
        self.bench.backend.load(&state, Some((features, &registers))).unwrap();
        self.bench.backend.resume();
    }
}

/// Sends a command on queue `queue` and returns the answer.
fn command(bench: &mut Bench, queue: usize, bytes: &[u8]) -> u8 {
    let (at, answer) = (0x8000, 0x9000);
    bench.ram.write(at, bytes).unwrap();
    bench.ram.write(answer, &[0xee]).unwrap();
    bench.driver(queue).offer(&[(at, bytes.len() as u32, 0), (answer, 1, WRITABLE)]);
    bench.kick(queue);
    bench.bytes(answer, 1)[0]
}

fn all_features() -> u64 {
    device().0.features()
}

#[test]
fn a_frame_takes_the_buffers_that_it_needs_and_the_rest_wait() {
    let mut scene = Scene::without(&[]);
    scene.offer(16);
    scene.arrive(20_000, 7);
    // 20,012 bytes in buffers of 8,192.
    assert_eq!(scene.used(), [(0, 8192), (1, 8192), (2, 3628)]);
    assert_eq!(scene.bench.bytes(BUFFERS + 10, 4), [3, 0, 7, 7], "three buffers, says the header");
    assert_eq!(scene.bench.bytes(BUFFERS + 2 * 0x2000 + 3627, 2), [7, 0]);
    scene.arrive(100, 8);
    assert_eq!(scene.used()[3], (3, 112));
    assert_eq!(scene.bench.bytes(BUFFERS + 3 * 0x2000 + 10, 4), [1, 0, 8, 8]);
    let received = Flow { bytes: 20_100, frames: 2, drops: 0 };
    assert_eq!(scene.status().received, received);
}

#[test]
fn held_buffers_survive_a_pause_in_the_queue() {
    let mut scene = Scene::without(&[]);
    scene.offer(16);
    scene.arrive(100, 1);
    scene.bench.backend.pause();
    let state = scene.bench.backend.save().unwrap();
    let position = state.positions[RECEIVE].unwrap();
    assert_eq!((position.next_available, position.next_used), (1, 1));
    scene.bench.backend.resume();
    scene.arrive(100, 2);
    assert_eq!(scene.used(), [(0, 112), (1, 112)]);
}

#[test]
fn a_driver_with_few_buffers_gets_what_fits_and_the_rest_later() {
    let mut scene = Scene::without(&[]);
    scene.offer(2);
    scene.arrive(100, 1);
    assert_eq!(scene.used(), [(0, 112)], "though there is no room for the longest");
    scene.arrive(20_000, 2);
    assert_eq!(scene.used().len(), 1, "one buffer is left");
    scene.offer(3);
    assert_eq!(scene.used()[1..], [(1, 8192), (2, 8192), (3, 3628)]);
    assert_eq!(scene.bench.bytes(BUFFERS + 0x2000 + 10, 3), [3, 0, 2]);
    assert_eq!(scene.status().received.drops, 0);
}

#[test]
fn a_frame_for_which_a_queue_is_too_small_holds_up_no_other() {
    let mut scene = Scene::without(&[]);
    for index in 0..u64::from(SIZE) {
        let buffer = (BUFFERS + index * 0x1000, 1000, WRITABLE);
        scene.bench.driver(RECEIVE).offer(&[buffer]);
    }
    scene.bench.kick(RECEIVE);
    scene.arrive(20_000, 1);
    scene.arrive(100, 2);
    assert_eq!(scene.used(), [(0, 112)]);
    assert_eq!(scene.status().received, Flow { bytes: 100, frames: 1, drops: 1 });
}

#[test]
fn without_buffers_frames_wait_and_then_come_in_order() {
    let mut scene = Scene::without(&[]);
    for fill in 1..4 {
        scene.arrive(60, fill);
    }
    assert_eq!(scene.used(), []);
    scene.offer(16);
    assert_eq!(scene.used(), [(0, 72), (1, 72), (2, 72)]);
    assert_eq!(
        [0, 1, 2].map(|index| scene.bench.bytes(BUFFERS + index * 0x2000 + 12, 1)[0]),
        [1, 2, 3]
    );
}

#[test]
fn a_driver_that_takes_frames_whole_loses_those_that_do_not_fit() {
    let mut scene = Scene::without(&[VIRTIO_NET_F_MRG_RXBUF]);
    scene.offer(4);
    scene.arrive(9000, 1);
    assert_eq!(scene.used(), []);
    scene.arrive(8180, 2);
    assert_eq!(scene.used(), [(0, 8192)], "it fits to the byte");
    assert_eq!(scene.bench.bytes(BUFFERS + 10, 3), [1, 0, 2]);
    assert_eq!(scene.status().received, Flow { bytes: 8180, frames: 1, drops: 1 });
}

#[test]
fn only_pages_that_a_frame_is_in_are_dirty() {
    let mut scene = Scene::without(&[]);
    scene.offer(16);
    scene.arrive(60, 1);
    let clean =
        |scene: &Scene| scene.bench.ram.mappings().for_each(|region| (**region).bitmap().reset());
    clean(&scene);
    // The queue is processed but there is no frame.
    scene.bench.backend.ready(0);
    scene.bench.run();
    let dirty = |scene: &Scene, gpa: u64| {
        let region = scene.bench.ram.mappings().next().unwrap();
        region.bitmap().dirty_at(gpa as usize)
    };
    let pages =
        |scene: &Scene| [1, 2, 3, 4].map(|page| dirty(scene, BUFFERS + 0x1000 * (page + 1)));
    assert_eq!(pages(&scene), [false; 4]);
    scene.arrive(5000, 2);
    assert_eq!(pages(&scene), [true, true, false, false]);
}

#[test]
fn frames_are_sent_from_as_many_buffers_as_they_are_in() {
    let mut scene = Scene::without(&[]);
    scene.bench.ram.write(0x8000 + 12, b"abcd").unwrap();
    scene.bench.ram.write(0x9000, b"0123456789").unwrap();
    scene.bench.driver(TRANSMIT).offer(&[(0x8000, 16, 0), (0x9000, 10, 0)]);
    scene.bench.kick(TRANSMIT);
    assert_eq!(scene.bench.driver(TRANSMIT).used(), [(0, 0)]);
    assert_eq!(scene.sent().unwrap(), b"abcd0123456789");
    assert_eq!(scene.status().transmitted, Flow { bytes: 14, frames: 1, drops: 0 });
}

#[test]
fn invalid_frames_are_not_sent_and_the_device_continues() {
    let mut scene = Scene::without(&[]);
    for buffers in
        [vec![(0x8000, 25, 0)], vec![(0x8000, 0x2_0000, 0)], vec![(0x8000, 64, WRITABLE)]]
    {
        scene.bench.driver(TRANSMIT).offer(&buffers);
    }
    scene.bench.kick(TRANSMIT);
    assert_eq!(scene.bench.driver(TRANSMIT).used().len(), 3);
    assert!(scene.sent().is_none());
    assert_eq!(scene.status().transmitted, Flow { bytes: 0, frames: 0, drops: 3 });
    assert!(!scene.bench.signals.needs_reset());
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_device_until_a_reset() {
    let mut scene = Scene::without(&[]);
    scene.bench.driver(RECEIVE).offer(&[(BUFFERS, 11, WRITABLE)]);
    scene.arrive(60, 1);
    assert!(scene.bench.signals.needs_reset());
    scene.bench.backend.reset();
    scene.arrive(60, 2);
    assert_eq!(scene.used(), []);
}

#[test]
fn offloads_are_what_the_driver_accepted_and_none_without_checksums() {
    assert_eq!(Scene::without(&[]).calls.lock().unwrap()[..], ["offloads 0x1f"]);
    let without_long = [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO];
    let scene = Scene::without(&without_long);
    assert_eq!(scene.calls.lock().unwrap()[..], ["offloads 0x9"]);
    let scene = Scene::without(&[VIRTIO_NET_F_GUEST_CSUM]);
    assert_eq!(scene.calls.lock().unwrap()[..], ["offloads 0x0"]);
}

#[test]
fn the_address_and_the_mtu_are_shown_and_the_address_stays() {
    let mut scene = Scene::without(&[]);
    let mut bytes = [0; 12];
    scene.bench.signals.read_config(0, &mut bytes);
    assert_eq!(bytes, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0xdc, 0x05]);
    assert_eq!(scene.command(&[1, 1, 0x52, 0x54, 0, 1, 2, 3]), 1, "refused");
    assert_eq!(scene.command(&[0, 0, 1]), 0);
}

#[test]
fn a_guest_that_was_moved_is_announced_by_host_and_driver() {
    let mut scene = Scene::without(&[]);
    assert_eq!(scene.configured_status(), 1);
    scene.migrate(all_features());
    assert_eq!(scene.configured_status(), 3, "the driver is asked to announce itself");
    let start = Instant::now();
    for ms in [0, 60, 250, 500, 1000, 2000] {
        scene.bench.backend.work(start + Duration::from_millis(ms));
    }
    let frames: Vec<_> = std::iter::from_fn(|| scene.sent()).collect();
    assert_eq!(frames.len(), 5);
    assert!(frames.iter().all(|frame| frame[..6] == [0xff; 6] && frame[12..14] == [0x80, 0x35]));
    assert_eq!(scene.command(&[3, 0]), 0);
    assert_eq!(scene.configured_status(), 1, "the driver has");
}

#[test]
fn a_driver_that_cannot_announce_itself_is_not_asked() {
    let mut scene = Scene::without(&[VIRTIO_NET_F_GUEST_ANNOUNCE]);
    scene.migrate(all_features() & !(1 << VIRTIO_NET_F_GUEST_ANNOUNCE));
    assert_eq!(scene.configured_status(), 1);
    scene.bench.backend.work(Instant::now());
    assert!(scene.sent().is_some(), "the host announces it all the same");
}

#[test]
fn a_short_pause_is_not_announced_and_a_release_is() {
    let mut scene = Scene::without(&[]);
    let announced = |scene: &mut Scene| {
        scene.bench.backend.work(Instant::now());
        scene.sent().is_some()
    };
    scene.bench.backend.pause();
    scene.bench.backend.resume();
    assert!(!announced(&mut scene));
    scene.bench.backend.pause();
    scene.bench.backend.device().release();
    scene.bench.backend.device().take_over().unwrap();
    scene.bench.backend.resume();
    assert!(announced(&mut scene));
    assert_eq!(scene.calls.lock().unwrap()[1..], ["closed", "open"]);
}

#[test]
fn one_half_of_a_failover_pair_is_not_announced_after_a_long_pause() {
    for (accepted, is_announced) in [(0, true), (1 << VIRTIO_NET_F_STANDBY, false)] {
        let (device, network, _) = device_of(&description().with_standby(true));
        let features = all_features() | accepted;
        let mut bench = Bench::switched_off(device);
        bench.backend.activate(features, &bench.registers);
        bench.backend.resume();
        bench.backend.pause();
        std::thread::sleep(LONG_PAUSE);
        bench.backend.resume();
        bench.backend.work(Instant::now());
        assert_eq!(network.recv(&mut [0; 100]).is_ok(), is_announced);
    }
}

#[test]
fn a_guest_without_a_driver_is_not_announced() {
    let (device, network, _) = device();
    let mut bench = Bench::switched_off(device);
    let state = bench.backend.save().unwrap();
    bench.backend.load(&state, None).unwrap();
    bench.backend.resume();
    bench.backend.work(Instant::now());
    assert!(network.recv(&mut [0; 100]).is_err());
}

#[test]
fn one_half_of_a_failover_pair_says_so() {
    let offered = device_of(&description().with_standby(true)).0.features();
    assert_eq!(offered, all_features() | 1 << VIRTIO_NET_F_STANDBY);
}

#[test]
fn frames_from_before_the_driver_came_are_dropped() {
    let (device, network, _) = device();
    let features = device.features();
    let mut bench = Bench::switched_off(device);
    network.send(&[1; 72]).unwrap();
    bench.backend.resume();
    bench.backend.ready(0);
    bench.backend.activate(features, &bench.registers);
    bench.driver(RECEIVE).offer(&[(BUFFERS, 0x2_0000, WRITABLE)]);
    bench.kick(RECEIVE);
    assert_eq!(bench.driver(RECEIVE).used(), []);
    network.send(&[2; 72]).unwrap();
    bench.backend.ready(0);
    bench.run();
    assert_eq!(bench.driver(RECEIVE).used(), [(0, 72)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any kinds of buffers in any queue, with traffic: the device works or its queue breaks, and
    /// it can still be paused and saved.
    #[test]
    fn no_driver_breaks_the_device(
        offers in prop::collection::vec(
            (0..3usize, prop::collection::vec((0..0x50_0000u64, 0..0x1_0000u32, 0..4u16), 1..4)),
            0..usize::from(SIZE),
        ),
        frames in prop::collection::vec(13..3000usize, 0..8),
        without_merging in any::<bool>(),
    ) {
        let without: &[u32] = if without_merging { &[VIRTIO_NET_F_MRG_RXBUF] } else { &[] };
        let mut scene = Scene::without(without);
        for (queue, buffers) in offers {
            scene.bench.driver(queue).offer(&buffers);
            scene.bench.kick(queue);
            while scene.sent().is_some() {}
        }
        for bytes in frames {
            // The socket's queue is limited; a tap drops excess frames.
            let _ = scene.network.send(&vec![1; bytes]);
            scene.bench.backend.ready(0);
            scene.bench.run();
        }
        scene.bench.backend.pause();
        let state = scene.bench.backend.save().unwrap();
        prop_assert!(state.device.is_empty());
        scene.bench.backend.resume();
        scene.bench.run();
    }
}
