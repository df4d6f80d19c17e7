//! A device with several pairs of queues.

use super::*;

/// Pairs of queues, and the index of the control queue.
const PAIRS: u16 = 3;
const CONTROL: usize = 6;

/// A device with a driver, and the network's end of each pair of queues.
struct Scene {
    bench: Bench,
    networks: Vec<UnixDatagram>,
    calls: Arc<Mutex<Vec<String>>>,
}

fn features() -> u64 {
    device_with_ends(&description().with_queue_pairs(PAIRS)).0.features()
}

impl Scene {
    /// Creates a running device whose driver has accepted `features`.
    fn new(features: u64) -> Self {
        let (device, networks, calls) = device_with_ends(&description().with_queue_pairs(PAIRS));
        let mut bench = Bench::switched_off(device);
        bench.backend.activate(features, &bench.registers);
        bench.backend.resume();
        Self { bench, networks, calls }
    }

    fn use_pairs(&mut self, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        command(&mut self.bench, CONTROL, &[4, 0, low, high])
    }

    /// Offers a buffer to each receive queue.
    fn offer(&mut self) {
        for queue in (0..CONTROL).step_by(2) {
            let at = BUFFERS + queue as u64 * u64::from(BUFFER_BYTES);
            self.bench.driver(queue).offer(&[(at, BUFFER_BYTES, WRITABLE)]);
            self.bench.kick(queue);
        }
    }

    /// Sends a frame of `bytes` from the network to the pair `pair`.
    fn arrive(&mut self, pair: usize, bytes: usize) {
        self.networks[pair].send(&vec![1; HEADER_BYTES + bytes]).unwrap();
        self.bench.backend.ready(pair);
        self.bench.run();
    }

    /// Returns how many frames each receive queue has got.
    fn received(&self) -> [usize; 3] {
        [0, 2, 4].map(|queue| self.bench.driver(queue).used().len())
    }

    /// Sends a frame from each transmit queue; returns by which pair's file the network has got it.
    fn sent(&mut self) -> [usize; 3] {
        [1, 3, 5].map(|queue| {
            self.bench.driver(queue).offer(&[(0x8000, 100, 0)]);
            self.bench.kick(queue);
            let has = |network: &UnixDatagram| network.recv(&mut [0; 200]).is_ok();
            self.networks.iter().position(has).expect("a frame")
        })
    }

