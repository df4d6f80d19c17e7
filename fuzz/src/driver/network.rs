//! A network device: frames both ways, commands, and a network whose wire is a socket, not a tap.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use arbitrary::Arbitrary;
use vmm_core::virtio::fuzzing::Bench;
use vmm_core::{GuestRam, MachineKind};

use super::MEMORY_BYTES;
use super::host::{Host, Scene};
use super::request::{DATA, HEADER, Request, STATUS, queue_or};
use super::ring::{Buffer, WRITABLE, put};

/// Limit on the frames that arrive at once; the wire holds no more.
const FRAMES_MAX: u8 = 10;
/// Size of the header before each frame, in bytes.
const HEADER_BYTES: usize = 12;
/// Position of the EtherType in a frame with its header, and the type of an announcement.
const TYPE: std::ops::Range<usize> = 24..26;
const REVERSE_ARP: [u8; 2] = [0x80, 0x35];
/// More than the size of any frame, in bytes.
const FRAME_BYTES_MAX: usize = 80_000;

/// A network device and the other end of its wire.
///
/// # Panics
/// If the system provides no sockets.
pub fn network() -> Scene<UnixDatagram> {
    let (bench, side) = Bench::with_network(MachineKind::Mmio, MEMORY_BYTES)
        .unwrap_or_else(|error| panic!("no device: {error}"));
    Scene { bench, side }
}

/// A driver's request to a network device.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum NetRequest {
    /// Offers buffers to receive into.
    Room { first: u16, second: Option<u16> },
    /// Sends a frame.
    Frame {
        header: [u8; HEADER_BYTES],
        bytes: u16,
        /// Part of the frame that is in a separate buffer.
        split: Option<u16>,
        /// How often the same bytes are repeated, for a frame that is too long.
        twice: u8,
    },
    /// Sends a command.
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
                // Existing classes and commands, for most inputs.
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

/// An action of the network, or of the host.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)] // the names say it
pub enum Network {
    /// Frames arrive, each with this header followed by `bytes` bytes.
    Send { header: [u8; HEADER_BYTES], bytes: u16, count: u8 },
    /// Data arrives that need not be a frame.
    SendAny(Vec<u8>),
    /// Takes `count` frames from the wire.
    Take { count: u8 },
    /// Lets time pass.
    Wait { ms: u16 },
    /// The guest is handed over and returns.
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
                // A full wire drops frames.
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
        // The host announces the guest itself.
        frames += u64::from(frame[TYPE] != REVERSE_ARP);
    }
    frames
}
