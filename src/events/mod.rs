//! The events of all guests on this host, merged from the streams of their processes.
//!
//! New guests are found by their folders ([`folders`]), each is followed by a task of its own
//! ([`guest`]). A guest that hangs does not delay the others, and a process can report events only
//! for its own guest. The end of a guest is reported once its name is free again. If its process
//! was killed, the file of `ended` says how it ended, if there is one.

mod folders;
mod guest;
mod pauses;
mod window;

use std::collections::BTreeMap;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::folders::NewFolders;
use self::guest::{Followed, Follower, Position};
pub(crate) use self::window::Window;
use crate::api::events::{Event, What};
use crate::clock::unix_ms;
use crate::ended::Ended;
use crate::names::GuestName;
use crate::state_dir::{GuestIdentity, Guests, StateDir};

/// Events that wait for the reader; beyond, they stay with the guests' processes.
const QUEUE_MAX: usize = 256;

/// Sends the events of the guests of `state`, or of `only`, from now on, until the receiver is
/// dropped. An error is the last item: this user may not access a guest, or the guests cannot be
/// listed at all.
pub(crate) fn follow(state: &StateDir, only: Option<&GuestName>) -> mpsc::Receiver<Result<Event>> {
    let (event_sender, heard) = mpsc::channel(QUEUE_MAX);
    let host = Host { state: state.clone(), only: only.cloned(), event_sender };
    tokio::spawn(async move {
        tokio::select! {
            Err(error) = host.follow() => drop(host.event_sender.send(Err(error)).await),
            () = host.event_sender.closed() => {}
        }
    });
    heard
}

/// Follows the guests of this host.
#[derive(Debug)]
struct Host {
    state: StateDir,
    only: Option<GuestName>,
    event_sender: mpsc::Sender<Result<Event>>,
}

impl Host {
    /// Follows the guests that exist and those that start later.
    async fn follow(&self) -> Result<()> {
        let mut folders = NewFolders::of(&self.state.guests());
        let (mut followers, mut followed) = (JoinSet::new(), BTreeMap::new());
        let mut guests = self.state.settle_guests()?;
        let (mut position, mut lost) = (Position::Now, Vec::new());
        loop {
            lost.extend(guests.lost);
            lost = self.report_lost(lost, |name| followed.contains_key(name)).await;
            for guest in guests.live.into_iter().filter(|guest| self.is_meant(guest.name())) {
                followed.entry(guest.name().clone()).or_insert_with(|| {
                    let follower =
                        Follower::new(self.state.clone(), guest, self.event_sender.clone());
                    followers.spawn(follower.follow(position)).id()
                });
            }
            position = Position::Begin;
            tokio::select! {
                () = folders.wait() => {}
                Some(ended) = followers.join_next() => match ended {
                    Ok(end) => {
                        let Followed { name, reported, lost: found } = end?;
                        followed.remove(&name);
                        lost.extend(found);
                        lost.retain(|(process, _)| Some(process) != reported.as_ref());
                    }
                    Err(error) => {
                        tracing::error!(%error, "following a guest failed by a bug in lighter; report it; it is followed again");
                        followed.retain(|_, follower| *follower != error.id());
                    }
                },
            }
            guests = self.state.settle_guests().unwrap_or_else(|error| {
                tracing::warn!("guests are not followed for a moment: {error:#}");
                Guests::default()
            });
        }
    }

    /// Reports those of the guests `lost` that died before they could be followed. Returns those
    /// whose name still has a follower, which may be the one of an earlier process: once it is
    /// done, it says which end it has reported.
    async fn report_lost(
        &self,
        lost: Vec<(GuestIdentity, Ended)>,
        is_followed: impl Fn(&GuestName) -> bool,
    ) -> Vec<(GuestIdentity, Ended)> {
        let (waiting, over): (Vec<_>, Vec<_>) =
            lost.into_iter().partition(|(_, ended)| is_followed(&ended.name));
        for (process, ended) in over {
            if self.is_meant(&ended.name) {
                let event = Event {
                    time_unix_ms: unix_ms(),
                    guest: ended.name,
                    uuid: ended.uuid,
                    pid: process.pid,
                    number: 0,
                    what: What::Stopped { reason: ended.reason, failed: true },
                };
                // If the receiver is gone, this task is about to end.
                let _unheard = self.event_sender.send(Ok(event)).await;
            }
        }
        waiting
    }

