//! The network device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STANDBY, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};

use super::announce::{self, Announcement};
use super::config::NetConfig;
use super::control::{self, Wish};
use super::meter::{Flow, NetMeter};
use super::port::Port;
use super::receive::{Filling, Receiver};
use super::tap::Tap;
use super::vhost::Vhost;
use super::{CONTROL, HEADER_BYTES, RECEIVE, TRANSMIT, transmit};
use crate::sys::net;
use crate::virtio::DeviceError;
use crate::virtio::device::{
    Device, DeviceKind, KernelAccess, Progress, Rings, Unwatched, expect_no_state,
};
use crate::virtio::queue::QueueError;
use crate::virtio::signals::{Cause, ConfigSpace};

/// Entries of each queue, as usual for network devices; the control queue has fewer.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Frames sent, or commands executed, before the thread checks for other work.
const BATCH: usize = 64;
/// Most stale frames that are dropped when the driver becomes ready: more than a tap's queue holds.
const STALE_FRAMES_MAX: usize = 4096;
/// A guest that was paused this long is announced on resume: switches may have dropped its address.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// What the kernel waits for when it carries the frames: both queues of them, and the tap.
const BY_KERNEL: Unwatched =
    Unwatched { queues: 1 << RECEIVE | 1 << TRANSMIT, descriptors: 1 << TAP };
/// Index of the tap in [`Device::watched`]; the kernel's signals follow.
const TAP: usize = 0;
/// Offset of the status in the configuration space (virtio 1.2, 5.1.4).
const STATUS: std::ops::Range<usize> = 6..8;

/// A network device of a guest.
#[derive(Debug)]
pub(crate) struct NetDevice {
    config: NetConfig,
    port: Box<dyn Port>,
    /// The kernel's side; `None` if the host's kernel is not to carry the frames, or cannot.
    vhost: Option<Vhost>,
    /// Features that the driver has accepted; `None` until it is ready.
    features: Option<u64>,
    receiver: Receiver,
    received: Flow,
    transmitted: Flow,
    meter: Arc<NetMeter>,
    announcement: Announcement,
    /// The driver was asked to announce the guest and has not confirmed it.
    asked_to_announce: bool,
    /// The network may believe that the guest is on another host.
    moved: bool,
    paused_at: Option<Instant>,
}

impl NetDevice {
    /// Opens or creates the tap; it carries no frames yet.
    ///
    /// # Errors
    /// [`DeviceError::Network`].
    pub(crate) fn open(config: &NetConfig) -> Result<Self, DeviceError> {
        Ok(Self::on(Box::new(Tap::open(config)?), config))
    }

    /// Returns the counters, to be read while the device works.
    pub(crate) fn meter(&self) -> Arc<NetMeter> {
        Arc::clone(&self.meter)
    }

    /// Creates a device with `port` as its connection on the host.
    pub(super) fn on(port: Box<dyn Port>, config: &NetConfig) -> Self {
        Self {
            config: config.clone(),
            receiver: Receiver::new(Filling::Single, port.mtu(), false),
            meter: Arc::new(NetMeter::new(config, port.name())),
            port,
            vhost: None,
            features: None,
            received: Flow::default(),
            transmitted: Flow::default(),
            announcement: Announcement::default(),
            asked_to_announce: false,
            moved: false,
            paused_at: None,
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features.is_some_and(|features| features >> feature & 1 == 1)
    }

    fn status(&self) -> u16 {
        let announce = if self.asked_to_announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        (VIRTIO_NET_S_LINK_UP | announce) as u16
    }

    /// Returns the `TUN_F_*` offloads that the driver accepts on received frames.
    fn offloads(&self) -> u32 {
        // A driver that does not complete checksums cannot take unsegmented frames (5.1.3.1).
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            return 0;
        }
        let offload = |feature, bit| if self.has(feature) { bit } else { 0 };
        libc::TUN_F_CSUM
            | offload(VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4)
            | offload(VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6)
            | offload(VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN)
            | offload(VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO)
    }

