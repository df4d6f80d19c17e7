//! The device as a driver and programs of the host see it.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use vmm_sys_util::epoll::{ControlOperation, EventSet};

use super::*;
use crate::virtio::testing::{Bench, WRITABLE};
use crate::virtio::vsock::packet::{Credit, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const CID: u32 = 5;
/// Address of the guest's packets, which are consecutive; `PLACES` is that of its receive buffers.
const SENT: u64 = 0x10_0000;
const PLACES: u64 = 0x20_0000;
const PLACE_BYTES: u32 = 4096;

/// A guest with a driver, on a host where programs may listen.
struct Scene {
    folder: tempfile::TempDir,
    bench: Bench,
    /// Number of packets that the guest sent, and of buffers that it offered.
    sent: u64,
    places: u64,
    /// Number of the host's packets that were received.
    seen: usize,
    /// The space that the guest announces.
    credit: Credit,
}

/// A packet as the guest sees it.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    op: Option<Op>,
    ports: Ports,
    flags: u32,
    data: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self::without_driver();
        scene.bench.backend.activate(0, &scene.bench.registers);
        scene.bench.backend.resume();
        scene
    }

    fn without_driver() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut device = VsockDevice::new(CID).unwrap();
        device.listen_at(&folder.path().join("vsock"));
        device.take_over().unwrap();
        let bench = Bench::switched_off(Box::new(device));
        let credit = Credit { allocated: 1 << 16, forwarded: 0 };
        Self { folder, bench, sent: 0, places: 0, seen: 0, credit }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sends a packet from the guest's port to the host's.
    fn send(&mut self, ports: Ports, op: u16, flags: u32, data: &[u8]) {
        self.send_of_type(STREAM, ports, op, flags, data);
    }

    fn send_of_type(&mut self, kind: u16, ports: Ports, op: u16, flags: u32, data: &[u8]) {
        // A header of the host has the same layout, with both ends exchanged.
        let turned = Ports { host: ports.guest, guest: ports.host };
        let header =
            Header { ports: turned, socket_type: kind, op: Op::Data, flags, credit: self.credit };
        let mut bytes = header.to_bytes(HOST_CID, data.len() as u32);
        bytes[..8].copy_from_slice(&u64::from(CID).to_le_bytes());
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        self.send_bytes(&[&bytes, data].concat());
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        let at = SENT + self.sent % 8 * 0x2_0000;
        self.sent += 1;
        self.bench.ram.write(at, bytes).unwrap();
        self.bench.driver(TX).offer(&[(at, bytes.len() as u32, 0)]);
        self.bench.kick(TX);
    }

    /// Offers buffers for so many packets.
    fn make_room(&mut self, packets: u64) {
        for _ in 0..packets {
            let at = PLACES + self.places % 16 * u64::from(PLACE_BYTES);
            self.places += 1;
            self.bench.driver(RX).offer(&[(at, PLACE_BYTES, WRITABLE)]);
        }
        self.bench.kick(RX);
    }

    /// Lets the device notice what programs have done.
    fn poll(&mut self) {
        self.bench.backend.ready(0);
        self.bench.backend.ready(1);
        self.bench.run();
    }

    /// Returns what the host has sent since the last call.
    fn received(&mut self) -> Vec<Packet> {
        let used = self.bench.driver(RX).used();
        let new = (self.seen..used.len()).map(|index| {
            let at = PLACES + index as u64 % 16 * u64::from(PLACE_BYTES);
            let bytes = self.bench.bytes(at, used[index].1 as usize);
            let header = Received::from_bytes(bytes.first_chunk().unwrap());
            assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID.into()));
            let ports = Ports { host: header.ports.guest, guest: header.ports.host };
            let data = bytes[HEADER_BYTES..].to_vec();
            assert_eq!(header.bytes as usize, data.len());
            Packet { op: header.op, ports, flags: header.flags, data }
        });
        let new = new.collect();
        self.seen = used.len();
        new
    }

    fn ops(&mut self) -> Vec<Op> {
        self.received().into_iter().filter_map(|packet| packet.op).collect()
    }

    /// Connects a program of the host to the guest's port 1024.
    fn introduced(&mut self) -> (UnixStream, Ports) {
        let mut program = UnixStream::connect(self.path("vsock")).unwrap();
        program.write_all(b"CONNECT 1024\n").unwrap();
        self.make_room(8);
        self.poll();
        let request = self.received().remove(0);
        assert_eq!((request.op, request.ports.guest), (Some(Op::Request), 1024));
        self.send(request.ports, 2, 0, b"");
        let answer = format!("OK {}\n", request.ports.host);
        assert_eq!(read(&mut program, answer.len()), answer.as_bytes());
        (program, request.ports)
    }

    /// Connects the guest to port 52 of the host.
    fn accepted(&mut self) -> (UnixStream, Ports) {
        let listener = UnixListener::bind(self.path("vsock_52")).unwrap();
        let ports = Ports { host: 52, guest: 2000 };
        self.make_room(8);
        self.send(ports, 1, 0, b"");
        assert_eq!(self.ops(), [Op::Response]);
        (listener.accept().unwrap().0, ports)
    }
}

