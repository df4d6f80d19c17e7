//! The events of all guests on this host, merged from the streams of their processes.
//!
//! New guests are found by their folders. A guest that hangs does not delay the others, and a
//! process can report events only for its own guest. The end of a guest is reported once its name
//! is free again. If its process was killed, the file of `ended` says how it ended, if there is
//! one.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::api::ApiClient;
use crate::api::client::guest_info;
use crate::api::events::{Event, What};
use crate::clock::unix_ms;
use crate::names::GuestName;
use crate::state_dir::{GuestDir, StateDir};

/// Events that wait for the reader; beyond, they stay with the guests' processes.
const QUEUE_MAX: usize = 256;

/// Events per guest that are passed on in one second. The guest's process keeps some more.
const EVENTS_PER_SECOND_MAX: u32 = 50;

/// First pause before a retry while a process is starting, which soon has what is missing; each
/// pause is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Pause between two scans for new folders while inotify is not available.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How long a guest's process may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take to exit after it has reported its end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Buffer for inotify events, in bytes: each contains a name.
const WATCHED_BYTES: usize = 4096;

/// Sends the events of the guests of `state`, or of `only`, from now on, until the receiver is
/// dropped. An error is the last item: this user may not access a guest, or the guests cannot be
/// listed.
pub(crate) fn follow(state: &StateDir, only: Option<&GuestName>) -> mpsc::Receiver<Result<Event>> {
    let (told, heard) = mpsc::channel(QUEUE_MAX);
    let host = Host { state: state.clone(), only: only.cloned(), told };
    tokio::spawn(async move {
        tokio::select! {
            Err(error) = host.follow() => drop(host.told.send(Err(error)).await),
            () = host.told.closed() => {}
        }
    });
    heard
}

/// Follows the guests of this host.
#[derive(Debug, Clone)]
struct Host {
    state: StateDir,
    only: Option<GuestName>,
    told: mpsc::Sender<Result<Event>>,
}

impl Host {
    /// Follows the guests that exist and those that start later.
    async fn follow(&self) -> Result<()> {
        let mut folders = NewFolders::of(&self.state.guests());
        let (mut lives, mut followed) = (JoinSet::new(), BTreeSet::new());
        let mut position = Position::Now;
        loop {
            for guest in self.state.live_guests()? {
                let name = guest.name();
                if self.only.as_ref().is_none_or(|only| only == name)
                    && followed.insert(name.clone())
                {
                    lives.spawn(self.clone().follow_life(guest, position));
                }
            }
            position = Position::Begin;
            tokio::select! {
                () = folders.wait() => {}
                Some(ended) = lives.join_next() => {
                    followed.remove(&ended.context("the follower of a guest broke down")??);
                }
            }
        }
    }

    /// Follows a guest until its process has exited; returns the guest's name.
    async fn follow_life(self, guest: GuestDir, position: Position) -> Result<GuestName> {
        let name = guest.name().clone();
        let client = ApiClient::new(&guest.client_socket()).with_patience(PATIENCE);
        let mut next = match position {
            Position::Begin => 0,
            Position::Now => u64::MAX,
        };
        let (mut life, mut stopped): (Option<Life>, _) = (None, None);
        let (mut pauses, mut pace) = (Pauses::default(), Pace::default());
        'life: while stopped.is_none() && guest.is_live() {
            // The stream is opened before the PID is asked for: a process that is about to exit
            // still answers requests that it has accepted.
            let pid = life.as_ref().map_or(0, |life| life.pid);
            let Ok((first, mut events)) = client.follow_events(next, pid).await else {
                // It has not started to serve, hangs, or belongs to another user.
                if life.is_none() {
                    life = self.ask(&name, &client).await?;
                }
                pauses.pause().await;
                continue;
            };
            if life.is_none() {
                life = self.ask(&name, &client).await?;
            }
            let begun = Instant::now();
            next = first;
            while let Ok(Some(event)) = events.next().await {
                let Life { pid, .. } = life.get_or_insert(Life::of(&event));
                if *pid != event.pid {
                    break 'life;
                }
                next = event.number.saturating_add(1);
                let event = Event { guest: name.clone(), ..event };
                pace.keep().await;
                match event.what {
                    What::Stopped { .. } => stopped = Some(event),
                    _ => self.tell(event).await,
                }
            }
            // A process closes event streams after a while, and the client reconnects. A stream
            // that is closed early keeps the pauses growing, so that the client does not reconnect
            // at once.
            if begun.elapsed() > PAUSE_MAX {
                pauses = Pauses::default();
            }
            pauses.pause().await;
        }
        if let Some(life) = life {
            wait_until_gone(&guest, life.pid).await;
            self.tell(stopped.unwrap_or_else(|| self.end_of(&name, &life, next))).await;
        }
        Ok(name)
    }

    /// Asks the process for its identity; `None` if it does not answer.
    async fn ask(&self, name: &GuestName, client: &ApiClient) -> Result<Option<Life>> {
        let info = guest_info(name, client).await?;
        Ok(info.map(|info| Life { uuid: info.uuid, pid: info.pid }))
    }

    async fn tell(&self, event: Event) {
        // If the receiver is gone, this task is about to end.
        let _unheard = self.told.send(Ok(event)).await;
    }

    /// Makes the final event of a process that did not report its end.
    fn end_of(&self, guest: &GuestName, life: &Life, number: u64) -> Event {
        let ended = self.state.ended().read(guest).filter(|ended| ended.uuid == life.uuid);
        let reason =
            ended.map_or_else(|| "process died unexpectedly".to_owned(), |ended| ended.reason);
        Event {
            time_unix_ms: unix_ms(),
            guest: guest.clone(),
            uuid: life.uuid,
            pid: life.pid,
            number,
            what: What::Stopped { reason },
        }
    }
}