    fn configured_pairs(&self) -> u16 {
        let mut bytes = [0; 2];
        self.bench.signals.read_config(8, &mut bytes);
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn a_device_with_one_pair_offers_no_more() {
    let (mut device, ..) = device();
    assert_eq!(device.features() >> VIRTIO_NET_F_MQ & 1, 0);
    assert_eq!(device.queue_sizes(), [256, 256, 64]);
    assert!(device.save().unwrap().is_empty());
}

#[test]
fn the_first_pair_carries_the_frames_until_the_driver_wants_more() {
    let mut scene = Scene::new(features());
    assert_eq!(scene.configured_pairs(), PAIRS);
    scene.offer();
    scene.arrive(0, 60);
    scene.arrive(1, 60);
    assert_eq!((scene.received(), scene.sent()), ([1, 0, 0], [0, 0, 0]));
    assert_eq!(scene.use_pairs(3), 0);
    assert_eq!(scene.received(), [1, 1, 0], "what waited there has come");
    scene.arrive(2, 60);
    assert_eq!(scene.received(), [1, 1, 1]);
    assert_eq!(scene.sent(), [0, 1, 2]);
    assert_eq!(scene.use_pairs(2), 0);
    scene.offer();
    scene.arrive(1, 60);
    scene.arrive(2, 60);
    assert_eq!((scene.received(), scene.sent()), ([1, 2, 1], [0, 1, 0]));
    let calls = scene.calls.lock().unwrap();
    assert_eq!(calls[..], ["offloads 0x1f", "3 in use", "2 in use"]);
}

#[test]
fn a_driver_gets_as_many_pairs_as_there_are() {
    let mut scene = Scene::new(features());
    for (pairs, answer) in [(0, 1), (4, 1), (u16::MAX, 1), (3, 0), (1, 0)] {
        assert_eq!(scene.use_pairs(pairs), answer, "{pairs}");
    }
}

#[test]
fn a_driver_that_takes_no_for_a_yes_sends_all_the_same() {
    let mut scene = Scene::new(features());
    scene.calls.lock().unwrap().push(FAIL.to_owned());
    assert_eq!(scene.use_pairs(3), 1);
    assert_eq!(scene.sent(), [0, 0, 0]);
    scene.offer();
    scene.arrive(0, 60);
    assert_eq!(scene.received(), [1, 0, 0]);
}

#[test]
fn a_device_that_waits_for_a_reset_moves() {
    let mut scene = Scene::new(features());
    assert_eq!(scene.use_pairs(3), 0);
    scene.bench.driver(4).offer(&[(BUFFERS, 11, WRITABLE)]);
    scene.arrive(2, 60);
    assert!(scene.bench.signals.needs_reset());
    scene.bench.backend.pause();
    let state = scene.bench.backend.save().unwrap();
    scene.bench.backend.load(&state, None).unwrap();
    assert_eq!(scene.calls.lock().unwrap().last().unwrap(), "1 in use");
}

#[test]
fn a_driver_that_knows_one_pair_has_its_commands_in_the_third_queue() {
    let mut scene = Scene::new(features() & !(1 << VIRTIO_NET_F_MQ));
    assert_eq!(command(&mut scene.bench, 2, &[0, 0, 1]), 0);
    assert_eq!(command(&mut scene.bench, 2, &[4, 0, 2, 0]), 1, "it cannot have more");
    scene.offer();
    scene.arrive(0, 60);
    assert_eq!(scene.bench.driver(0).used().len(), 1);
}

#[test]
fn pairs_in_use_move_with_the_guest() {
    let mut scene = Scene::new(features());
    assert_eq!(scene.use_pairs(3), 0);
    scene.offer();
    scene.bench.backend.pause();
    let state = scene.bench.backend.save().unwrap();
    assert_eq!(state.device, [3, 0]);
    let positions = [0, 2, 4].map(|queue| state.positions[queue].unwrap().next_available);
    assert_eq!(positions, [0; 3], "no buffer is held");
    let registers = scene.bench.registers.clone();
    let load = |scene: &mut Scene, device: &[u8], features| {
        let state =
            crate::virtio::backend::BackendState { device: device.to_vec(), ..state.clone() };
        scene.bench.backend.load(&state, Some((features, &registers)))
    };
    for strange in [&[][..], &[3], &[0, 0], &[4, 0], &[3, 0, 0]] {
        assert!(load(&mut scene, strange, features()).is_err(), "{strange:?}");
    }
    assert!(load(&mut scene, &[3, 0], features() & !(1 << VIRTIO_NET_F_MQ)).is_err());
    load(&mut scene, &[3, 0], features()).unwrap();
    scene.bench.backend.resume();
    scene.arrive(2, 60);
    assert_eq!(scene.received(), [0, 0, 1]);
    scene.bench.backend.reset();
    assert_eq!(scene.calls.lock().unwrap().last().unwrap(), "1 in use");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Commands and frames in any order: each pair in use gets all frames that wait at its end.
    #[test]
    fn pairs_in_use_get_what_waits_for_them(steps in prop::collection::vec((0..5u16, 0..3usize), 1..24)) {
        let mut scene = Scene::new(features());
        let (mut used, mut waiting, mut got) = (1u16, [0usize; 3], [0usize; 3]);
        for (pairs, pair) in steps {
            if (1..=PAIRS).contains(&pairs) {
                prop_assert_eq!(scene.use_pairs(pairs), 0);
                used = pairs;
            }
            scene.bench.backend.pause();
            scene.bench.backend.resume();
            (0..3).for_each(|pair| scene.bench.backend.ready(pair));
            let at = BUFFERS + pair as u64 * u64::from(BUFFER_BYTES);
            scene.bench.driver(2 * pair).offer(&[(at, BUFFER_BYTES, WRITABLE)]);
            scene.arrive(pair, 60);
            waiting[pair] += 1;
            for pair in 0..usize::from(used) {
                got[pair] += std::mem::take(&mut waiting[pair]);
            }
            prop_assert_eq!(scene.received(), got);
        }
    }
}
