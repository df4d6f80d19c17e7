//! Whether the destination has been heard lately, as far as rounds need to know.
//!
//! The last pages of a guest may fit the transport's queue: they count as sent although nothing
//! leaves this host any more. A source that commits then leaves the guest paused until the hosts
//! reach each other, so a round in which anything is sent, and the last one in any case, is over
//! only when the destination has acknowledged something since it began, or shortly before.

use std::time::Duration;

use quinn::Connection;
use tokio::time::{Instant, sleep};

use super::stream_sender::StreamSendError;

/// How old an acknowledgement may be. If what is left of a round is acknowledged in this time, the
/// next one waits for nothing.
const FRESH: Duration = Duration::from_millis(100);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// What had been heard at some moment, if one is noted.
#[derive(Debug, Default)]
pub(super) struct Hearing(Option<(Instant, u64)>);

impl Hearing {
    /// Notes the moment, unless the one that is noted is still fresh.
    pub(super) fn note(&mut self, connections: &[Connection]) {
        if self.0.is_none_or(|(since, _)| since.elapsed() > FRESH) {
            self.0 = Some((Instant::now(), acknowledgements(connections)));
        }
    }

    /// Waits until the destination has acknowledged something since the moment that is noted.
    pub(super) async fn heard(&self, connections: &[Connection]) -> Result<(), StreamSendError> {
        let before = self.0.map_or(0, |(_, before)| before);
        while acknowledgements(connections) == before {
            if connections.iter().all(|connection| connection.close_reason().is_some()) {
                return Err(StreamSendError::Stream("the connection is lost".to_owned()));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Returns how many frames with acknowledgements have come.
fn acknowledgements(connections: &[Connection]) -> u64 {
    connections.iter().map(|connection| connection.stats().frame_rx.acks).sum()
}