fn read(stream: &mut UnixStream, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    stream.read_exact(&mut data).unwrap();
    data
}

#[test]
fn a_program_talks_to_the_guest_and_back() {
    let mut scene = Scene::new();
    let (mut program, ports) = scene.introduced();
    program.write_all(b"question").unwrap();
    scene.poll();
    let packet = scene.received().remove(0);
    assert_eq!((packet.op, packet.data.as_slice()), (Some(Op::Data), &b"question"[..]));
    scene.send(ports, 5, 0, b"answer");
    assert_eq!(read(&mut program, 6), b"answer");
}

#[test]
fn the_guest_talks_to_a_program_until_it_closes() {
    let mut scene = Scene::new();
    let (mut program, ports) = scene.accepted();
    scene.send(ports, 5, 0, b"hello");
    scene.send(ports, 4, SHUTDOWN_SEND, b"");
    let mut text = String::new();
    program.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    program.write_all(b"bye").unwrap();
    drop(program);
    scene.poll();
    assert_eq!(scene.ops(), [Op::Data, Op::Shutdown]);
    scene.send(ports, 4, SHUTDOWN_BOTH, b"");
    assert_eq!(scene.ops(), [Op::Reset]);
    scene.send(ports, 5, 0, b"?");
    assert_eq!(scene.ops(), [Op::Reset], "nothing is there any more");
}

#[test]
fn a_half_closed_connection_leaves_the_device_idle() {
    for flags in [SHUTDOWN_SEND, SHUTDOWN_RECEIVE] {
        let mut scene = Scene::new();
        let (_program, ports) = scene.accepted();
        scene.send(ports, 4, flags, b"");
        let epoll = Epoll::new().unwrap();
        let streams = scene.bench.backend.device().watched()[1];
        epoll.ctl(ControlOperation::Add, streams, EpollEvent::new(EventSet::IN, 0)).unwrap();
        let is_ready = || epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0;
        let polls = (0..10).take_while(|_| is_ready()).map(|_| scene.poll()).count();
        assert!(polls < 10, "its streams are ready for ever after flags {flags}");
    }
}

#[test]
fn a_port_without_a_listener_is_reported_to_the_guest() {
    let mut scene = Scene::new();
    scene.make_room(4);
    scene.send(Ports { host: 52, guest: 9 }, 1, 0, b"");
    assert_eq!(scene.ops(), [Op::Reset]);
    scene.send_of_type(2, Ports { host: 52, guest: 9 }, 1, 0, b"");
    assert_eq!(scene.ops(), [Op::Reset], "only streams");
    scene.send(Ports { host: 52, guest: 9 }, 3, 0, b"");
    assert_eq!(scene.ops(), [], "a reset is not answered");
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut scene = Scene::new();
    scene.credit.allocated = 10;
    let (mut program, ports) = scene.introduced();
    program.write_all(b"0123456789abc").unwrap();
    scene.poll();
    assert_eq!(scene.received().remove(0).data, b"0123456789");
    scene.poll();
    assert_eq!(scene.ops(), []);
    scene.credit.forwarded = 10;
    scene.send(ports, 6, 0, b"");
    assert_eq!(scene.received().remove(0).data, b"abc");
}

