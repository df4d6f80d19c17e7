//! Detects a peer that has fallen silent.
//!
//! QUIC's own idle time-out does not suffice: it is never shorter than three probe time-outs (RFC
//! 9000 §10.1), which grow with the round-trip time. A process that was stopped for ten seconds has
//! measured a round trip of ten seconds, and would wait most of a minute for a dead peer.

use std::time::Duration;

use quinn::Connection;
use tokio::time::{MissedTickBehavior, interval};

use super::LinkError;
use super::transport::{IDLE_TIMEOUT, LINK_KEEP_ALIVE, NOTICED_WITHIN};

/// Time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Time after which a link counts as dead, if another one is not silent meanwhile.
const LINK_SILENCE: Duration = Duration::from_secs(3);
const _: () = assert!(
    LINK_SILENCE.as_millis() >= 5 * LINK_KEEP_ALIVE.as_millis(),
    "a link that loses a few packets must not count as dead"
);

/// The limit is one sample interval longer than the time-out, and the last datagram may have come
/// right after a sample.
const _: () = assert!(
    IDLE_TIMEOUT.as_millis() + 2 * SAMPLE_INTERVAL.as_millis() < NOTICED_WITHIN.as_millis(),
    "a dead peer is noticed later than is promised"
);

/// Waits until no datagram has come on `connection` for [`IDLE_TIMEOUT`] and a second; returns the
/// error. A live peer sends keep-alives far more often.
///
/// The time is counted in samples, so that time during which this process did not run does not
/// count as silence.
pub(crate) async fn silence(connection: &Connection) -> LinkError {
    let limit = IDLE_TIMEOUT + SAMPLE_INTERVAL;
    unchanged(limit, || connection.stats().udp_rx.datagrams).await;
    LinkError::Lost { peer: connection.remote_address().to_string(), seconds: limit.as_secs() }
}

/// Waits until no datagram has come on one of `connections` for [`LINK_SILENCE`], while one has
/// just come on another; returns its place and the error.
pub(crate) async fn silent_beside_others(connections: &[Connection]) -> (usize, LinkError) {
    let counts = || connections.iter().map(|it| it.stats().udp_rx.datagrams).collect();
    let place = unchanged_beside_others(LINK_SILENCE, counts).await;
    let peer = connections[place].remote_address().to_string();
    (place, LinkError::Lost { peer, seconds: LINK_SILENCE.as_secs() })
}

/// Waits until one of `counts` has been the same for `limit`, and another has just changed; returns
/// its place.
async fn unchanged_beside_others(limit: Duration, counts: impl Fn() -> Vec<u64>) -> usize {
    let mut ticks = interval(LINK_KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = counts();
    let mut silent = vec![Duration::ZERO; seen.len()];
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = counts();
        for (silent, (now, seen)) in silent.iter_mut().zip(now.iter().zip(&seen)) {
            *silent = if now == seen { *silent + LINK_KEEP_ALIVE } else { Duration::ZERO };
        }
        seen = now;
        let place = silent.iter().position(|silent| *silent >= limit);
        if let Some(place) = place.filter(|_| silent.contains(&Duration::ZERO)) {
            return place;
        }
    }
}

