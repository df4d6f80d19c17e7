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
    let limit = IDLE_TIMEOUT + LOOK_EVERY;
    unchanged(limit, || connection.stats().udp_rx.datagrams).await;
    LinkError::Lost { peer: connection.remote_address().to_string(), seconds: limit.as_secs() }
}

/// Waits until `count` has been the same for `limit`.
async fn unchanged(limit: Duration, count: impl Fn() -> u64) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut silent) = (count(), Duration::ZERO);
    looks.tick().await;
    while silent < limit {
        looks.tick().await;
        let now = count();
        silent = if now == seen { silent + LOOK_EVERY } else { Duration::ZERO };
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::quic::pair::Pair;

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_in_time_and_any_sign_of_life_starts_it_anew() {
        let limit = 8 * LOOK_EVERY;
        let (began, last) = (Instant::now(), 20 * LOOK_EVERY);
        let heard = || began.elapsed().min(last).as_secs() / 7;
        assert!(timeout(last, unchanged(limit, heard)).await.is_err());
        unchanged(limit, heard).await;
        assert!(began.elapsed() >= last && began.elapsed() <= last + limit + LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_this_process_stood_still_is_no_silence() {
        let looks = Cell::new(0);
        let standing_still = || {
            looks.set(looks.get() + 1);
            0
        };
        let told = unchanged(8 * LOOK_EVERY, standing_still);
        tokio::pin!(told);
        assert!(timeout(LOOK_EVERY, &mut told).await.is_err());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(timeout(5 * LOOK_EVERY, &mut told).await.is_err(), "{}", looks.get());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_gives_signs_of_life_is_never_silent() {
        let pair = Pair::new().await;
        let told = tokio::time::timeout(2 * IDLE_TIMEOUT, silence(&pair.near)).await;
        assert!(told.is_err(), "{told:?}");
    }
}
