//! The vsock device: queues on one side, connections on the other.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::{Epoll, EpollEvent};

use super::connection::{BUFFER_BYTES, Connection};
use super::host::{Listener, dial, watch};
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, Ports, Received, STREAM};
use crate::memory::RamMap;
use crate::virtio::DeviceError;
use crate::virtio::device::{Device, DeviceKind, Progress, Rings, expect_no_state};
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Index of the queue for packets to the guest.
const RX: usize = 0;
/// Index of the queue for packets from the guest.
const TX: usize = 1;
/// Index of the queue for events of the device itself.
const EVENT: usize = 2;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Event: all connections are gone (`VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Most simultaneous connections.
const CONNECTIONS_MAX: usize = 256;
/// Most refusals waiting to be sent; at the limit, packets of the guest wait.
const REFUSALS_MAX: usize = 64;
/// Packets in each direction before the thread checks for other work.
const BATCH: usize = 64;
/// First of the host ports assigned to connecting programs; lower ports are for listening programs.
const FIRST_OWN_PORT: u32 = 1 << 30;
/// Most events taken per wait.
const EVENTS_MAX: usize = 16;

/// Index in [`Device::watched`] of the listening socket; the other index is the connections.
const LISTENER: usize = 0;

/// A vsock device of a guest: its queues and its connections.
#[derive(Debug)]
pub(crate) struct VsockDevice {
    cid: u64,
    /// Socket path at which programs of the host reach the guest; `None` until it is set.
    place: Option<PathBuf>,
    listener: Listener,
    streams: Epoll,
    connections: BTreeMap<Ports, Connection>,
    /// The connection that last had its turn.
    last: Option<Ports>,
    refusals: VecDeque<Header>,
    next_port: u32,
    has_driver: bool,
    /// The driver still has connections from another host or from before a restore.
    reset_due: bool,
}

/// Addresses (CIDs) that a guest can have (virtio 1.2, 5.10.4).
pub const GUEST_CIDS: RangeInclusive<u32> = 3..=u32::MAX - 1;

/// Checks that a guest can have this address.
///
/// # Errors
/// [`DeviceError::Config`].
pub(in crate::virtio) fn check_cid(cid: u32) -> Result<(), DeviceError> {
    if GUEST_CIDS.contains(&cid) {
        return Ok(());
    }
    let (min, max) = (GUEST_CIDS.start(), GUEST_CIDS.end());
    Err(DeviceError::Config(format!("a guest's cid is {min} to {max}, not {cid}")))
}

impl VsockDevice {
    /// Creates a device with which the guest has the address `cid`.
    ///
    /// # Errors
    /// [`DeviceError::Start`].
    pub(crate) fn new(cid: u32) -> Result<Self, DeviceError> {
        let failed = |cause| DeviceError::Start { device: DeviceKind::Vsock.name(), cause };
        Ok(Self {
            cid: cid.into(),
            place: None,
            listener: Listener::new().map_err(failed)?,
            streams: Epoll::new().map_err(failed)?,
            connections: BTreeMap::new(),
            last: None,
            refusals: VecDeque::new(),
            next_port: FIRST_OWN_PORT,
            has_driver: false,
            reset_due: false,
        })
    }

    /// Handles the packets that the guest has sent.
    fn take_packets(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        match REFUSALS_MAX - self.refusals.len() {
            0 => Ok(Progress::Idle),
            room => rings.serve(TX, room.min(BATCH), |chain, memory| {
                self.take_packet(chain, memory).map(|()| 0)
            }),
        }
    }

    fn take_packet(&mut self, mut chain: Chain, memory: &RamMap) -> Result<(), QueueError> {
        let mut header = [0; HEADER_BYTES];
        let place = chain.readable.take_front(HEADER_BYTES as u64).ok_or(QueueError::Request)?;
        place.read(memory, &mut header).map_err(|_| QueueError::Buffer)?;
        let packet = Received::from_bytes(&header);
        if packet.bytes as usize > BUFFER_BYTES {
            return Err(QueueError::TooLong);
        }
        let data = chain.readable.take_front(packet.bytes.into()).ok_or(QueueError::Request)?;
        let mut bytes = vec![0; packet.bytes as usize];
        data.read(memory, &mut bytes).map_err(|_| QueueError::Buffer)?;
        if packet.source_cid == self.cid && packet.destination_cid == HOST_CID {
            self.receive(&packet, &bytes);
        }
        Ok(())
    }

    fn receive(&mut self, packet: &Received, data: &[u8]) {
        if packet.socket_type != STREAM {
            return self.refuse(packet);
        }
        if let Some(connection) = self.connections.get_mut(&packet.ports) {
            connection.receive(packet, data);
            if connection.is_over() {
                self.connections.remove(&packet.ports);
            }
        } else if packet.op != Some(Op::Request) || self.accept(packet).is_err() {
            self.refuse(packet);
        }
    }

    fn refuse(&mut self, packet: &Received) {
        if packet.op != Some(Op::Reset) {
            self.refusals.push_back(Header::reset(packet.ports, packet.socket_type));
        }
    }

    /// Connects the guest to the program at the port that it asks for.
    fn accept(&mut self, request: &Received) -> io::Result<()> {
        let Some(place) = &self.place else { return Err(io::ErrorKind::NotConnected.into()) };
        let stream = dial(place, request.ports.host)?;
        self.watch(&stream, request.ports)?;
        let connection = Connection::asked_for_by_guest(stream, request);
        self.connections.insert(request.ports, connection);
        Ok(())
    }

    /// Asks the guest to accept a program's connection to its port `guest`.
    fn introduce(&mut self, stream: UnixStream, guest: u32) -> io::Result<()> {
        while self.connections.contains_key(&Ports { host: self.next_port, guest }) {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_OWN_PORT);
        }
        let ports = Ports { host: self.next_port, guest };
        self.next_port = self.next_port.wrapping_add(1).max(FIRST_OWN_PORT);
        self.watch(&stream, ports)?;
        self.connections.insert(ports, Connection::asked_for_by_host(stream, ports));
        Ok(())
    }

    fn watch(&self, stream: &UnixStream, ports: Ports) -> io::Result<()> {
        if !self.has_driver || self.connections.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        watch(&self.streams, stream, u64::from(ports.host) << 32 | u64::from(ports.guest))
    }

    fn process_streams(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            let count = self.streams.wait(0, &mut events).unwrap_or(0);
            for event in &events[..count] {
                let (host, guest) = ((event.data() >> 32) as u32, event.data() as u32);
                if let Some(connection) = self.connections.get_mut(&Ports { host, guest }) {
                    connection.stream_is_ready();
                }
            }
            if count < EVENTS_MAX {
                return;
            }
        }
    }

    /// Sends the guest its packets, while it has space.
    fn give_packets(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BATCH {
            let speaker = self.next_speaker();
            if self.refusals.is_empty() && speaker.is_none() {
                return Ok(Progress::Idle);
            }
            let Some(mut chain) = rings.take(RX)? else { return Ok(Progress::Idle) };
            let place =
                chain.writable.take_front(HEADER_BYTES as u64).ok_or(QueueError::Request)?;
            let room = chain.writable.bytes() as usize;
            let Some((header, data)) = self.next_packet(speaker, room) else {
                return Err(QueueError::Request);
            };
            let memory = rings.ram().memory();
            let bytes = data.len() as u32;
            let written = place
                .write(memory, &header.to_bytes(self.cid, bytes))
                .and_then(|()| chain.writable.write(memory, &data));
            written.map_err(|_| QueueError::Buffer)?;
            rings.give_back(RX, chain.head, HEADER_BYTES as u32 + bytes)?;
        }
        Ok(Progress::More)
    }

    /// Returns the connection whose turn it is to send, if there is one.
    fn next_speaker(&mut self) -> Option<Ports> {
        let last = self.last.unwrap_or(Ports { host: u32::MAX, guest: u32::MAX });
        let after = (Bound::Excluded(last), Bound::Unbounded);
        let speaks = |(_, connection): &mut (&Ports, &mut Connection)| connection.has_packet();
        let later =
            self.connections.range_mut(after).find_map(|mut it| speaks(&mut it).then_some(*it.0));
        later.or_else(|| {
            let mut others = self.connections.range_mut(..=last);
            others.find_map(|mut it| speaks(&mut it).then_some(*it.0))
        })
    }

    fn next_packet(&mut self, speaker: Option<Ports>, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some((refusal, Vec::new()));
        }
        self.last = speaker;
        let packet = self.connections.get_mut(&speaker?)?.next_packet(room);
        self.connections.retain(|_, connection| !connection.is_over());
        Some(packet)
    }

    /// Tells the driver once that its connections are gone, as soon as it offers a buffer for the
    /// event.
    fn report_reset(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        if !self.reset_due {
            return Ok(());
        }
        if let Some(chain) = rings.take(EVENT)? {
            if chain.writable.bytes() < TRANSPORT_RESET.len() as u64 {
                return Err(QueueError::Request);
            }
            let written = chain.writable.write(rings.ram().memory(), &TRANSPORT_RESET);
            written.map_err(|_| QueueError::Buffer)?;
            rings.give_back(EVENT, chain.head, TRANSPORT_RESET.len() as u32)?;
            self.reset_due = false;
        }
        Ok(())
    }

    fn forget_connections(&mut self) {
        self.connections.clear();
        self.refusals.clear();
    }
}

impl Device for VsockDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::read_only(self.cid.to_le_bytes().to_vec())
    }

    fn activate(&mut self, _features: u64) {
        self.has_driver = true;
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        if index == EVENT {
            return self.report_reset(rings).map(|()| Progress::Idle);
        }
        // Received packets cause answers, and sent packets make room for refusals, so both
        // directions are handled together.
        let taken = self.take_packets(rings)?;
        let given = self.give_packets(rings)?;
        Ok(if taken == Progress::Idle { given } else { taken })
    }

    fn watched(&self) -> Vec<RawFd> {
        vec![self.listener.descriptor(), self.streams.as_raw_fd()]
    }

    fn ready(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        if index == LISTENER {
            for (stream, port) in self.listener.requests() {
                // If the connection fails, the program finds its stream closed.
                let _ = self.introduce(stream, port);
            }
        } else {
            self.process_streams();
        }
        rings.request_processing(RX);
        Ok(())
    }

    fn reset(&mut self) {
        self.forget_connections();
        self.has_driver = false;
        self.reset_due = false;
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        let Some(path) = &self.place else { return Ok(()) };
        self.listener.open(path).map_err(|cause| DeviceError::Vsock { path: path.clone(), cause })
    }

    /// Closes all connections; if the guest resumes here after all, its driver is told.
    fn release(&mut self) {
        self.listener.close();
        self.forget_connections();
        self.reset_due = self.has_driver;
    }

    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        self.forget_connections();
        self.reset_due = self.has_driver;
        expect_no_state(state)
    }

    fn listen_at(&mut self, path: &Path) {
        self.place = Some(path.to_owned());
    }
}
