//! A network device: frames both ways, commands, and the network behind a wire that is no tap.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use arbitrary::Arbitrary;
use vmm_core::GuestRam;
use vmm_core::virtio::fuzzing::Bench;

use super::MEMORY_BYTES;
use super::host::{Host, Scene};
use super::request::{DATA, HEADER, Request, STATUS, queue_or};
use super::ring::{Buffer, WRITABLE, put};

/// Most frames that come at once; the wire holds no more.
const FRAMES_MAX: u8 = 10;
/// Bytes before each frame.
const HEADER_BYTES: usize = 12;
/// Where in a frame its type is, and that of an announcement.
const TYPE: std::ops::Range<usize> = 24..26;
const REVERSE_ARP: [u8; 2] = [0x80, 0x35];
/// Longer than any frame.
const FRAME_BYTES_MAX: usize = 80_000;

/// A device and the end of its wire.
///
/// # Panics
/// The system gives no sockets.
pub fn network() -> Scene<UnixDatagram> {
    let (bench, side) =
        Bench::with_network(MEMORY_BYTES).unwrap_or_else(|error| panic!("no device: {error}"));
    Scene { bench, side }
}

/// What a driver asks of a network device.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum NetRequest {
    /// Receive into these buffers.
    Room { first: u16, second: Option<u16> },
    /// Send this.
    Frame {
        header: [u8; HEADER_BYTES],
        bytes: u16,
        /// A part of it that is in a buffer of its own.
        split: Option<u16>,
        /// Once more the same bytes, for a frame that is too long.
        twice: u8,
    },
    /// Obey this.
    Command { class: u8, command: u8, data: Vec<u8>, answer_bytes: u8 },
}

impl Request for NetRequest {
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer> {
        let buffer = |gpa, len, flags| Buffer { gpa, len, flags };
        match self {
            Self::Room { first, second } => {
                let rest = second.map(|len| buffer(DATA + 0x1_0000, len.into(), WRITABLE));
                [buffer(DATA, (*first).into(), WRITABLE)].into_iter().chain(rest).collect()
            }
            Self::Frame { header, bytes, split, twice } => {
                put(ram, DATA, header);
                let (bytes, split) = (u32::from(*bytes), u32::from(split.unwrap_or(0)));
                let first = bytes.saturating_sub(split).max(1);
                let mut frame = vec![buffer(DATA, first, 0)];
                if bytes > first {
                    frame.push(buffer(DATA + u64::from(first), bytes - first, 0));
                }
                if *twice > 240 {
                    frame.push(buffer(DATA, bytes, 0));
                }
                frame
            }
            Self::Command { class, command, data, answer_bytes } => {
                // Those that there are, mostly.
                put(ram, HEADER, &[class % 6, command % 3]);
                put(ram, HEADER + 2, data);
                let mut parts = vec![buffer(HEADER, 2 + data.len() as u32, 0)];
                if *answer_bytes > 8 {
                    parts.push(buffer(STATUS, 1, WRITABLE));
                } else if *answer_bytes > 0 {
                    parts.push(buffer(STATUS, (*answer_bytes).into(), WRITABLE));
                }
                parts
            }
        }
    }

    fn queue(&self, any: u8) -> u8 {
        let right = match self {
            Self::Room { .. } => 0,
            Self::Frame { .. } => 1,
            Self::Command { .. } => 2,
        };
        queue_or(right, any)
    }
}

/// What the network does, and its host.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum Network {
    /// Frames come, each with this header and so many bytes behind it.
    Send { header: [u8; HEADER_BYTES], bytes: u16, count: u8 },
    /// Something comes that need not be a frame.
    SendAny(Vec<u8>),
    /// So many frames are taken from the wire.
    Take { count: u8 },
    /// Time passes.
    Wait { ms: u16 },
    /// The guest is handed over and comes back.
    LeaveAndReturn,
}

impl Host for Network {
    type Side = UnixDatagram;

    fn act(&self, bench: &mut Bench, wire: &mut UnixDatagram) -> u64 {
        let mut frames = 0;
        let mut wait = Duration::ZERO;
        match self {
            Self::Send { header, bytes, count } => {
                let mut frame = header.to_vec();
                frame.resize(HEADER_BYTES + usize::from(*bytes), 0x55);
                // A wire that is full loses frames.
                (0..=count % FRAMES_MAX).for_each(|_| drop(wire.send(&frame)));
            }
            Self::SendAny(bytes) => drop(wire.send(bytes)),
            Self::Take { count } => frames = take(wire, *count),
            Self::Wait { ms } => wait = Duration::from_millis((*ms).into()),
            Self::LeaveAndReturn => {
                if let Err(error) = bench.leave_and_return() {
                    panic!("a device does not come back: {error}");
                }
            }
        }
        bench.look(wait);
        frames
    }
}

/// Takes `count` frames from the wire; returns how many of them the guest has sent.
fn take(wire: &UnixDatagram, count: u8) -> u64 {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let mut frames = 0;
    for _ in 0..count {
        let Ok(bytes) = wire.recv(&mut frame) else { break };
        assert!(bytes > HEADER_BYTES, "a frame of {bytes} bytes with its header");
        // What announces the guest is not the guest's.
        frames += u64::from(frame[TYPE] != REVERSE_ARP);
    }
    frames
}
