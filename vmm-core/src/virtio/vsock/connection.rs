//! One connection: a stream of the host on one side, packets from and to the guest on the other.
//!
//! Bytes are buffered in both directions, at most [`BUFFER_BYTES`] each: the guest has been told
//! how much space there is, and the host's program blocks on its socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::packet::{
    Credit, Header, Op, Ports, Received, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM,
};

/// Most bytes buffered in one direction.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// Progress of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A program of the host asked for it, and the guest has not answered yet.
    Asked,
    /// Both sides may send.
    Open,
    /// The next packet to the guest ends it.
    Broken,
    /// The guest was told, or has ended it itself: the connection can be removed.
    Over,
}

/// A connection between the guest and a program of the host; see the module.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    ports: Ports,
    phase: Phase,
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    /// The space that the guest last announced.
    guest: Credit,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// Bytes that the stream accepted, modulo 2^32, and how many of them the guest has been told
    /// of.
    forwarded: u32,
    credited: u32,
    /// What each side has stopped doing, as flags of a shutdown.
    guest_shut: u32,
    host_shut: u32,
    /// Flags of the guest that the stream was already shut down with.
    stream_shut: u32,
    /// The stream may have data to read.
    readable: bool,
    /// Packets without data that must be sent to the guest.
    owed: Vec<Op>,
}

impl Connection {
    /// Creates a connection that a program of the host asks for.
    pub(super) fn asked_for_by_host(stream: UnixStream, ports: Ports) -> Self {
        Self::new(stream, ports, Phase::Asked, Op::Request)
    }

    /// Creates a connection that the guest asks for; it is accepted.
    pub(super) fn asked_for_by_guest(stream: UnixStream, request: &Received) -> Self {
        let mut connection = Self::new(stream, request.ports, Phase::Open, Op::Response);
        connection.guest = request.credit;
        connection
    }

    fn new(stream: UnixStream, ports: Ports, phase: Phase, first: Op) -> Self {
        Self {
            stream,
            ports,
            phase,
            to_guest: VecDeque::new(),
            to_host: VecDeque::new(),
            guest: Credit::default(),
            sent: 0,
            forwarded: 0,
            credited: 0,
            guest_shut: 0,
            host_shut: 0,
            stream_shut: 0,
            readable: true,
            owed: vec![first],
        }
    }

    /// Returns whether the connection can be removed.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Handles a stream that may have data to read, or space.
    pub(super) fn stream_is_ready(&mut self) {
        self.readable = true;
        self.forward();
    }

    /// Handles a packet from the guest, with its data. A packet that is invalid in the phase breaks
    /// the connection.
    pub(super) fn receive(&mut self, packet: &Received, data: &[u8]) {
        self.guest = packet.credit;
        match (packet.op, self.phase) {
            (_, Phase::Broken | Phase::Over) => {}
            (Some(Op::Reset), _) => self.phase = Phase::Over,
            (Some(Op::Response), Phase::Asked) => {
                self.phase = Phase::Open;
                // The same answer as Firecracker's and Cloud Hypervisor's. Nothing was written to
                // the stream before, so there is space for it.
                let answer = format!("OK {}\n", self.ports.host);
                if self.stream.write_all(answer.as_bytes()).is_err() {
                    self.break_off();
                }
            }
            (Some(Op::Data), Phase::Open) if self.takes(data) => {
                self.to_host.extend(data);
                self.forward();
            }
            (Some(Op::Shutdown), Phase::Open) => {
                self.guest_shut |= packet.flags & SHUTDOWN_BOTH;
                self.forward();
            }
            (Some(Op::CreditUpdate), Phase::Open) => {}
            (Some(Op::CreditRequest), Phase::Open) => self.owe(Op::CreditUpdate),
            _ => self.phase = Phase::Broken,
        }
    }

    fn takes(&self, data: &[u8]) -> bool {
        self.guest_shut & SHUTDOWN_SEND == 0 && data.len() <= BUFFER_BYTES - self.to_host.len()
    }

    /// Writes to the stream what it accepts, and shuts it down when the guest has finished sending.
    fn forward(&mut self) {
        while !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(0) => return self.break_off(),
                Ok(bytes) => {
                    self.to_host.drain(..bytes);
                    self.forwarded = self.forwarded.wrapping_add(bytes as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The program does not read any more.
                Err(_) => return self.break_off(),
            }
        }
        if self.forwarded.wrapping_sub(self.credited) >= BUFFER_BYTES as u32 / 2 {
            self.owe(Op::CreditUpdate);
        }
        if self.to_host.is_empty() && self.guest_shut != self.stream_shut {
            self.shut_stream();
        }
    }

    /// Shuts the stream down, once per change: every shutdown makes the stream ready on this side
    /// too, so repeating it would loop forever.
    fn shut_stream(&mut self) {
        self.stream_shut = self.guest_shut;
        match self.guest_shut {
            SHUTDOWN_BOTH => self.phase = Phase::Broken,
            // A failure does not matter: nothing would react to it.
            SHUTDOWN_SEND => drop(self.stream.shutdown(Shutdown::Write)),
            _ => drop(self.stream.shutdown(Shutdown::Read)),
        }
    }

    fn break_off(&mut self) {
        self.to_host.clear();
        self.phase = Phase::Broken;
    }

    fn owe(&mut self, op: Op) {
        if !self.owed.contains(&op) {
            self.owed.push(op);
        }
    }

    /// Returns whether there is a packet for the guest; reads the stream to find out.
    pub(super) fn has_packet(&mut self) -> bool {
        match self.phase {
            Phase::Over => return false,
            Phase::Broken => return true,
            Phase::Asked => {}
            Phase::Open => self.read_stream(),
        }
        !self.owed.is_empty() || self.sendable() > 0
    }

    fn sendable(&self) -> usize {
        self.to_guest.len().min(self.guest.left(self.sent) as usize)
    }

    /// Reads at most as much as the guest accepts; the guest sends a packet when it accepts more.
    fn read_stream(&mut self) {
        let is_closed = (self.guest_shut & SHUTDOWN_RECEIVE | self.host_shut & SHUTDOWN_SEND) != 0;
        if !self.readable || is_closed || !self.to_guest.is_empty() {
            return;
        }
        let mut bytes = [0; 16 << 10];
        let room = bytes.len().min(self.guest.left(self.sent) as usize);
        if room == 0 {
            return;
        }
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => self.host_shut(SHUTDOWN_SEND),
            Ok(count) => self.to_guest.extend(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.host_shut(SHUTDOWN_BOTH),
        }
    }

    fn host_shut(&mut self, flags: u32) {
        self.host_shut |= flags;
        self.owe(Op::Shutdown);
    }

    /// Returns the next packet for the guest: its header, and its data of at most `room` bytes.
    /// Call [`Connection::has_packet`] first.
    pub(super) fn next_packet(&mut self, room: usize) -> (Header, Vec<u8>) {
        let op = match self.phase {
            Phase::Broken => {
                self.phase = Phase::Over;
                Op::Reset
            }
            _ if self.owed.is_empty() => Op::Data,
            _ => self.owed.remove(0),
        };
        let bytes = if op == Op::Data { self.sendable().min(room) } else { 0 };
        self.sent = self.sent.wrapping_add(bytes as u32);
        self.credited = self.forwarded;
        let header = Header {
            ports: self.ports,
            socket_type: STREAM,
            op,
            flags: if op == Op::Shutdown { self.host_shut } else { 0 },
            credit: Credit { allocated: BUFFER_BYTES as u32, forwarded: self.forwarded },
        };
        (header, self.to_guest.drain(..bytes).collect())
    }
}
