//! vsock connections between guest and host: packets on one side, programs on the other.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use arbitrary::Arbitrary;
use tempfile::TempDir;
use vmm_core::GuestRam;
use vmm_core::virtio::fuzzing::Bench;

use super::MEMORY_BYTES;
use super::host::{Host, Scene};
use super::request::{DATA, Request, queue_or};
use super::ring::{Buffer, WRITABLE, put};
use super::{Lawful, Script, Step};

/// CID of the guest.
const CID: u32 = 3;
/// Size of a packet's header, in bytes.
const HEADER_BYTES: u32 = 44;
/// Number of ports of the guest, and of ports of the host at which programs listen.
const PORTS: u8 = 2;
/// Operations of packets, by number (virtio 1.2, 5.10.6): 1 requests, 2 accepts, 5 carries data; 0
/// and 8 are undefined.
const OPS: [u8; 16] = [1, 1, 1, 2, 2, 2, 5, 5, 5, 5, 3, 4, 6, 7, 0, 8];
/// The first port that a program on the host is given.
const FIRST_OWN_PORT: u32 = 1 << 30;
/// From this value on, a packet has an oddity.
const ODD: u8 = 240;

/// A vsock device and a folder for programs, one of which is already listening.
///
/// # Panics
/// If there is no room for sockets.
pub fn sockets() -> Scene<Programs> {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    let mut side = Programs { folder, listeners: BTreeMap::new(), streams: Vec::new() };
    side.listen(0);
    let bench = Bench::with_sockets(CID, &side.door(), MEMORY_BYTES);
    Scene { bench: bench.unwrap_or_else(|error| panic!("no device: {error}")), side }
}

/// A driver's request to a vsock device.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum VsockRequest {
    /// Offers a buffer to receive into, or two with the header in the first.
    Room { bytes: u16, split: bool },
    /// Offers a buffer for the transport reset event.
    Event { bytes: u8 },
    /// Sends a packet.
    Packet(Packet),
}

/// A packet from the guest to the host.
#[derive(Debug, Arbitrary)]
pub struct Packet {
    op: u8,
    guest: u8,
    host: HostPort,
    bytes: u16,
    flags: u8,
    credit: GuestRoom,
    odd: u8,
    oddity: Oddity,
}

#[derive(Debug, Arbitrary)]
enum HostPort {
    /// A port at which a program may listen.
    Listener(u8),
    /// A port that was given to a program.
    Own(u8),
    Any(u32),
}

/// The guest's credit fields.
#[derive(Debug, Arbitrary)]
enum GuestRoom {
    Much,
    Is { allocated: u32, forwarded: u32 },
}

#[derive(Debug, Arbitrary)]
enum Oddity {
    /// Wrong number of data bytes in the header.
    Told(u32),
    Type(u16),
    Cids(u64, u64),
    Flags(u32),
    /// The packet is truncated to this many bytes.
    Cut(u8),
}

impl Packet {
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer> {
        let host = match self.host {
            HostPort::Listener(port) => u32::from(port % PORTS),
            HostPort::Own(port) => FIRST_OWN_PORT + u32::from(port % PORTS),
            HostPort::Any(port) => port,
        };
        let (allocated, forwarded) = match self.credit {
            GuestRoom::Much => (1 << 20, 0),
            GuestRoom::Is { allocated, forwarded } => (allocated, forwarded),
        };
        let op = OPS[usize::from(self.op) % OPS.len()];
        // Only packets with operation 5 carry data.
        let data = if op == 5 { u32::from(self.bytes) } else { 0 };
        let (mut told, mut kind, mut cids) = (data, 1, (u64::from(CID), 2));
        let (mut flags, mut len) = (u32::from(self.flags), HEADER_BYTES + data);
        if self.odd >= ODD {
            match self.oddity {
                Oddity::Told(bytes) => told = bytes,
                Oddity::Type(other) => kind = other,
                Oddity::Cids(source, destination) => cids = (source, destination),
                Oddity::Flags(other) => flags = other,
                Oddity::Cut(bytes) => len = bytes.into(),
            }
        }
        put(ram, DATA, &cids.0.to_le_bytes());
        put(ram, DATA + 8, &cids.1.to_le_bytes());
        let words = [(self.guest % PORTS).into(), host, told];
        for (at, word) in (16u64..).step_by(4).zip(words) {
            put(ram, DATA + at, &word.to_le_bytes());
        }
        put(ram, DATA + 28, &kind.to_le_bytes());
        put(ram, DATA + 30, &u16::from(op).to_le_bytes());
        for (at, word) in (32u64..).step_by(4).zip([flags, allocated, forwarded]) {
            put(ram, DATA + at, &word.to_le_bytes());
        }
        vec![Buffer { gpa: DATA, len: len.max(1), flags: 0 }]
    }
}

impl Request for VsockRequest {
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer> {
        let room = |gpa, len| Buffer { gpa, len, flags: WRITABLE };
        let place = DATA + 0x4_0000;
        match self {
            Self::Packet(packet) => packet.lay_out(ram),
            Self::Event { bytes } => vec![room(place, u32::from(bytes % 8).max(1))],
            Self::Room { bytes, split: false } => vec![room(place, u32::from(*bytes).max(1))],
            Self::Room { bytes, split: true } => vec![
                room(place, HEADER_BYTES),
                room(place + u64::from(HEADER_BYTES), u32::from(*bytes).max(1)),
            ],
        }
    }

