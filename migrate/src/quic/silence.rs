//! Notices a peer that has fallen silent.
//!
//! QUIC's own idle time-out does not suffice: it never is shorter than three probe time-outs (RFC 9000
//! §10.1), and those follow the round-trip time. A process that was stopped for ten seconds has measured
//! one of ten seconds, and would wait most of a minute for a peer that is gone.

use std::time::Duration;

use quinn::Connection;
use tokio::time::{MissedTickBehavior, interval};

use super::LinkError;
use super::transport::IDLE_TIMEOUT;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until no datagram has come on `connection` for [`IDLE_TIMEOUT`] and a second, and says so. The peer
/// sends a sign of life far more often.
///
/// The time is counted in looks, so that time in which this process did not run is not taken for silence.
pub(crate) async fn silence(connection: &Connection) -> LinkError {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = IDLE_TIMEOUT + LOOK_EVERY;
    let (mut heard, mut silent) = (0, Duration::ZERO);
    while silent < limit {
        looks.tick().await;
        let now_heard = connection.stats().udp_rx.datagrams;
        silent = if now_heard == heard { silent + LOOK_EVERY } else { Duration::ZERO };
        heard = now_heard;
    }
    LinkError::Lost { peer: connection.remote_address().to_string(), seconds: limit.as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::pair::Pair;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_gives_signs_of_life_is_never_silent() {
        let pair = Pair::new().await;
        let told = tokio::time::timeout(2 * IDLE_TIMEOUT, silence(&pair.near)).await;
        assert!(told.is_err(), "{told:?}");
    }
}
