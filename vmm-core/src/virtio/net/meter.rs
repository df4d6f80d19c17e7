//! What is counted of a network device: written by its thread, read by whoever wants to know, whom
//! it does not wait for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{NetConfig, NetLink};
use super::mac::MacAddress;

/// Frames in one direction, as the guest sees it, since the device was created on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes of frames that got through.
    pub bytes: u64,
    /// Frames that got through; one that is cut into pieces elsewhere counts as one.
    pub frames: u64,
    /// Frames that did not.
    pub drops: u64,
}

/// How a network device stands; see [`crate::Vm::nets`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetStatus {
    /// The guest's address.
    pub mac: MacAddress,
    /// Most bytes of a packet, as the guest is told.
    pub mtu: u16,
    /// The tap on this host.
    pub tap: String,
    /// The bridge that the tap was put on, if it was made.
    pub bridge: Option<String>,
    /// Frames that the guest received.
    pub received: Flow,
    /// Frames that it sent.
    pub transmitted: Flow,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct NetMeter {
    status: Mutex<NetStatus>,
}

impl NetMeter {
    /// Of a device as described by `config`, on the host's interface `tap`.
    pub(super) fn new(config: &NetConfig, tap: &str) -> Self {
        let bridge = match config.link() {
            NetLink::Tap(_) => None,
            NetLink::Bridge { bridge, .. } => Some(bridge.clone()),
        };
        let (mac, mtu, tap) = (config.mac(), config.mtu(), tap.to_owned());
        let (received, transmitted) = (Flow::default(), Flow::default());
        Self { status: Mutex::new(NetStatus { mac, mtu, tap, bridge, received, transmitted }) }
    }

    /// Replaces the counts; once per batch of frames.
    pub(super) fn publish(&self, received: Flow, transmitted: Flow) {
        let mut status = self.lock();
        (status.received, status.transmitted) = (received, transmitted);
    }

    /// How the device stood after its last batch.
    pub(crate) fn status(&self) -> NetStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, NetStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
