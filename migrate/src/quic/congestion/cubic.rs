//! The window of CUBIC (RFC 9438), which most TCP traffic uses.
//!
//! quinn's own CUBIC can neither start at a given window nor run without a connection, as tests do.

use std::time::Instant;

use super::round::Ack;

/// Factor by which a loss shrinks the window (RFC 9438 §4.6).
pub(super) const BETA: f64 = 0.7;
/// Growth, in packets per second cubed (RFC 9438 §5).
const GROWTH: f64 = 0.4;
/// Smallest window, in packets.
const PACKETS_MIN: f64 = 2.0;

/// A congestion window that grows by acknowledgements and shrinks by losses.
#[derive(Debug, Clone)]
pub(super) struct Cubic {
    /// Bytes that may be in flight.
    window: f64,
    /// The last loss; none in slow start.
    loss: Option<Loss>,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    at: Instant,
    /// The window to which the next one returns quickly, in bytes.
    peak: f64,
}

impl Cubic {
    /// Begins with slow start from `window` bytes.
    pub(super) fn slow_start(window: f64) -> Self {
        Self { window, loss: None }
    }

    /// Begins as if a loss had just left a window of `window` bytes.
    pub(super) fn after_loss(window: f64, now: Instant) -> Self {
        Self { window, loss: Some(Loss { at: now, peak: window / BETA }) }
    }

    /// Returns the bytes that may be in flight.
    pub(super) fn window(&self) -> f64 {
        self.window
    }

    /// Grows the window, unless the packet was sent before the last loss.
    pub(super) fn acked(&mut self, ack: &Ack, mtu: f64) {
        let bytes = ack.bytes as f64;
        let Some(loss) = self.loss else {
            self.window += bytes;
            return;
        };
        if ack.sent <= loss.at {
            return;
        }
        let elapsed_s = ack.now.saturating_duration_since(loss.at).as_secs_f64();
        let rtt_s = ack.rtt.as_secs_f64().max(1e-6);
        let peak = loss.peak / mtu;
        // RFC 9438 §4.2 and §4.3, in packets.
        let plateau_s = (peak * (1.0 - BETA) / GROWTH).cbrt();
        let cubic = GROWTH * (elapsed_s + rtt_s - plateau_s).powi(3) + peak;
        let reno = peak * BETA + 3.0 * (1.0 - BETA) / (1.0 + BETA) * elapsed_s / rtt_s;
        let target = (cubic.max(reno) * mtu).max(self.window).min(1.5 * self.window);
        self.window += (target - self.window) * bytes / self.window;
    }

    /// Shrinks the window, unless it has shrunk since the lost packet was sent.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant, mtu: f64) {
        if self.loss.is_some_and(|loss| sent <= loss.at) {
            return;
        }
        // A window that did not reach its old peak makes room for others (RFC 9438 §4.7).
        let peak = match self.loss {
            Some(last) if self.window < last.peak => self.window * (1.0 + BETA) / 2.0,
            _ => self.window,
        };
        self.loss = Some(Loss { at: now, peak });
        self.window = (self.window * BETA).max(PACKETS_MIN * mtu);
    }
}
