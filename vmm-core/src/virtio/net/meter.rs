//! Counters of a network device: its thread writes them, other threads read them, and it never
//! waits for a slow reader.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{NetConfig, NetLink};
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
    /// Frames that the guest received.
    pub received: Flow,
    /// Frames that the guest sent.
    pub transmitted: Flow,
}

/// The counters of a network device; see the module.
#[derive(Debug)]
pub(crate) struct NetMeter {
    status: Mutex<NetStatus>,
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
        Self { status: Mutex::new(NetStatus { mac, mtu, tap, bridge, received, transmitted }) }
    }

    /// Replaces the counters; called once per batch of frames.
    pub(super) fn publish(&self, received: Flow, transmitted: Flow) {
        let mut status = self.lock();
        (status.received, status.transmitted) = (received, transmitted);
    }

    /// Returns the status after the device's last batch.
    pub(crate) fn status(&self) -> NetStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, NetStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
