//! The events of one guest, from the stream of its process.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::{fs, io};

use anyhow::Result;
use nix::unistd::geteuid;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use super::pauses::{PAUSE_MAX, Pauses};
use crate::api::client::guest_info;
use crate::api::events::{Event, What};
use crate::api::types::GuestInfo;
use crate::api::{ApiClient, AskError};
use crate::clock::unix_ms;
use crate::names::GuestName;
use crate::state_dir::{Access, GuestDir, StateDir};

/// Events per guest that are passed on in one second. The guest's process keeps some more.
pub(super) const EVENTS_PER_SECOND_MAX: u32 = 50;

/// How long a guest's process may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take to exit after it has reported its end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Where a guest's event stream begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Position {
    /// From the start of its process.
    Begin,
    /// From the present.
    Now,
}

/// Follows one guest.
#[derive(Debug)]
pub(super) struct Follower {
    state: StateDir,
    guest: GuestDir,
    client: ApiClient,
    told: mpsc::Sender<Result<Event>>,
    pauses: Pauses,
}

/// One process of a guest.
#[derive(Debug, Clone, Copy)]
struct Life {
    uuid: Uuid,
    pid: u32,
    started_unix_ms: u64,
}

impl Follower {
    /// A follower of `guest`, which sends its events to `told`.
    pub(super) fn new(state: StateDir, guest: GuestDir, told: mpsc::Sender<Result<Event>>) -> Self {
        let client = ApiClient::new(&guest.client_socket()).with_patience(PATIENCE);
        Self { state, guest, client, told, pauses: Pauses::default() }
    }

    /// Follows the guest until its process has exited; returns the guest's name.
    ///
    /// # Errors
    /// If the guest belongs to another user, whom this one may not ask.
    pub(super) async fn follow(mut self, position: Position) -> Result<GuestName> {
        let name = self.guest.name().clone();
        let Some(life) = self.find_life().await? else { return Ok(name) };
        let mut next = match position {
            Position::Begin => Some(0),
            Position::Now => None,
        };
        let stopped = self.follow_life(life, &mut next).await;
        // If the process does not exit, its guest counts as ended for followers all the same.
        let is_gone = timeout(END_PATIENCE, self.wait_until_gone(life)).await.is_ok();
        self.tell(stopped.unwrap_or_else(|| self.end_of(life, next))).await;
        if !is_gone {
            self.wait_until_gone(life).await;
        }
        Ok(name)
    }

    /// Waits until the guest's process says which one it is; `None` if it has exited before.
    async fn find_life(&mut self) -> Result<Option<Life>> {
        while self.guest.is_live() {
            // Its file is written before it serves anything, and is readable for its user alone.
            if let Ok(identity) = self.guest.read_identity() {
                let (uuid, pid) = (identity.uuid, identity.pid);
                return Ok(Some(Life { uuid, pid, started_unix_ms: identity.started_unix_ms }));
            }
            match guest_info(self.guest.name(), &self.client).await {
                Ok(Some(info)) => {
                    let (uuid, pid) = (info.uuid, info.pid);
                    return Ok(Some(Life { uuid, pid, started_unix_ms: info.started_unix_ms }));
                }
                Err(error) if self.is_of_another_user() => return Err(error),
                // A process can make its own files inaccessible: that is its guest's problem alone.
                Ok(None) | Err(_) => self.pauses.pause().await,
            }
        }
        Ok(None)
    }

    /// Whether this user was to have all rights, and does not own the state folder.
    fn is_of_another_user(&self) -> bool {
        let owner = fs::metadata(self.state.root()).map(|metadata| metadata.uid());
        let is_own = owner.is_ok_and(|uid| uid == geteuid().as_raw());
        self.state.access() == Access::Full && !is_own
    }

