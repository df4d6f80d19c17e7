//! CUBIC congestion control, without pacing where pacing only costs.
//!
//! CUBIC keeps a migration fair on shared links. On a LAN without loss, though, its window soon
//! exceeds the bytes in flight that the send window allows. Only quinn's pacer is then left of it,
//! which wakes the connection for each burst and halves throughput on loopback. In that case the
//! window is reported as unlimited, which tells quinn not to pace (`quinn-proto`,
//! `connection/pacing.rs`); the send window still bounds the bytes in flight. The first loss
//! shrinks CUBIC's window and restores pacing.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Paths slower than this are always paced.
const RTT_MAX: Duration = Duration::from_millis(2);
/// The smallest window at which quinn does not pace.
const UNPACED: u64 = u32::MAX as u64 + 1;

/// Builds [`FastPath`] controllers.
#[derive(Debug)]
pub(super) struct FastPathCubic {
    cubic: Arc<CubicConfig>,
    free: u64,
}

impl FastPathCubic {
    /// Creates a factory for connections that never have more than `send_window` bytes in flight.
    pub(super) fn new(send_window: u64) -> Self {
        // From here on CUBIC does not limit: slow start would next double its window past the send
        // window.
        Self { cubic: Arc::default(), free: send_window / 2 }
    }

    /// Sets the bytes that may be in flight before anything is acknowledged.
    pub(super) fn starting_at(self, initial_window: u64) -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(initial_window);
        Self { cubic: Arc::new(cubic), ..self }
    }
}

impl ControllerFactory for FastPathCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(self.cubic.clone(), now, current_mtu);
        Box::new(FastPath { cubic, rtt: Duration::MAX, free: self.free })
    }
}

#[derive(Debug, Clone)]
struct FastPath {
    cubic: Cubic,
    rtt: Duration,
    /// The window of CUBIC from which it no longer limits.
    free: u64,
}

impl Controller for FastPath {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.rtt = rtt.min();
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let window = self.cubic.window();
        if self.rtt < RTT_MAX && window >= self.free { UNPACED } else { window }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