#[test]
fn packets_wait_for_places_and_are_cut_to_fit() {
    let mut scene = Scene::new();
    let (mut program, ports) = scene.introduced();
    // Seven buffers are left.
    let long: Vec<u8> = (0..40_000u32).map(|byte| byte as u8).collect();
    program.write_all(&long).unwrap();
    scene.poll();
    let first = scene.received();
    assert_eq!(first.len(), 7);
    assert_eq!(first[0].data.len(), PLACE_BYTES as usize - HEADER_BYTES);
    let mut data: Vec<u8> = first.into_iter().flat_map(|packet| packet.data).collect();
    scene.make_room(8);
    data.extend(scene.received().into_iter().flat_map(|packet| packet.data));
    assert!(data == long, "{} bytes", data.len());
    scene.send(ports, 3, 0, b"");
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_guest_receives_credit_for_what_its_program_read() {
    let mut scene = Scene::new();
    let (mut program, ports) = scene.accepted();
    let data = vec![7; BUFFER_BYTES / 2];
    scene.send(ports, 5, 0, &data);
    assert_eq!(scene.ops(), [Op::CreditUpdate]);
    scene.send(ports, 7, 0, b"");
    assert_eq!(scene.ops(), [Op::CreditUpdate], "it asked");
    assert!(read(&mut program, data.len()) == data);
}

#[test]
fn sending_beyond_the_credit_closes_the_connection() {
    let mut scene = Scene::new();
    let (_program, ports) = scene.accepted();
    let data = vec![7; BUFFER_BYTES];
    // The program reads nothing: at some point its socket is full, then the device's buffer.
    let mut ops = Vec::new();
    for _ in 0..20 {
        scene.make_room(1);
        scene.send(ports, 5, 0, &data);
        ops = scene.ops();
        if ops.contains(&Op::Reset) {
            break;
        }
    }
    assert_eq!(ops.last(), Some(&Op::Reset));
}

#[test]
fn nonsense_ends_the_connection_or_the_device_and_nothing_else() {
    for op in [0, 1, 2, 8, u16::MAX] {
        let mut scene = Scene::new();
        let (_program, ports) = scene.accepted();
        scene.send(ports, op, 0, b"");
        assert_eq!(scene.ops(), [Op::Reset], "{op}");
    }
    for bytes in [vec![0; HEADER_BYTES - 1], {
        let header = Header::reset(Ports { host: 1, guest: 1 }, STREAM);
        header.to_bytes(CID.into(), u32::MAX).to_vec()
    }] {
        let mut scene = Scene::new();
        scene.send_bytes(&bytes);
        assert!(scene.bench.signals.needs_reset());
        scene.bench.backend.reset();
        scene.bench.backend.activate(0, &scene.bench.registers.clone());
    }
}

#[test]
fn packets_of_unknown_connections_are_dropped() {
    let mut scene = Scene::new();
    scene.make_room(2);
    let header = Header::reset(Ports { host: 1, guest: 1 }, STREAM).to_bytes(HOST_CID, 0);
    scene.send_bytes(&header);
    assert_eq!(scene.ops(), []);
}

#[test]
fn refusals_wait_for_room_and_so_do_the_packets_behind_them() {
    let mut scene = Scene::new();
    for port in 0..REFUSALS_MAX as u32 + 5 {
        scene.send(Ports { host: 1, guest: port }, 5, 0, b"");
    }
    assert_eq!(scene.bench.driver(TX).used().len(), REFUSALS_MAX);
    let mut refused = Vec::new();
    while refused.len() < REFUSALS_MAX + 5 {
        scene.make_room(8);
        let new = scene.received();
        assert_ne!(new, [], "{} so far", refused.len());
        refused.extend(new.into_iter().map(|packet| packet.ports.guest));
    }
    assert!(refused.into_iter().eq(0..REFUSALS_MAX as u32 + 5));
}

#[test]
fn connections_take_turns() {
    let mut scene = Scene::new();
    let (mut one, _) = scene.introduced();
    let (mut two, _) = scene.introduced();
    one.write_all(&[1; 12_000]).unwrap();
    two.write_all(&[2; 12_000]).unwrap();
    scene.poll();
    let first: Vec<u8> = scene.received().iter().map(|packet| packet.data[0]).take(4).collect();
    assert!(first == [1, 2, 1, 2] || first == [2, 1, 2, 1], "{first:?}");
}

#[test]
fn an_arriving_guest_learns_that_its_connections_are_closed() {
    let mut source = Scene::new();
    let (mut program, _) = source.accepted();
    source.bench.backend.pause();
    let state = source.bench.backend.save().unwrap();
    source.bench.backend.device().release();
    assert_eq!(program.read(&mut [0]).unwrap(), 0, "the source has let go");
    assert!(!source.path("vsock").exists());

    let mut destination = Scene::without_driver();
    let registers = destination.bench.registers.clone();
    let memory = source.bench.bytes(0x1_0000, 3 * 4096);
    destination.bench.ram.write(0x1_0000, &memory).unwrap();
    destination.bench.backend.load(&state, Some((0, &registers))).unwrap();
    destination.bench.backend.resume();
    destination.bench.driver(EVENT).offer(&[(0x8000, 4, WRITABLE)]);
    destination.bench.ram.write(0x8000, &[9; 4]).unwrap();
    destination.bench.kick(EVENT);
    assert_eq!(destination.bench.driver(EVENT).used(), [(0, 4)]);
    assert_eq!(destination.bench.bytes(0x8000, 4), [0; 4]);
    destination.bench.driver(EVENT).offer(&[(0x8000, 4, WRITABLE)]);
    destination.bench.kick(EVENT);
    assert_eq!(destination.bench.driver(EVENT).used().len(), 1, "once");
}

#[test]
fn a_guest_that_stays_keeps_its_connections() {
    let mut scene = Scene::new();
    let (mut program, ports) = scene.accepted();
    scene.bench.backend.pause();
    scene.bench.backend.save().unwrap();
    scene.bench.backend.resume();
    scene.send(ports, 5, 0, b"still here");
    assert_eq!(read(&mut program, 10), b"still here");
}

#[test]
fn a_returning_guest_learns_of_its_closed_connections_too() {
    let mut scene = Scene::new();
    let (_program, _) = scene.accepted();
    scene.bench.backend.pause();
    scene.bench.backend.device().release();
    scene.bench.backend.device().take_over().unwrap();
    scene.bench.backend.resume();
    scene.bench.driver(EVENT).offer(&[(0x8000, 4, WRITABLE)]);
    scene.bench.kick(EVENT);
    assert_eq!(scene.bench.driver(EVENT).used(), [(0, 4)]);
    UnixStream::connect(scene.path("vsock")).unwrap();
}

#[test]
fn without_a_driver_programs_are_refused() {
    let mut scene = Scene::without_driver();
    scene.bench.backend.resume();
    let mut program = UnixStream::connect(scene.path("vsock")).unwrap();
    program.write_all(b"CONNECT 1\n").unwrap();
    scene.poll();
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
}
