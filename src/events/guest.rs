//! The events of one guest, from the stream of its process.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::pauses::{PAUSE_MAX, Pauses};
use super::window::Window;
use crate::api::client::{Lines, guest_info};
use crate::api::events::{Event, What};
use crate::api::types::GuestInfo;
use crate::api::{ApiClient, AskError};
use crate::clock::unix_ms;
use crate::ended::Ended;
use crate::names::GuestName;
use crate::state_dir::{Access, GuestDir, GuestIdentity, Settled, StateDir};

/// Events per guest that are passed on in one second. The guest's process keeps some more.
pub(super) const EVENTS_PER_SECOND_MAX: u32 = 50;

const SECOND: Duration = Duration::from_secs(1);

/// How long a guest's process may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take to exit after it has reported its end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How long another process may take to record how a guest ended, while it removes its folder.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// Where a guest's event stream begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Position {
    /// From the start of its process.
    Begin,
    /// From the present.
    Now,
}

/// What a follower has found when its guest's process has exited.
#[derive(Debug)]
pub(super) struct Followed {
    /// The guest's name.
    pub(super) name: GuestName,
    /// The process whose end was reported, if one was.
    pub(super) reported: Option<GuestIdentity>,
    /// Guests that died with their processes, as recorded by this follower.
    pub(super) lost: Vec<(GuestIdentity, Ended)>,
}

/// Follows one guest.
#[derive(Debug)]
pub(super) struct Follower {
    state: StateDir,
    guest: GuestDir,
    client: ApiClient,
    event_sender: mpsc::Sender<Result<Event>>,
    pauses: Pauses,
    /// Whether the process is known to have had its guest.
    has_been_here: bool,
    /// Guests whose death this follower has recorded: its own, or a later one of that name.
    lost: Vec<(GuestIdentity, Ended)>,
}

impl Follower {
    /// A follower of `guest`, which sends its events to `event_sender`.
    pub(super) fn new(
        state: StateDir,
        guest: GuestDir,
        event_sender: mpsc::Sender<Result<Event>>,
    ) -> Self {
        let client = ApiClient::new(&guest.client_socket()).with_patience(PATIENCE);
        Self {
            state,
            guest,
            client,
            event_sender,
            pauses: Pauses::default(),
            has_been_here: false,
            lost: Vec::new(),
        }
    }

    /// Follows the guest until its process has exited.
    ///
    /// # Errors
    /// If the guest belongs to another user, whom this one may not ask.
    pub(super) async fn follow(mut self, position: Position) -> Result<Followed> {
        let name = self.guest.name().clone();
        let Some(life) = self.find_life().await? else {
            return Ok(Followed { name, reported: None, lost: self.lost });
        };
        self.has_been_here = self.guest.is_marked_here();
        let mut next = match position {
            Position::Begin => Some(0),
            Position::Now => None,
        };
        let stopped = self.follow_life(&life, &mut next).await;
        // If the process does not exit, its guest counts as ended for followers all the same.
        let is_gone = timeout(END_PATIENCE, self.wait_until_gone(&life)).await.is_ok();
        // A process without any event has failed to start its guest.
        let has_begun = next != Some(0);
        let is_reported = stopped.is_some() || has_begun;
        if is_reported {
            let end = match stopped {
                Some(end) => end,
                None => self.end_of(&life, next).await,
            };
            self.send_event(end).await;
        }
        if !is_gone {
            self.wait_until_gone(&life).await;
        }
        Ok(Followed { name, reported: is_reported.then_some(life), lost: self.lost })
    }

    /// Waits until the guest's process says which one it is; `None` if it has exited before.
    async fn find_life(&mut self) -> Result<Option<GuestIdentity>> {
        while self.guest.is_live() {
            // Its file is written before it serves anything, and is readable for its user alone.
            if let Ok(identity) = self.guest.read_identity() {
                return Ok(Some(identity));
            }
            match guest_info(self.guest.name(), &self.client).await {
                Ok(Some(GuestInfo { name, uuid, pid, started_unix_ms, .. })) => {
                    return Ok(Some(GuestIdentity { name, uuid, pid, started_unix_ms }));
                }
                Err(error) if self.state.access() == Access::Full => return Err(error),
                Ok(None) | Err(_) => self.pauses.pause().await,
            }
        }
        Ok(None)
    }

