//! Whether the destination still receives what is sent, as far as rounds need to know.
//!
//! The last pages of a guest may fit the transport's queue: they count as sent although nothing
//! leaves this host any more. A source that commits then leaves the guest paused until the hosts
//! reach each other. So a round in which anything is sent, and the last one in any case, is over
//! only when the destination has acknowledged something since it began, or shortly before: on each
//! connection that carries pages of it, and in the end on the control stream's. The same holds for
//! the ends of all streams, which may come long after the last round.

use std::time::Duration;

use quinn::Connection;
use tokio::time::{Instant, sleep};

use super::stream_sender::StreamSendError;
use crate::quic::last_acknowledged;

/// How long before a round an acknowledgement may have come. If what is left of the round before is
/// acknowledged in this time, nothing is waited for.
pub(super) const FRESH: Duration = Duration::from_millis(100);
/// The same in round trips, over a long path: one for what was sent last, one to spare.
const FRESH_ROUND_TRIPS: u32 = 2;
/// Most of them: a queue on the path may hold packets for seconds.
const FRESH_MAX: Duration = Duration::from_secs(1);
/// Interval between samples.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(1);

/// Waits until enough of these connections have acknowledged something since `began`, or shortly
/// before. Returns how long that took.
pub(super) async fn acknowledged(
    connections: &[Connection],
    is_enough: impl Fn(&[bool]) -> bool,
    began: Instant,
) -> Result<Duration, StreamSendError> {
    let asked = Instant::now();
    loop {
        let alive: Vec<_> = connections.iter().map(|it| is_alive(it, began)).collect();
        if is_enough(&alive) {
            return Ok(asked.elapsed());
        }
        if connections.iter().all(|connection| connection.close_reason().is_some()) {
            return Err(StreamSendError::Stream("the connection is lost".to_owned()));
        }
        sleep(SAMPLE_INTERVAL).await;
    }
}

fn is_alive(connection: &Connection, since: Instant) -> bool {
    let round_trips = connection.rtt().saturating_mul(FRESH_ROUND_TRIPS);
    let fresh = round_trips.clamp(FRESH, FRESH_MAX);
    connection.close_reason().is_none()
        && last_acknowledged(connection).is_some_and(|at| at + fresh >= since.into_std())
}
