//! The network device.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STANDBY, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::HEADER_BYTES;
use super::announce::{self, Announcement};
use super::config::NetConfig;
use super::control::{self, Wish};
use super::counters::Flows;
use super::meter::NetMeter;
use super::pair::{self, Pairs};
use super::port::Port;
use super::receive::{Filling, Receiver};
use super::tap::Tap;
use crate::sys::net;
use crate::virtio::DeviceError;
use crate::virtio::device::{
    Device, DeviceKind, KernelAccess, Progress, Rings, Unwatched, expect_no_state,
};
use crate::virtio::queue::QueueError;
use crate::virtio::signals::ConfigSpace;

/// Entries of each queue, as usual for network devices; the control queue has fewer.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Commands executed before the thread checks for other work.
const BATCH: usize = 64;
/// Most stale frames that are dropped when the driver becomes ready: more than a tap's queue holds.
const STALE_FRAMES_MAX: usize = 4096;
/// A guest that was paused this long is announced on resume: switches may have dropped its address.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Offset of the status in the configuration space (virtio 1.2, 5.1.4).
const STATUS: std::ops::Range<usize> = 6..8;

/// A network device of a guest.
#[derive(Debug)]
pub(crate) struct NetDevice {
    config: NetConfig,
    port: Box<dyn Port>,
    /// All pairs of queues that the driver may use.
    pairs: Pairs,
    /// Features that the driver has accepted; `None` until it is ready.
    features: Option<u64>,
    /// What was carried, while the kernel carries nothing.
    flows: Flows,
    meter: Arc<NetMeter>,
    announcement: Announcement,
    /// The driver was asked to announce the guest and has not confirmed it.
    asked_to_announce: bool,
    /// The network may believe that the guest is on another host.
    moved: bool,
    paused_at: Option<Instant>,
    /// Warnings that were logged.
    warned: Vec<&'static str>,
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
        let receiver = || Receiver::new(Filling::Single, port.mtu(), false);
        Self {
            config: config.clone(),
            pairs: Pairs::new(config.queue_pairs(), receiver),
            meter: Arc::new(NetMeter::new(config, port.name())),
            port,
            features: None,
            flows: Flows::default(),
            announcement: Announcement::default(),
            asked_to_announce: false,
            moved: false,
            paused_at: None,
            warned: Vec::new(),
        }
    }

    /// Has the first `pairs` pairs of queues carry the frames, and no other; returns false if the
    /// host's interface does not do it.
    fn use_pairs(&mut self, pairs: usize) -> bool {
        let done = self.port.use_pairs(pairs);
        if let Err(error) = &done {
            self.warn(error, "the tap does not use as many queues as the guest");
        }
        done.is_ok()
    }

    /// Logs a warning once: a guest can cause it as often as it likes.
    fn warn(&mut self, error: &impl Display, what: &'static str) {
        if !self.warned.contains(&what) {
            self.warned.push(what);
            tracing::warn!(tap = self.port.name(), %error, "{what}");
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

    /// Returns how many pairs of queues the driver can use.
    fn usable_pairs(&self) -> usize {
        if self.has(VIRTIO_NET_F_MQ) { self.pairs.count() } else { 1 }
    }

    /// Returns the index of the control queue (virtio 1.2, 5.1.2).
    fn control_queue(&self) -> usize {
        pair::QUEUES * self.usable_pairs()
    }

    /// Drops the frames that arrived before there was a driver to receive them. Only the first pair
    /// can have any: the kernel drops what waits in a queue that is taken from a tap.
    fn drop_stale_frames(&mut self) {
        // Space for the header only: a read discards the rest of the frame.
        let mut header = [0; HEADER_BYTES];
        for _ in 0..STALE_FRAMES_MAX {
            match nix::unistd::read(self.port.frames(0), &mut header) {
                Ok(1..) => self.flows.received.drops += 1,
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Carries frames of queue `index`, unless the kernel does.
    fn carry(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let Some(pair) = self.pairs.of_queue(index) else { return Ok(Progress::Idle) };
        let is_used = pair.index() < self.port.used_pairs();
        if is_used && self.kernel_carries(index, rings)? {
            return Ok(Progress::Idle);
        }
        let Some(pair) = self.pairs.of_queue(index) else { return Ok(Progress::Idle) };
        let progress = match index == pair.transmit_queue() {
            // What was in a queue when the driver ceased to use it is sent too. Linux does not send
            // it again by another queue, and its connections would wait for ever.
            true => {
                let frames = self.port.frames(if is_used { pair.index() } else { 0 });
                pair.transmit(frames, &mut self.flows, rings)
            }
            false if is_used => {
                pair.receive(self.port.frames(pair.index()), &mut self.flows, rings)
            }
            false => Ok(Progress::Idle),
        };
        self.meter.publish(self.flows);
        progress
    }

    /// Has the kernel carry the frames of this queue and the other one of its pair, if it can;
    /// returns whether it does.
    ///
    /// # Errors
    /// If a queue is broken.
    fn kernel_carries(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        let (Some(pair), Some(features)) = (self.pairs.of_queue(queue), self.features) else {
            return Ok(false);
        };
        let frames = self.port.frames(pair.index());
        let Some(kernel) = pair.kernel(rings) else { return Ok(false) };
        if kernel.runs() {
            return Ok(true);
        }
        self.meter.kernel_begins();
        let started = kernel.start(frames, features, rings.queues);
        self.settle_counters();
        let started = started?;
        if let Err(error) = &started {
            self.warn(error, "vhost-net does not take over: frames are carried without it");
        }
        Ok(started.is_ok())
    }

    /// Counts from what the kernel has counted, unless that still carries frames.
    fn settle_counters(&mut self) {
        if !self.pairs.are_carried() {
            self.flows = self.meter.kernel_ends();
        }
    }

    fn obey(&mut self, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let (memory, queue) = (rings.ram().memory(), self.control_queue());
        for _ in 0..BATCH {
            let Some(mut chain) = rings.take(queue)? else { return Ok(Progress::Idle) };
            let wish = control::read(&mut chain, memory)?;
            let is_done = self.grant(wish, rings)?;
            control::answer(&mut chain, memory, is_done)?;
            rings.give_back(queue, chain.head, control::ANSWER_BYTES)?;
            if matches!(wish, Wish::Pairs(_)) {
                // Each change takes the kernel some milliseconds.
                break;
            }
        }
        Ok(Progress::More)
    }

    /// Does what a command asks for; returns whether that was possible.
    fn grant(&mut self, wish: Wish, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        match wish {
            Wish::Nothing => Ok(true),
            Wish::Unknown => Ok(false),
            Wish::Announced => {
                self.asked_to_announce = false;
                // The driver knows this, so it is not interrupted.
                rings.interrupt.change_config(put_status(self.status()));
                Ok(true)
            }
            Wish::Pairs(pairs) if self.has(VIRTIO_NET_F_MQ) => {
                self.grant_pairs(pairs.into(), rings)
            }
            Wish::Pairs(_) => Ok(false),
        }
    }

    /// Has as many pairs of queues carry the frames as the driver wishes, if there are so many.
    fn grant_pairs(&mut self, pairs: usize, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        if !(1..=self.pairs.count()).contains(&pairs) {
            return Ok(false);
        }
        self.pairs.stop_from(pairs, rings)?;
        self.settle_counters();
        let is_done = self.use_pairs(pairs);
        self.pairs.request_processing(rings);
        Ok(is_done)
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
        let several = (self.pairs.count() > 1).then_some(VIRTIO_NET_F_MQ);
        let features = always.into_iter().chain(standby).chain(several);
        features.fold(0, |features, feature| features | 1 << feature)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; pair::QUEUES * self.pairs.count()];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    /// Returns `struct virtio_net_config` (virtio 1.2, 5.1.4).
    fn config(&self) -> ConfigSpace {
        let mut bytes = self.config.mac().bytes().to_vec();
        for value in [self.status(), self.config.queue_pairs(), self.config.mtu()] {
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
        let mtu = self.port.mtu();
        self.pairs.receive_by(|| Receiver::new(filling, mtu, takes_long));
        if let Err(error) = self.port.set_offloads(self.offloads()) {
            tracing::warn!(tap = self.port.name(), %error, "the guest has to compute checksums itself");
        }
        self.drop_stale_frames();
        self.meter.publish(self.flows);
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        if index == self.control_queue() {
            return if self.has(VIRTIO_NET_F_CTRL_VQ) {
                self.obey(rings)
            } else {
                Ok(Progress::Idle)
            };
        }
        self.carry(index, rings)
    }

    fn offload(&mut self, access: &KernelAccess<'_>) -> bool {
        if let Err(error) = self.pairs.offload(access) {
            tracing::info!(tap = self.port.name(), %error, "frames are carried without vhost-net");
        }
        self.pairs.are_offloaded()
    }

    fn log_writes(&mut self, on: bool) -> Result<(), DeviceError> {
        self.pairs.log_writes(on).map_err(|cause| DeviceError::Network {
            interface: self.port.name().to_owned(),
            cause: io::Error::other(format!("vhost-net logs no writes: {cause}")),
        })
    }

    fn watched(&self) -> Vec<RawFd> {
        let frames = (0..self.pairs.count()).map(|pair| self.port.frames(pair).as_raw_fd());
        frames.chain(self.pairs.signals()).collect()
    }

    fn unwatched(&self) -> Unwatched {
        self.pairs.unwatched()
    }

    fn ready(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.pairs.ready(index, rings)
    }

    fn due(&self) -> Option<Instant> {
        self.announcement.due()
    }

    /// Sends the next frame of an announcement.
    fn on_due(&mut self, rings: &mut Rings<'_>) {
        if self.announcement.take(rings.now()) {
            let frame = announce::frame(self.config.mac());
            if let Err(error) = net::send_bytes(self.port.frames(0), &frame) {
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
        self.pairs.forget();
        self.settle_counters();
    }

    fn reset(&mut self) {
        self.features = None;
        let mtu = self.port.mtu();
        self.pairs.receive_by(|| Receiver::new(Filling::Single, mtu, false));
        self.use_pairs(1);
        self.announcement.end();
        self.asked_to_announce = false;
    }

    fn drain(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.paused_at = Some(rings.now());
        let stopped = self.pairs.stop_from(0, rings);
        self.settle_counters();
        stopped
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        self.port.open_to_traffic()
    }

    fn release(&mut self) {
        self.moved = true;
        self.announcement.end();
        self.port.close_to_traffic();
    }

    /// Returns how many pairs of queues the driver uses, if it could use several. Whether it was
    /// asked to announce the guest need not be saved, as it is asked again.
    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        match self.pairs.count() {
            1 => Ok(Vec::new()),
            _ => {
                // A tap that is gone may still have more, from a driver before.
                let used = self.port.used_pairs().min(self.usable_pairs());
                Ok((used as u16).to_le_bytes().to_vec())
            }
        }
    }

    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        self.moved = true;
        if self.pairs.count() == 1 {
            return expect_no_state(state);
        }
        let Ok(used) = state.try_into().map(u16::from_le_bytes) else {
            return Err(format!("{} bytes of state, not 2", state.len()));
        };
        let used = match self.features {
            Some(_) => usize::from(used),
            // It waits for a reset, which ends the use of others.
            None => 1,
        };
        let possible = self.usable_pairs();
        if !(1..=possible).contains(&used) {
            return Err(format!("{used} pairs of queues in use of {possible}"));
        }
        match self.use_pairs(used) {
            true => Ok(()),
            false => Err(format!("the tap does not use {used} queues")),
        }
    }
}

#[cfg(test)]
mod tests;