/// Identity of a guest's process.
#[derive(Debug)]
struct Life {
    uuid: Uuid,
    pid: u32,
}

impl Life {
    /// Returns the process that sent `event`.
    fn of(event: &Event) -> Self {
        Self { uuid: event.uuid, pid: event.pid }
    }
}

/// Where a guest's event stream begins.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// From the start of its process.
    Begin,
    /// From the present.
    Now,
}

/// Waits until that process no longer holds the guest's name.
async fn wait_until_gone(guest: &GuestDir, pid: u32) {
    let is_its_own = || guest.read_identity().map_or(true, |identity| identity.pid == pid);
    let gone = async {
        while guest.is_live() && is_its_own() {
            sleep(PAUSE_MIN).await;
        }
    };
    // If the process does not exit, its guest counts as ended for followers all the same.
    let _gone = timeout(END_PATIENCE, gone).await;
}

/// Pauses between attempts, each longer than the one before.
#[derive(Debug)]
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pauses {
    /// Returns the next pause.
    fn next(&mut self) -> Duration {
        let longer = PAUSE_MAX.min(2 * self.0);
        std::mem::replace(&mut self.0, longer)
    }

    async fn pause(&mut self) {
        sleep(self.next()).await;
    }
}

/// Limits the rate of one guest's events, so that a guest in a reset loop does not crowd out the
/// others.
#[derive(Debug)]
struct Pace {
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
    async fn keep(&mut self) {
        if self.events == EVENTS_PER_SECOND_MAX {
            sleep_until(self.since + Duration::from_secs(1)).await;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::default();
        }
        self.events += 1;
    }
}

/// Waits for new folders in `parent`, which need not exist yet.
#[derive(Debug)]
struct NewFolders {
    parent: PathBuf,
    watch: Option<EventStream<Vec<u8>>>,
    pauses: Pauses,
}

impl NewFolders {
    fn of(parent: &Path) -> Self {
        let watch = watch(parent).ok();
        Self { parent: parent.to_owned(), watch, pauses: Pauses::default() }
    }

    /// Returns when there may be a new folder, or when one found last time may be ready.
    async fn wait(&mut self) {
        self.watch = self.watch.take().or_else(|| watch(&self.parent).ok());
        let Some(watch) = &mut self.watch else { return sleep(LOOK_PAUSE).await };
        match timeout(self.pauses.next(), watch.next()).await {
            // Listing the folders shows which one is new.
            Ok(Some(Ok(_))) => self.pauses = Pauses::default(),
            // The next call replaces a watch that failed.
            Ok(Some(Err(_)) | None) => self.watch = None,
            Err(_) => {}
        }
    }
}

/// Watches `parent` for new folders, with inotify.
fn watch(parent: &Path) -> io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(parent, WatchMask::CREATE | WatchMask::ONLYDIR)?;
    inotify.into_event_stream(vec![0; WATCHED_BYTES])
}

#[cfg(test)]
mod tests {
    use axum::extract::{Query, State};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use axum::{Json, Router};
    use futures_util::stream;

    use super::*;
    use crate::api::events::{EVENTS, EVENTS_FROM, EventsRead};
    use crate::api::route;
    use crate::api::server::{Audience, Server};
    use crate::api::types::GuestInfo;
    use crate::ended::{Ended, How};
    use crate::state_dir::{GuestClaim, GuestIdentity};