/// Waits until `count` has been the same for `limit`.
async fn unchanged(limit: Duration, count: impl Fn() -> u64) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut silent) = (count(), Duration::ZERO);
    ticks.tick().await;
    while silent < limit {
        ticks.tick().await;
        let now = count();
        silent = if now == seen { silent + SAMPLE_INTERVAL } else { Duration::ZERO };
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use quinn::Endpoint;
    use tokio::runtime;
    use tokio::sync::oneshot;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::quic::endpoint::{Peer, connect, dialer, listen};
    use crate::quic::pair::Pair;
    use crate::quic::{Authority, Tls};

    #[tokio::test(start_paused = true)]
    async fn silence_is_detected_in_time_and_any_traffic_resets_it() {
        let limit = 8 * SAMPLE_INTERVAL;
        let (began, last) = (Instant::now(), 20 * SAMPLE_INTERVAL);
        let heard = || began.elapsed().min(last).as_secs() / 7;
        assert!(timeout(last, unchanged(limit, heard)).await.is_err());
        unchanged(limit, heard).await;
        assert!(began.elapsed() >= last && began.elapsed() <= last + limit + SAMPLE_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn time_while_this_process_was_stopped_is_not_silence() {
        let ticks = Cell::new(0);
        let standing_still = || {
            ticks.set(ticks.get() + 1);
            0
        };
        let outcome = unchanged(8 * SAMPLE_INTERVAL, standing_still);
        tokio::pin!(outcome);
        assert!(timeout(SAMPLE_INTERVAL, &mut outcome).await.is_err());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(timeout(5 * SAMPLE_INTERVAL, &mut outcome).await.is_err(), "{}", ticks.get());
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_given_up_only_if_another_one_is_not_silent() {
        let began = Instant::now();
        let all_silent_until = 60 * LINK_KEEP_ALIVE;
        let counts = || {
            let beats = began.elapsed().saturating_sub(all_silent_until).as_millis() as u64;
            vec![beats, 7, beats]
        };
        let place = unchanged_beside_others(LINK_SILENCE, counts).await;
        assert_eq!(place, 1);
        assert!(began.elapsed() > all_silent_until, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn links_that_are_heard_now_and_then_are_kept() {
        let began = Instant::now();
        let counts = || {
            let beat = began.elapsed().as_secs();
            vec![beat / 2, beat.saturating_sub(1) / 2]
        };
        let outcome = timeout(60 * LINK_SILENCE, unchanged_beside_others(LINK_SILENCE, counts));
        assert!(outcome.await.is_err());
    }

    /// Returns a connection whose far side has fallen silent without closing it: its sockets exist,
    /// but its runtime does not run until the sender is dropped.
    async fn fallen_silent() -> (Endpoint, Connection, mpsc::Sender<()>) {
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listening, heard) = oneshot::channel();
        let (met, has_met) = oneshot::channel::<()>();
        let (stopped, has_stopped) = oneshot::channel::<()>();
        let (over, is_over) = mpsc::channel::<()>();
        let far_tls = tls.clone();
        std::thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _kept = runtime.block_on(async {
                let endpoint = listen(any, &far_tls).unwrap();
                listening.send(endpoint.local_addr().unwrap()).unwrap();
                let far = endpoint.accept().await.unwrap().await.unwrap();
                has_met.await.unwrap();
                (endpoint, far)
            });
            stopped.send(()).unwrap();
            let _ = is_over.recv();
        });
        let peer = Peer { address: heard.await.unwrap(), name: "127.0.0.1".into() };
        let dialer = dialer(peer.address, &tls).unwrap();
        let near = connect(&dialer, &peer).await.unwrap();
        met.send(()).unwrap();
        has_stopped.await.unwrap();
        (dialer, near, over)
    }

    #[tokio::test]
    async fn a_dead_peer_is_noticed_as_soon_as_is_promised() {
        let (_dialer, near, _over) = fallen_silent().await;
        tokio::time::pause();
        let began = Instant::now();
        silence(&near).await;
        let noticed = began.elapsed();
        assert!((IDLE_TIMEOUT..NOTICED_WITHIN).contains(&noticed), "{noticed:?}");
    }

    #[tokio::test]
    async fn quic_itself_notices_a_dead_peer_as_soon_as_is_promised() {
        let (_dialer, near, _over) = fallen_silent().await;
        tokio::time::pause();
        let began = Instant::now();
        let closed = near.closed().await;
        let noticed = began.elapsed();
        assert_eq!(closed, quinn::ConnectionError::TimedOut);
        assert!((IDLE_TIMEOUT..NOTICED_WITHIN).contains(&noticed), "{noticed:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_gives_signs_of_life_is_never_silent() {
        let pair = Pair::new().await;
        let outcome = tokio::time::timeout(2 * IDLE_TIMEOUT, silence(&pair.near)).await;
        assert!(outcome.is_err(), "{outcome:?}");
    }
}