    fn queue(&self, any: u8) -> u8 {
        let right = match self {
            Self::Room { .. } => 0,
            Self::Packet(_) => 1,
            Self::Event { .. } => 2,
        };
        queue_or(right, any)
    }
}

/// The programs on the host: the folder of their sockets, the listeners, and the streams.
#[derive(Debug)]
pub struct Programs {
    folder: TempDir,
    listeners: BTreeMap<u8, UnixListener>,
    streams: Vec<UnixStream>,
}

impl Programs {
    fn door(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    fn listen(&mut self, port: u8) {
        let path = self.folder.path().join(format!("vsock_{port}"));
        let Ok(listener) = UnixListener::bind(path) else { return };
        if listener.set_nonblocking(true).is_ok() {
            self.listeners.insert(port, listener);
        }
    }

    fn stop_listening(&mut self, port: u8) {
        self.listeners.remove(&port);
        // The socket may not exist.
        let _ = std::fs::remove_file(self.folder.path().join(format!("vsock_{port}")));
    }

    fn add(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_ok() {
            self.streams.push(stream);
        }
    }

    fn stream(&mut self, number: u8) -> Option<&mut UnixStream> {
        let count = self.streams.len().max(1);
        self.streams.get_mut(usize::from(number) % count)
    }
}

/// An action of a program, or of the host. Programs are named by numbers, modulo the number of
/// programs.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum Program {
    /// Connects to the guest's port.
    Knock { port: u8 },
    /// Connects and sends some other line.
    KnockWith(Vec<u8>),
    /// Listens at the host's port for the guest.
    Listen(u8),
    /// Stops listening.
    StopListening(u8),
    /// Accepts the connection that the guest has made.
    Accept(u8),
    /// Writes as much as there is room for.
    Write { program: u8, bytes: u16 },
    /// Reads what has arrived.
    Read { program: u8, bytes: u16 },
    /// Shuts down reading, writing, or both.
    Shut { program: u8, reading: bool, writing: bool },
    /// Closes the connection.
    Leave { program: u8 },
    /// The guest is handed over and returns.
    LeaveAndReturn,
}

impl Host for Program {
    type Side = Programs;

    fn act(&self, bench: &mut Bench, side: &mut Programs) -> u64 {
        let mut came = 0;
        match self {
            Self::Knock { port } => {
                knock(side, format!("CONNECT {}\n", port % PORTS).as_bytes());
            }
            Self::KnockWith(line) => knock(side, line),
            Self::Listen(port) => side.listen(port % PORTS),
            Self::StopListening(port) => side.stop_listening(port % PORTS),
            Self::Accept(port) => {
                let listener = side.listeners.get(&(port % PORTS));
                if let Some(Ok((stream, _))) = listener.map(UnixListener::accept) {
                    side.add(stream);
                }
            }
            Self::Write { program, bytes } => {
                let data = vec![0x55; (*bytes).into()];
                // The other end may be gone, or the buffers full.
                let _ = side.stream(*program).map(|stream| stream.write(&data));
            }
            Self::Read { program, bytes } => {
                let mut data = vec![0; (*bytes).into()];
                if let Some(Ok(bytes)) = side.stream(*program).map(|it| it.read(&mut data)) {
                    came = bytes as u64;
                }
            }
            Self::Shut { program, reading, writing } => shut(side, *program, (*reading, *writing)),
            Self::Leave { program } => {
                let count = side.streams.len();
                if count > 0 {
                    side.streams.swap_remove(usize::from(*program) % count);
                }
            }
            Self::LeaveAndReturn => {
                if let Err(error) = bench.leave_and_return() {
                    panic!("a device does not come back: {error}");
                }
            }
        }
        bench.look(Duration::ZERO);
        came
    }
}

fn knock(side: &mut Programs, line: &[u8]) {
    let Ok(mut stream) = UnixStream::connect(side.door()) else { return };
    // A program that is rejected at once cannot write any more.
    let _ = stream.write(line);
    side.add(stream);
}

fn shut(side: &mut Programs, program: u8, sides: (bool, bool)) {
    let how = match sides {
        (true, true) => Shutdown::Both,
        (true, false) => Shutdown::Read,
        (false, true) => Shutdown::Write,
        (false, false) => return,
    };
    // The stream may already be shut down.
    let _ = side.stream(program).map(|stream| stream.shutdown(how));
}

/// A compliant exchange: a program to which the guest connects receives `bytes` bytes, and one that
/// connects to the guest is accepted.
pub fn conversation(bytes: u16) -> Script<VsockRequest, Program> {
    let ask = |request| Lawful::Ask { queue: 0, request, notify: true };
    let packet = |host, op: u8| {
        let op = OPS.iter().position(|it| *it == op).unwrap_or_default() as u8;
        let credit = GuestRoom::Much;
        let oddity = Oddity::Type(0);
        ask(VsockRequest::Packet(Packet {
            op,
            guest: 0,
            host,
            bytes,
            flags: 0,
            credit,
            odd: 0,
            oddity,
        }))
    };
    let room = || ask(VsockRequest::Room { bytes: 4096, split: false });
    let steps = [
        room(),
        packet(HostPort::Listener(0), 1),
        Lawful::Host(Program::Accept(0)),
        packet(HostPort::Listener(0), 5),
        Lawful::Host(Program::Read { program: 0, bytes: u16::MAX }),
        room(),
        Lawful::Host(Program::Knock { port: 0 }),
        packet(HostPort::Own(0), 2),
        Lawful::Host(Program::Read { program: 1, bytes: u16::MAX }),
    ];
    Script { features: 0, steps: steps.into_iter().map(Step::Lawful).collect() }
}