    /// Passes on the events of `life` from number `next` on, or from now on, until it has reported
    /// its end, which is returned, or is gone.
    async fn follow_life(&mut self, life: &GuestIdentity, next: &mut Option<u64>) -> Option<Event> {
        let mut pace = Pace::default();
        while self.is_alive(life).await {
            let begun = Instant::now();
            match self.client.follow_events(next.unwrap_or(u64::MAX), life.pid).await {
                Ok((first, events)) => {
                    next.get_or_insert(first);
                    if let ControlFlow::Break(end) =
                        self.pass_on(events, life, next, &mut pace).await
                    {
                        return end;
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

    /// Passes on a stream of events until it ends; breaks with the guest's end, or with nothing if
    /// they come from another process.
    async fn pass_on(
        &mut self,
        mut events: Lines<Event>,
        life: &GuestIdentity,
        next: &mut Option<u64>,
        pace: &mut Pace,
    ) -> ControlFlow<Option<Event>> {
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                // Written by another version of lighter, or by a broken process.
                Err(error @ AskError::Strange { .. }) => {
                    tracing::warn!("an event is skipped: {error}");
                    *next = next.map(|next| next.saturating_add(1));
                    return ControlFlow::Continue(());
                }
                Ok(None) | Err(_) => return ControlFlow::Continue(()),
            };
            if event.pid != life.pid {
                return ControlFlow::Break(None);
            }
            *next = Some(event.number.saturating_add(1));
            pace.keep().await;
            let event = self.checked(event, life);
            self.has_been_here |= event.what == What::Started;
            if matches!(event.what, What::Stopped { .. }) {
                return ControlFlow::Break(Some(event));
            }
            self.send_event(event).await;
        }
    }

    /// The event with what this side knows better than the process: which guest it is.
    fn checked(&self, event: Event, life: &GuestIdentity) -> Event {
        Event { guest: self.guest.name().clone(), uuid: life.uuid, ..event }
    }

    /// Whether the guest's name is still held by `life`, as far as this user can tell.
    async fn is_alive(&self, life: &GuestIdentity) -> bool {
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
    async fn wait_until_gone(&self, life: &GuestIdentity) {
        let mut pauses = Pauses::default();
        while self.is_alive(life).await {
            pauses.pause().await;
        }
    }

    /// Returns how the guest of `life` ended, whose process is gone; records it if no process has.
    async fn record_of(&mut self, life: &GuestIdentity) -> Option<Ended> {
        let (ended, guest, lost) = (self.state.ended(), &self.guest, &mut self.lost);
        let find = || {
            let ended = ended.read(guest.name())?;
            ended.is_of(life.uuid, life.started_unix_ms).then_some(ended)
        };
        let has_access = self.state.access() == Access::Full;
        let recorded = async {
            let mut pauses = Pauses::default();
            while has_access && find().is_none() {
                match guest.settle() {
                    Settled::Live => break,
                    Settled::Lost(process, ended) => lost.push((process, ended)),
                    Settled::Gone => {}
                }
                // Otherwise another process is at it.
                if !guest.path().exists() {
                    break;
                }
                pauses.pause().await;
            }
        };
        let _in_time = timeout(RECORD_PATIENCE, recorded).await;
        find()
    }

    async fn send_event(&self, event: Event) {
        // If the receiver is gone, this task is about to end.
        let _unheard = self.event_sender.send(Ok(event)).await;
    }

    /// Makes the final event of a process that did not report its end.
    async fn end_of(&mut self, life: &GuestIdentity, number: Option<u64>) -> Event {
        let ended = self.record_of(life).await;
        // A process that is killed before it has its guest leaves no record, and no guest has
        // failed.
        let failed = ended.as_ref().map_or(self.has_been_here, |ended| ended.how.is_failure());
        let reason = ended.map_or_else(|| "died unexpectedly".to_owned(), |ended| ended.reason);
        Event {
            time_unix_ms: unix_ms(),
            guest: self.guest.name().clone(),
            uuid: life.uuid,
            pid: life.pid,
            number: number.unwrap_or_default(),
            what: What::Stopped { reason, failed },
        }
    }
}

/// Limits the rate of one guest's events, so that a guest in a reset loop does not crowd out the
/// others.
#[derive(Debug, Default)]
pub(super) struct Pace(Window);

impl Pace {
    /// Counts an event, and waits if this second has had its share.
    pub(super) async fn keep(&mut self) {
        if self.0.count(SECOND) > EVENTS_PER_SECOND_MAX {
            sleep_until(self.0.since() + SECOND).await;
            self.0.count(SECOND);
        }
    }
}
