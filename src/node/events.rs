//! The events of the host's guests, for the node's log and for clients that follow them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};

use super::service::Node;
use crate::api::events::{Event, What};
use crate::events;
use crate::table::printable;

/// Events kept for slow clients. A client misses older ones, which shows in their numbers.
const KEPT_MAX: usize = 1024;

/// Longest text of an event in the log, characters.
const LOGGED_MAX: usize = 1000;

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
        let told = self.sender().as_ref().map(Sender::subscribe);
        unfold(told, async |told| {
            let mut told = told?;
            Some((next(&mut told).await?, Some(told)))
        })
    }

    /// Ends the streams of all clients.
    pub(crate) fn close(&self) {
        *self.sender() = None;
    }

    fn tell(&self, event: Event) {
        if let Some(sender) = &*self.sender() {
            // It is fine if no client follows.
            let _unheard = sender.send(event);
        }
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, Option<Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(told: &mut Receiver<Event>) -> Option<Event> {
    loop {
        match told.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Follows the host's guests for as long as the node serves.
pub(crate) async fn follow_guests(node: Arc<Node>) {
    loop {
        let mut heard = events::follow(node.state(), None);
        while let Some(event) = heard.recv().await {
            match event {
                Ok(event) => {
                    log(&event);
                    node.events().tell(event);
                }
                Err(error) => tracing::warn!("cannot follow what happens to guests: {error:#}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Logs an event. Its text is cut to `LOGGED_MAX` and stripped of control characters, because the
/// guest may have taken over its process by now.
fn log(event: &Event) {
    let guest = &event.guest;
    let text: String = printable(&event.what.to_string()).chars().take(LOGGED_MAX).collect();
    match event.what {
        What::InDoubt { .. } => tracing::warn!(%guest, "{text}"),
        What::MigrationPhase { .. } => tracing::debug!(%guest, "{text}"),
        _ => tracing::info!(%guest, "{text}"),
    }
}