    const NAME: &str = "web";
    const UUID: Uuid = Uuid::from_u128(5);

    /// The events that a process sends; it ends each answer after one event.
    type Script = Vec<What>;

    async fn tell(
        State((pid, script)): State<(u32, Script)>,
        Query(query): Query<EventsRead>,
    ) -> Response {
        let is_meant = [0, pid].contains(&query.pid);
        let from = if is_meant { query.from.min(script.len() as u64) } else { 0 };
        let what = script.get(usize::try_from(from).unwrap()).cloned();
        let guest: GuestName = "another".parse().unwrap();
        let event =
            what.map(|what| Event { time_unix_ms: 7, guest, uuid: UUID, pid, number: from, what });
        ([(EVENTS_FROM, from.to_string())], route::lines(stream::iter(event))).into_response()
    }

    /// A guest's process.
    struct Process {
        claim: GuestClaim,
        server: Server,
    }

    impl Process {
        fn start(state: &StateDir, pid: u32, script: Script) -> Self {
            let name: GuestName = NAME.parse().unwrap();
            let claim = state.guest(&name).claim().unwrap();
            let identity = GuestIdentity { name, uuid: UUID, pid, started_unix_ms: 0 };
            claim.dir().write_identity(&identity).unwrap();
            let info = GuestInfo { pid, uuid: UUID, ..GuestInfo::example(NAME) };
            let router = Router::new()
                .route("/v1/guest", get(async || Json(info)))
                .route(EVENTS, get(tell))
                .with_state((pid, script));
            let server = Server::start(&claim.dir().socket(), router, Audience::Owner).unwrap();
            Self { claim, server }
        }

        async fn end(self) {
            self.server.close().await;
            drop(self.claim);
        }
    }

    async fn heard(events: &mut mpsc::Receiver<Result<Event>>) -> What {
        let event = timeout(Duration::from_secs(20), events.recv()).await.expect("an event");
        let event = event.expect("more events").unwrap();
        assert_eq!(event.guest.as_str(), NAME, "a process tells of its own guest alone");
        event.what
    }

    fn stopped(reason: &str) -> What {
        What::Stopped { reason: reason.to_owned() }
    }

    #[tokio::test]
    async fn a_guest_that_comes_is_followed_from_its_beginning_to_its_end() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, None);
        tokio::task::yield_now().await;
        let script = vec![What::Started, What::Paused, What::Resumed, stopped("powered off")];
        let first = Process::start(&state, 7, script.clone());
        for expected in &script[..3] {
            assert_eq!(heard(&mut events).await, *expected);
        }
        let early = timeout(Duration::from_millis(200), events.recv()).await;
        early.expect_err("its end is told when its name is free");
        first.end().await;
        assert_eq!(heard(&mut events).await, stopped("powered off"));

        let next = Process::start(&state, 8, vec![What::Started]);
        assert_eq!(heard(&mut events).await, What::Started);
        next.end().await;
        assert_eq!(heard(&mut events).await, stopped("process died unexpectedly"));
    }

    #[tokio::test]
    async fn of_a_guest_that_is_there_what_comes_from_now_on_is_told() {
        let (_folder, state) = StateDir::temporary();
        let process = Process::start(&state, 7, vec![What::Started, What::Paused]);
        let mut events = follow(&state, Some(&NAME.parse().unwrap()));
        timeout(Duration::from_millis(200), events.recv()).await.expect_err("nothing is new");
        let ended = Ended {
            name: NAME.parse().unwrap(),
            uuid: UUID,
            began_unix_ms: 0,
            ended_unix_ms: 9,
            how: How::PoweredOff,
            reason: "powered off".to_owned(),
        };
        state.prepare_guest(&ended.name, UUID).unwrap();
        state.ended().write(&ended).unwrap();
        process.end().await;
        assert_eq!(heard(&mut events).await, stopped("powered off"), "as its file says");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_come_to_rest_is_told_of_slowly() {
        let (begun, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..3 * EVENTS_PER_SECOND_MAX {
            pace.keep().await;
        }
        let expected = Duration::from_secs(2)..Duration::from_secs(3);
        assert!(expected.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn other_guests_than_the_one_that_is_meant_are_not_told_of() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, Some(&"db".parse().unwrap()));
        let process = Process::start(&state, 7, vec![What::Started]);
        timeout(Duration::from_millis(300), events.recv()).await.expect_err("another guest");
        process.end().await;
    }
}
