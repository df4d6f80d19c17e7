//! What happens to the guests of this host, as their processes tell it: all their streams as one.
//!
//! Guests that come later are found by their folders. One that hangs holds nobody up, and what a
//! process tells is told of its own guest alone. How a guest ended is told when its name is free
//! again; of one that was killed, by the file that it has left or not.

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

/// Events that wait for their reader; beyond, the guests' processes keep them.
const QUEUE_MAX: usize = 256;

/// Events of a guest that are told in one second; a guest's process keeps a few that are not.
const EVENTS_PER_SECOND_MAX: u32 = 50;

/// The first pause before something is tried again that a starting process will have ready soon;
/// each one is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Between looks for new folders while the system does not tell of them.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How long a guest's process may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a process that has told its end may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Room for what the system tells of new folders at once, in bytes: each has a name.
const WATCHED_BYTES: usize = 4096;

/// Tells what happens from now on to the guests of `state`, or to `only`, for as long as it is
/// listened to. An error is the last that is told: this user may not ask a guest, or they cannot be
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

/// The guests of this host, as they are followed.
#[derive(Debug, Clone)]
struct Host {
    state: StateDir,
    only: Option<GuestName>,
    told: mpsc::Sender<Result<Event>>,
}

impl Host {
    /// Follows those that are there and those that come.
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

    /// Follows a guest until its process is gone; returns its name.
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
            // Asked first: what is asked is answered, also by a process that is about to end.
            let pid = life.as_ref().map_or(0, |life| life.pid);
            let Ok((first, mut events)) = client.follow_events(next, pid).await else {
                // It has not begun, hangs, or is another user's.
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
            // Visitors are shown out after a while, and come again. Who is shown out at once does
            // not knock again at once.
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

    /// Which process it is, if it answers.
    async fn ask(&self, name: &GuestName, client: &ApiClient) -> Result<Option<Life>> {
        let info = guest_info(name, client).await?;
        Ok(info.map(|info| Life { uuid: info.uuid, pid: info.pid }))
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: this task is about to end.
        let _unheard = self.told.send(Ok(event)).await;
    }

    /// The end of a process that has not told it.
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

/// A guest's process.
#[derive(Debug)]
struct Life {
    uuid: Uuid,
    pid: u32,
}

impl Life {
    /// The one that tells of this.
    fn of(event: &Event) -> Self {
        Self { uuid: event.uuid, pid: event.pid }
    }
}

/// From where on a guest is followed.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// From the beginning of its process.
    Begin,
    /// From now.
    Now,
}

/// Waits until the guest's name is not that process's any more.
async fn wait_until_gone(guest: &GuestDir, pid: u32) {
    let is_its_own = || guest.read_identity().map_or(true, |identity| identity.pid == pid);
    let gone = async {
        while guest.is_live() && is_its_own() {
            sleep(PAUSE_MIN).await;
        }
    };
    // One that does not end has ended for those who follow it.
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
    /// The next one.
    fn next(&mut self) -> Duration {
        let longer = PAUSE_MAX.min(2 * self.0);
        std::mem::replace(&mut self.0, longer)
    }

    async fn pause(&mut self) {
        sleep(self.next()).await;
    }
}

/// How fast a guest is told of: one that resets again and again drowns no other.
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
    /// Counts an event, and waits where there were enough for this second.
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

/// Waits for new folders in one, which need not exist yet.
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

    /// Returns when there may be a new one, or when what was new the last time may be ready.
    async fn wait(&mut self) {
        self.watch = self.watch.take().or_else(|| watch(&self.parent).ok());
        let Some(watch) = &mut self.watch else { return sleep(LOOK_PAUSE).await };
        match timeout(self.pauses.next(), watch.next()).await {
            // Which it is, is seen when they are listed.
            Ok(Some(Ok(_))) => self.pauses = Pauses::default(),
            // A watch that fails is made again.
            Ok(Some(Err(_)) | None) => self.watch = None,
            Err(_) => {}
        }
    }
}

/// Has the system tell of new folders in `parent`.
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

    /// What a process tells, which ends each answer after one event.
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