    /// Passes on the events of `life` from number `next` on, or from now on, until it has reported
    /// its end, which is returned, or is gone.
    async fn follow_life(&mut self, life: Life, next: &mut Option<u64>) -> Option<Event> {
        let mut pace = Pace::default();
        while self.is_alive(life).await {
            let begun = Instant::now();
            match self.client.follow_events(next.unwrap_or(u64::MAX), life.pid).await {
                Ok((first, mut events)) => {
                    next.get_or_insert(first);
                    loop {
                        match events.next().await {
                            Ok(Some(event)) if event.pid != life.pid => return None,
                            Ok(Some(event)) => {
                                *next = Some(event.number.saturating_add(1));
                                pace.keep().await;
                                let event = self.checked(event, life);
                                match event.what {
                                    What::Stopped { .. } => return Some(event),
                                    _ => self.tell(event).await,
                                }
                            }
                            // Written by another version of lighter, or by a broken process.
                            Err(error @ AskError::Strange { .. }) => {
                                tracing::warn!("an event is skipped: {error}");
                                *next = next.map(|next| next.saturating_add(1));
                                break;
                            }
                            Ok(None) | Err(_) => break,
                        }
                    }
                }
                Err(error) => tracing::debug!("cannot follow a guest: {error}"),
            }
            // A process closes the streams of other users after a while, and the client reconnects.
            // While streams end early the pauses grow, so that it does not do so at once.
            if begun.elapsed() > PAUSE_MAX {
                self.pauses = Pauses::default();
            }
            self.pauses.pause().await;
        }
        None
    }

    /// The event with what this side knows better than the process: which guest it is.
    fn checked(&self, event: Event, life: Life) -> Event {
        Event { guest: self.guest.name().clone(), uuid: life.uuid, ..event }
    }

    /// Whether the guest's name is still held by `life`, as far as this user can tell.
    async fn is_alive(&self, life: Life) -> bool {
        if !self.guest.is_live() {
            return false;
        }
        match self.state.access() {
            Access::Full => match self.guest.read_identity() {
                Ok(identity) => identity.pid == life.pid,
                // The next process has claimed the name, and has not written its file yet.
                Err(error) => error
                    .downcast_ref()
                    .is_none_or(|error: &io::Error| error.kind() != io::ErrorKind::NotFound),
            },
            // The lock of a process that was killed looks held to other users.
            Access::ReadOnly => match self.client.get::<GuestInfo>("/v1/guest").await {
                Ok(info) => info.pid == life.pid,
                Err(error) => !error.is_gone(),
            },
        }
    }

    /// Waits until the process no longer holds the guest's name.
    async fn wait_until_gone(&self, life: Life) {
        let mut pauses = Pauses::default();
        while self.is_alive(life).await {
            pauses.pause().await;
        }
    }

    async fn tell(&self, event: Event) {
        // If the receiver is gone, this task is about to end.
        let _unheard = self.told.send(Ok(event)).await;
    }

    /// Makes the final event of a process that did not report its end.
    fn end_of(&self, life: Life, number: Option<u64>) -> Event {
        let ended = self.state.ended().read(self.guest.name());
        let ended = ended
            .filter(|ended| ended.uuid == life.uuid && ended.began_unix_ms == life.started_unix_ms);
        let reason = ended.map_or_else(|| "died unexpectedly".to_owned(), |ended| ended.reason);
        Event {
            time_unix_ms: unix_ms(),
            guest: self.guest.name().clone(),
            uuid: life.uuid,
            pid: life.pid,
            number: number.unwrap_or_default(),
            what: What::Stopped { reason },
        }
    }
}

/// Limits the rate of one guest's events, so that a guest in a reset loop does not crowd out the
/// others.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    events: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), events: 0 }
    }
}

impl Pace {
    /// Counts an event, and waits if this second has had its share.
    pub(super) async fn keep(&mut self) {
        if self.events == EVENTS_PER_SECOND_MAX {
            sleep_until(self.since + Duration::from_secs(1)).await;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::default();
        }
        self.events += 1;
    }
}