    fn is_meant(&self, guest: &GuestName) -> bool {
        self.only.as_ref().is_none_or(|only| only == guest)
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::{Query, State};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use axum::{Json, Router};
    use futures_util::stream;

    use std::time::Duration;

    use tokio::time::{Instant, timeout};
    use uuid::Uuid;

    use super::guest::{EVENTS_PER_SECOND_MAX, Pace};
    use super::*;
    use crate::api::events::{EVENTS, EVENTS_FROM, EventsRead};
    use crate::api::route;
    use crate::api::server::{Audience, Server};
    use crate::api::types::GuestInfo;
    use crate::ended::How;
    use crate::state_dir::GuestClaim;

    const NAME: &str = "web";
    const UUID: Uuid = Uuid::from_u128(5);

    /// The events that a process sends; it ends each answer after one event.
    type Script = Vec<What>;

    async fn serve_events(
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
                .route(EVENTS, get(serve_events))
                .with_state((pid, script));
            let server = Server::start(&claim.dir().socket(), router, Audience::Owner).unwrap();
            Self { claim, server }
        }

        async fn end(self) {
            self.server.close().await;
            drop(self.claim);
        }
    }

    /// Prepares what a process leaves that is killed at once; the function puts all of it in place
    /// at once.
    fn prepare_dead(state: &StateDir) -> impl FnOnce() {
        let guest = state.guest(&NAME.parse().unwrap());
        let identity =
            GuestIdentity { name: guest.name().clone(), uuid: UUID, pid: 9, started_unix_ms: 9 };
        let made = state.root().join("made");
        std::fs::create_dir(&made).unwrap();
        let text = serde_json::to_vec(&identity).unwrap();
        for (file, text) in [("lock", &b""[..]), ("guest.json", &text), ("here", b"this boot")] {
            std::fs::write(made.join(file), text).unwrap();
        }
        move || std::fs::rename(&made, guest.path()).unwrap()
    }

    async fn heard(events: &mut mpsc::Receiver<Result<Event>>) -> What {
        let event = timeout(Duration::from_secs(20), events.recv()).await.expect("an event");
        let event = event.expect("more events").unwrap();
        assert_eq!(event.guest.as_str(), NAME, "a process tells of its own guest alone");
        event.what
    }

    fn stopped(reason: &str) -> What {
        let failed = reason.contains("died") || reason.contains("lost");
        What::Stopped { reason: reason.to_owned(), failed }
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
        assert_eq!(heard(&mut events).await, stopped("died unexpectedly"));
    }

    #[tokio::test]
    async fn following_a_live_guest_reports_only_new_events() {
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
            console_bytes: 0,
        };
        state.prepare_guest(&ended.name, UUID).unwrap();
        state.ended().write(&ended).unwrap();
        process.end().await;
        assert_eq!(heard(&mut events).await, stopped("powered off"), "as its file says");
    }

    #[tokio::test]
    async fn a_guest_that_dies_before_it_is_followed_is_reported() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, None);
        timeout(Duration::from_millis(200), events.recv()).await.expect_err("nothing is new");
        prepare_dead(&state)();
        assert_eq!(heard(&mut events).await, stopped("was lost when the host went down"));
    }

    #[tokio::test]
    async fn a_guest_that_dies_while_its_predecessor_is_followed_is_reported() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, None);
        tokio::task::yield_now().await;
        let first = Process::start(&state, 7, vec![What::Started]);
        assert_eq!(heard(&mut events).await, What::Started);
        let next_dies = prepare_dead(&state);
        first.server.close().await;
        drop(first.claim);
        next_dies();
        assert_eq!(heard(&mut events).await, stopped("died unexpectedly"));
        assert_eq!(heard(&mut events).await, stopped("was lost when the host went down"));
    }

    #[tokio::test]
    async fn a_guest_that_never_started_is_not_reported() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, None);
        tokio::task::yield_now().await;
        let failed = Process::start(&state, 7, Vec::new());
        timeout(Duration::from_millis(200), events.recv()).await.expect_err("nothing has begun");
        failed.end().await;
        let next = Process::start(&state, 8, vec![What::Started]);
        assert_eq!(heard(&mut events).await, What::Started);
        next.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_a_busy_guest_are_rate_limited() {
        let (begun, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..3 * EVENTS_PER_SECOND_MAX {
            pace.keep().await;
        }
        let expected = Duration::from_secs(2)..Duration::from_secs(3);
        assert!(expected.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn events_of_other_guests_are_not_reported() {
        let (_folder, state) = StateDir::temporary();
        let mut events = follow(&state, Some(&"db".parse().unwrap()));
        let process = Process::start(&state, 7, vec![What::Started]);
        timeout(Duration::from_millis(300), events.recv()).await.expect_err("another guest");
        process.end().await;
    }
}
