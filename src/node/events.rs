//! The events of the host's guests, for the node's log and for clients that follow them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};

use super::restarts::Restarts;
use super::service::Node;
use crate::api::events::{Event, What};
use crate::events::{self, Window};
use crate::names::GuestName;
use crate::state_dir::LOST_WITH_HOST;
use crate::table::printable;

/// Events kept for slow clients. A client misses older ones, which shows in their numbers.
const KEPT_MAX: usize = 1024;

/// Longest text of an event in the log, characters.
const LOGGED_MAX: usize = 1000;

/// Events of a guest that are logged in a minute; further ones are logged at level debug.
const LOGGED_PER_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// Pause before the guests are followed again after an error.
const PAUSE: Duration = Duration::from_secs(5);

/// The events of all guests, for clients that follow them.
#[derive(Debug)]
pub(crate) struct HostEvents(Mutex<Option<Sender<Event>>>);

impl Default for HostEvents {
    fn default() -> Self {
        Self(Mutex::new(Some(Sender::new(KEPT_MAX))))
    }
}

impl HostEvents {
    /// Returns the events from now on, until the node ends.
    pub(crate) fn follow(&self) -> impl Stream<Item = Event> + use<> {
        let receiver = self.sender().as_ref().map(Sender::subscribe);
        unfold(receiver, async |receiver| {
            let mut receiver = receiver?;
            Some((next(&mut receiver).await?, Some(receiver)))
        })
    }

    /// Ends the streams of all clients.
    pub(crate) fn close(&self) {
        *self.sender() = None;
    }

    fn publish(&self, event: Event) {
        if let Some(sender) = &*self.sender() {
            // It is fine if no client follows.
            let _unheard = sender.send(event);
        }
    }

    fn sender(&self) -> MutexGuard<'_, Option<Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(receiver: &mut Receiver<Event>) -> Option<Event> {
    loop {
        match receiver.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Counts and logs the guests that were lost while no node followed them.
///
/// # Errors
/// If the guests cannot be listed.
pub(crate) fn count_lost_guests(node: &Node) -> Result<()> {
    for (_, lost) in node.state().settle_guests()?.lost {
        node.counted().guests_failed.inc(&());
        let when = if lost.reason == LOST_WITH_HOST { "" } else { " while no node ran" };
        tracing::warn!(guest = %lost.name, "{} {}{when}", lost.name, lost.reason);
    }
    Ok(())
}

/// Follows the host's guests for as long as the node serves.
pub(crate) async fn follow_guests(node: Arc<Node>) {
    let (mut log, mut restarts) = (Log::default(), Restarts::default());
    loop {
        let mut heard = events::follow(node.state(), None);
        while let Some(event) = heard.recv().await {
            match event {
                Ok(event) => {
                    log.write(&event);
                    if matches!(event.what, What::Stopped { failed: true, .. }) {
                        node.counted().guests_failed.inc(&());
                        restarts.failed(&node, &event);
                    }
                    node.events().publish(event);
                }
                Err(error) => tracing::warn!("cannot follow what happens to guests: {error:#}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The events in the node's log: so many of each guest that one in a reset loop does not crowd out
/// what else is logged.
#[derive(Debug, Default)]
struct Log(BTreeMap<GuestName, Window>);

impl Log {
    /// Logs an event. Its text is cut to `LOGGED_MAX` and stripped of control characters, because
    /// the guest may have taken over its process by now.
    fn write(&mut self, event: &Event) {
        let guest = &event.guest;
        let text: String = printable(&event.what.to_string()).chars().take(LOGGED_MAX).collect();
        let is_one_too_many = self.count(guest);
        match event.what {
            What::InDoubt { .. }
            | What::WaitsForMemory { .. }
            | What::Stopped { failed: true, .. } => {
                tracing::warn!(%guest, "{text}");
            }
            What::MigrationPhase { .. } => tracing::debug!(%guest, "{text}"),
            _ if is_one_too_many => tracing::debug!(%guest, "{text}"),
            _ => tracing::info!(%guest, "{text}"),
        }
    }

    /// Counts an event of `guest`; returns whether it is beyond what is logged in a minute.
    fn count(&mut self, guest: &GuestName) -> bool {
        // Also of guests that have stopped: one may start and stop again and again.
        self.0.retain(|_, logged| !logged.is_over(MINUTE));
        let events = self.0.entry(guest.clone()).or_default().count(MINUTE);
        if events == LOGGED_PER_MINUTE + 1 {
            tracing::warn!(%guest, "too many events: the next ones are logged at level debug");
        }
        events > LOGGED_PER_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_in_a_reset_loop_is_logged_at_a_limited_rate_and_others_are_not_limited() {
        let (mut log, web, db) = (Log::default(), "web".parse().unwrap(), "db".parse().unwrap());
        let mut beyond = |guest: &GuestName, count| (0..count).filter(|_| log.count(guest)).count();
        assert_eq!(beyond(&web, LOGGED_PER_MINUTE), 0);
        assert_eq!((beyond(&web, 7), beyond(&db, 1)), (7, 0));
        tokio::time::advance(MINUTE).await;
        assert_eq!(beyond(&web, 1), 0);
    }

    #[tokio::test]
    async fn followers_receive_each_event_until_the_node_ends() {
        use futures_util::StreamExt;

        let events = HostEvents::default();
        let mut followed = std::pin::pin!(events.follow());
        let guest: GuestName = "web".parse().unwrap();
        let event = Event {
            time_unix_ms: 7,
            guest,
            uuid: uuid::Uuid::nil(),
            pid: 1,
            number: 0,
            what: What::Started,
        };
        events.publish(event.clone());
        events.close();
        events.publish(event.clone());
        assert_eq!(followed.next().await, Some(event));
        assert_eq!(followed.next().await, None);
        assert_eq!(std::pin::pin!(events.follow()).next().await, None);
    }
}
