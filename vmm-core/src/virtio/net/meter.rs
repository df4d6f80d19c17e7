//! Counters of a network device: its thread writes them, other threads read them. While the kernel
//! carries the frames, a reader asks it for its counters.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{NetConfig, NetLink};
use super::counters::Flows;
use super::mac::MacAddress;

/// Frames in one direction from the guest's point of view, since the device was created on this
/// host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes of the frames that were delivered.
    pub bytes: u64,
    /// Frames that were delivered; a frame that is segmented elsewhere counts as one.
    pub frames: u64,
    /// Frames that were dropped.
    pub drops: u64,
}

/// Status of a network device; see [`crate::Vm::nets`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetStatus {
    /// The guest's MAC address.
    pub mac: MacAddress,
    /// The MTU that the guest is told, in bytes.
    pub mtu: u16,
    /// Name of the tap on this host.
    pub tap: String,
    /// The bridge to which the tap was added, if this program created the tap.
    pub bridge: Option<String>,
    /// Whether it is one half of a failover pair.
    pub standby: bool,
    /// Pairs of queues that the guest may use.
    pub queue_pairs: u16,
    /// Whether the host's kernel carries frames of it (vhost-net).
    pub vhost: bool,
    /// Frames that the guest received.
    pub received: Flow,
    /// Frames that the guest sent.
    pub transmitted: Flow,
}

/// The counters of a network device; see the module.
#[derive(Debug)]
pub(crate) struct NetMeter {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `received` and `transmitted` are without what the kernel carries now.
    status: NetStatus,
    /// The tap's counters when the kernel began to carry frames, if they could be read then.
    began: Option<Flows>,
    /// What the kernel has carried since, when it was last asked.
    carried: Flows,
}

impl State {
    /// Returns what was carried since the device was created. A tap that has another name by now
    /// counts no further.
    fn flows(&mut self) -> Flows {
        if let Some(began) = &self.began
            && let Some(now) = Flows::of(&self.status.tap)
        {
            self.carried = now.since(began);
        }
        let own = Flows { received: self.status.received, transmitted: self.status.transmitted };
        own.plus(&self.carried)
    }
}

impl NetMeter {
    /// Creates the counters of a device with `config` on the host's interface `tap`.
    pub(super) fn new(config: &NetConfig, tap: &str) -> Self {
        let bridge = match config.link() {
            NetLink::Tap(_) => None,
            NetLink::Bridge { bridge, .. } => Some(bridge.clone()),
        };
        let (mac, mtu, tap) = (config.mac(), config.mtu(), tap.to_owned());
        let (received, transmitted) = (Flow::default(), Flow::default());
        let (standby, queue_pairs, vhost) = (config.is_standby(), config.queue_pairs(), false);
        let status =
            NetStatus { mac, mtu, tap, bridge, standby, queue_pairs, vhost, received, transmitted };
        let state = State { status, began: None, carried: Flows::default() };
        Self { state: Mutex::new(state) }
    }

    /// Replaces the counters; called once per batch of frames. While the kernel carries frames of
    /// the device, its counters have all of them.
    pub(super) fn publish(&self, flows: Flows) {
        let status = &mut self.lock().status;
        if !status.vhost {
            (status.received, status.transmitted) = (flows.received, flows.transmitted);
        }
    }

    /// Notes that the kernel carries frames from now on, if it did not before.
    pub(super) fn kernel_begins(&self) {
        let mut state = self.lock();
        if !state.status.vhost {
            state.began = Flows::of(&state.status.tap);
            state.status.vhost = true;
        }
    }

    /// Notes that the kernel no longer carries frames; returns all that was carried until now.
    pub(super) fn kernel_ends(&self) -> Flows {
        let mut state = self.lock();
        let flows = state.flows();
        (state.status.received, state.status.transmitted) = (flows.received, flows.transmitted);
        (state.began, state.carried) = (None, Flows::default());
        state.status.vhost = false;
        flows
    }

    /// Returns the status after the device's last batch.
    pub(crate) fn status(&self) -> NetStatus {
        let mut state = self.lock();
        let Flows { received, transmitted } = state.flows();
        NetStatus { received, transmitted, ..state.status.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