    /// Drops the frames that arrived before there was a driver to receive them.
    fn drop_stale_frames(&mut self) {
        // Space for the header only: a read discards the rest of the frame.
        let mut header = [0; HEADER_BYTES];
        for _ in 0..STALE_FRAMES_MAX {
            match nix::unistd::read(self.port.frames(), &mut header) {
                Ok(1..) => self.received.drops += 1,
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn receive(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let memory = rings.ram().memory();
        let Some(Some(queue)) = rings.queues.get_mut(RECEIVE) else { return Ok(Progress::Idle) };
        let before = self.received.frames;
        let frames = self.port.frames();
        let progress = self.receiver.process(queue, memory, frames, &mut self.received);
        self.meter.publish(self.received, self.transmitted);
        let progress = progress?;
        if self.received.frames != before && queue.wants_interrupt(memory)? {
            rings.interrupt.raise(Cause::Used(RECEIVE));
        }
        Ok(progress)
    }

    fn transmit(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let progress = rings.serve(TRANSMIT, BATCH, |chain, memory| {
            transmit::send(&chain, memory, self.port.frames(), &mut self.transmitted)?;
            Ok(0)
        });
        self.meter.publish(self.received, self.transmitted);
        progress
    }

    /// Returns whether the kernel carries the frames. Has it start as soon as it can; if it refuses
    /// to, the device's thread carries them.
    ///
    /// # Errors
    /// If a queue is broken.
    fn is_carried(&mut self, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        let (Some(vhost), Some(features)) = (&mut self.vhost, self.features) else {
            return Ok(false);
        };
        if vhost.runs() || !vhost.can_start(rings.queues) {
            return Ok(vhost.runs());
        }
        self.receiver.put_back(rings.queues.get_mut(RECEIVE).and_then(Option::as_mut));
        self.meter.kernel_begins();
        let started = vhost.start(self.port.frames(), features, rings.queues);
        if !matches!(started, Ok(Ok(()))) {
            self.kernel_ends();
        }
        let started = started?;
        if let Err(error) = &started {
            tracing::warn!(tap = self.port.name(), %error, "vhost-net does not take over: frames are carried without it");
        }
        Ok(started.is_ok())
    }

    fn kernel_ends(&mut self) {
        let carried = self.meter.kernel_ends();
        (self.received, self.transmitted) = (carried.received, carried.transmitted);
    }

    fn obey(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let mut announced = false;
        let progress = rings.serve(CONTROL, BATCH, |chain, memory| {
            announced |= control::serve(chain, memory)? == Wish::Announced;
            Ok(1)
        })?;
        if announced {
            self.asked_to_announce = false;
            // The driver knows this, so it is not interrupted.
            rings.interrupt.change_config(put_status(self.status()));
        }
        Ok(progress)
    }
}

fn put_status(status: u16) -> impl FnOnce(&mut [u8]) {
    move |bytes| {
        if let Some(place) = bytes.get_mut(STATUS) {
            place.copy_from_slice(&status.to_le_bytes());
        }
    }
}

impl Device for NetDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    /// Offers only features that every host has: a guest finds the same device everywhere.
    fn features(&self) -> u64 {
        let standby = self.config.is_standby().then_some(VIRTIO_NET_F_STANDBY);
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_GUEST_UFO,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_HOST_UFO,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        always.into_iter().chain(standby).fold(0, |features, feature| features | 1 << feature)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE]
    }

    /// Returns `struct virtio_net_config` (virtio 1.2, 5.1.4).
    fn config(&self) -> ConfigSpace {
        let mut bytes = self.config.mac().bytes().to_vec();
        let queue_pairs = 1u16;
        for value in [self.status(), queue_pairs, self.config.mtu()] {
            bytes.extend(value.to_le_bytes());
        }
        ConfigSpace::read_only(bytes)
    }

    fn activate(&mut self, features: u64) {
        self.features = Some(features);
        let long = [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO];
        let takes_long = self.offloads() != 0 && long.into_iter().any(|feature| self.has(feature));
        let filling = match self.has(VIRTIO_NET_F_MRG_RXBUF) {
            true => Filling::Merged,
            false => Filling::Single,
        };
        self.receiver = Receiver::new(filling, self.port.mtu(), takes_long);
        if let Err(error) = self.port.set_offloads(self.offloads()) {
            tracing::warn!(tap = self.port.name(), %error, "the guest has to compute checksums itself");
        }
        self.drop_stale_frames();
        self.meter.publish(self.received, self.transmitted);
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        match index {
            RECEIVE | TRANSMIT if self.is_carried(rings)? => Ok(Progress::Idle),
            RECEIVE => self.receive(rings),
            TRANSMIT => self.transmit(rings),
            CONTROL if self.has(VIRTIO_NET_F_CTRL_VQ) => self.obey(rings),
            _ => Ok(Progress::Idle),
        }
    }

    fn offload(&mut self, access: &KernelAccess<'_>) -> bool {
        match Vhost::open(access) {
            Ok(vhost) => self.vhost = Some(vhost),
            Err(error) => {
                tracing::info!(tap = self.port.name(), %error, "frames are carried without vhost-net");
            }
        }
        self.vhost.is_some()
    }

    fn log_writes(&mut self, on: bool) -> Result<(), DeviceError> {
        let logged = self.vhost.as_mut().map_or(Ok(()), |vhost| vhost.log_writes(on));
        logged.map_err(|cause| DeviceError::Network {
            interface: self.port.name().to_owned(),
            cause: io::Error::other(format!("vhost-net logs no writes: {cause}")),
        })
    }

    fn watched(&self) -> Vec<RawFd> {
        let signals = self.vhost.iter().flat_map(Vhost::watched);
        std::iter::once(self.port.frames().as_raw_fd()).chain(signals).collect()
    }

    fn unwatched(&self) -> Unwatched {
        match &self.vhost {
            Some(vhost) if vhost.runs() => BY_KERNEL,
            _ => Unwatched::default(),
        }
    }

    fn ready(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        match &self.vhost {
            Some(vhost) if index != TAP => {
                vhost.pass_on_signals(rings.interrupt);
                vhost.check()
            }
            _ => {
                self.receiver.set_readable();
                rings.request_processing(RECEIVE);
                Ok(())
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        self.announcement.due()
    }

    /// Sends the next frame of an announcement.
    fn on_due(&mut self, rings: &mut Rings<'_>) {
        if self.announcement.take(rings.now()) {
            let frame = announce::frame(self.config.mac());
            if let Err(error) = net::send_bytes(self.port.frames(), &frame) {
                tracing::debug!(tap = self.port.name(), %error, "an announcement is lost");
            }
        }
    }

    /// Announces the guest if the network may believe that it is elsewhere. A guest without a
    /// driver is not announced: no switch knows it. Nor is one half of a failover pair after a
    /// pause: frames may come by the other half.
    fn resumed(&mut self, rings: &mut Rings<'_>) {
        let stood = self.paused_at.take().map(|then| rings.now().saturating_duration_since(then));
        let stood_long = stood.is_some_and(|stood| stood >= LONG_PAUSE);
        let moved =
            std::mem::take(&mut self.moved) || (stood_long && !self.has(VIRTIO_NET_F_STANDBY));
        if !moved || self.features.is_none() {
            return;
        }
        self.announcement.begin(rings.now());
        if self.has(VIRTIO_NET_F_GUEST_ANNOUNCE) && self.has(VIRTIO_NET_F_CTRL_VQ) {
            self.asked_to_announce = true;
            rings.change_config(put_status(self.status()));
        }
    }

    fn queues_closed(&mut self) {
        let Some(vhost) = &mut self.vhost else { return };
        let ran = vhost.runs();
        vhost.forget();
        if ran {
            self.kernel_ends();
        }
    }

    fn reset(&mut self) {
        self.features = None;
        self.receiver = Receiver::new(Filling::Single, self.port.mtu(), false);
        self.announcement.end();
        self.asked_to_announce = false;
    }

    fn drain(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.paused_at = Some(rings.now());
        if let Some(vhost) = self.vhost.as_mut().filter(|vhost| vhost.runs()) {
            let stopped = vhost.stop(rings.queues);
            // What the kernel signalled since this thread last looked is part of the state.
            vhost.pass_on_signals(rings.interrupt);
            self.kernel_ends();
            return stopped;
        }
        self.receiver.put_back(rings.queues.get_mut(RECEIVE).and_then(Option::as_mut));
        Ok(())
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        self.port.open_to_traffic()
    }

    fn release(&mut self) {
        self.moved = true;
        self.announcement.end();
        self.port.close_to_traffic();
    }

    /// Accepts only an empty state. Whether the driver was asked to announce the guest need not be
    /// saved, as it is asked again.
    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        self.moved = true;
        expect_no_state(state)
    }
}

#[cfg(test)]
mod tests;
