//! Starts defined guests again that have failed, if their definition says so
//! (`restart = "on-failure"`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::autostart::start;
use super::service::Node;
use crate::api::events::Event;
use crate::cli::spec::RestartArg;
use crate::events::Window;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// A guest that fails more often than this within [`WINDOW`] stays off.
const RESTARTS_MAX: u32 = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// Pause before a guest is started again, so that one that fails at once does not take a processor.
/// It doubles after each start that fails, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often guests have failed lately.
#[derive(Debug, Default)]
pub(super) struct Restarts(BTreeMap<GuestName, Window>);

impl Restarts {
    /// Starts the guest again whose failure is `event`, unless its definition does not ask for
    /// that, or it fails again and again.
    pub(super) fn failed(&mut self, node: &Arc<Node>, event: &Event) {
        let failure = Failure { guest: event.guest.clone(), uuid: event.uuid };
        if !failure.is_to_be_repaired(node.state()) {
            return;
        }
        if !self.permit(&failure.guest) {
            let minutes = WINDOW.as_secs() / 60;
            let why = format!("it failed more than {RESTARTS_MAX} times within {minutes} minutes");
            return failure.give_up(node.state(), &why);
        }
        tokio::spawn(failure.start_again(Arc::clone(node)));
    }

    fn permit(&mut self, guest: &GuestName) -> bool {
        self.0.retain(|_, window| !window.is_over(WINDOW));
        self.0.entry(guest.clone()).or_default().count(WINDOW) <= RESTARTS_MAX
    }
}

/// A guest that has failed.
#[derive(Debug)]
struct Failure {
    guest: GuestName,
    uuid: Uuid,
}

impl Failure {
    /// Whether the definition is that of this guest and asks for a restart, and no user has started
    /// or ended the guest since.
    fn is_to_be_repaired(&self, state: &StateDir) -> bool {
        let definition = state.definitions().find(&self.guest).ok().flatten();
        let spec = definition.and_then(|definition| definition.spec.ok());
        let is_wanted = spec.is_some_and(|spec| {
            spec.restart == Some(RestartArg::OnFailure) && spec.uuid == Some(self.uuid)
        });
        let last = state.ended().read(&self.guest);
        is_wanted && last.is_some_and(|last| last.uuid == self.uuid && last.how.is_failure())
    }

    /// Starts the guest, and tries again while it cannot be started: its migration may not be
    /// settled yet, or the host's memory not be free.
    async fn start_again(self, node: Arc<Node>) {
        let guest = &self.guest;
        let (begun, mut pause) = (Instant::now(), PAUSE);
        loop {
            tokio::time::sleep(pause).await;
            if !self.is_to_be_repaired(node.state()) {
                return;
            }
            let Err(error) = start(&node, guest).await else {
                return tracing::warn!(%guest, "started again after it had failed");
            };
            if begun.elapsed() > WINDOW {
                return self.give_up(node.state(), &format!("{error:#}"));
            }
            tracing::warn!(%guest, "not started again yet: {error:#}");
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// Logs that the guest is not started again, and adds that to the record of its failure.
    fn give_up(&self, state: &StateDir, why: &str) {
        let (guest, ended) = (&self.guest, state.ended());
        tracing::error!(%guest, "not started again: {why}");
        let last = ended.read(guest).filter(|last| last.uuid == self.uuid && last.how.is_failure());
        // A user may have started it meanwhile.
        if let Some(last) = last.filter(|_| !state.guest(guest).is_live())
            && let Err(error) =
                ended.add_to_reason(&last, &format!("the node gave up starting it again: {why}"))
        {
            tracing::warn!(%guest, "that is not recorded: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ended::How;
    use crate::state_dir::GuestIdentity;

    /// Defines a guest that is started again.
    fn scene() -> (tempfile::TempDir, StateDir, Failure) {
        let (folder, state) = StateDir::temporary();
        let file = state.root().join("guest.toml");
        let uuid = Uuid::from_u128(5);
        let text = format!("name = \"web\"\nuuid = \"{uuid}\"\nrestart = \"on-failure\"\n");
        std::fs::write(&file, text).unwrap();
        let guest = state.definitions().define(&file, |_| Ok(None)).unwrap();
        (folder, state, Failure { guest, uuid })
    }

    /// Records that the guest has ended.
    fn end(state: &StateDir, Failure { guest, uuid }: &Failure, how: How) {
        let (name, uuid) = (guest.clone(), *uuid);
        let identity = GuestIdentity { name, uuid, pid: 7, started_unix_ms: 1 };
        state.guest(guest).record_end(&identity, how, "ended").unwrap();
    }

    #[test]
    fn only_the_defined_guest_is_started_again_and_only_while_its_failure_is_the_last_word() {
        let (_folder, state, failure) = scene();
        let other = Failure { guest: failure.guest.clone(), uuid: Uuid::from_u128(6) };
        end(&state, &failure, How::Died);
        assert!(failure.is_to_be_repaired(&state));
        assert!(!other.is_to_be_repaired(&state), "another one's name");
        end(&state, &failure, How::Destroyed);
        assert!(!failure.is_to_be_repaired(&state), "a user has ended it");
        end(&state, &failure, How::Crashed);
        state.ended().forget(&failure.guest);
        assert!(!failure.is_to_be_repaired(&state), "it runs again");
    }

    #[test]
    fn the_record_of_a_failure_says_that_the_node_gave_up() {
        let (_folder, state, failure) = scene();
        let reason = || state.ended().read(&failure.guest).unwrap().reason;
        end(&state, &failure, How::Destroyed);
        failure.give_up(&state, "it failed");
        assert_eq!(reason(), "ended", "a user has ended it");
        end(&state, &failure, How::Died);
        let claim = state.guest(&failure.guest).claim().unwrap();
        failure.give_up(&state, "it failed");
        assert_eq!(reason(), "ended", "a user starts it");
        drop(claim);
        failure.give_up(&state, &"x".repeat(1 << 20));
        let reason = reason();
        assert!(reason.starts_with("ended; the node gave up starting it again: x"), "{reason}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_fails_again_and_again_stays_off_for_a_while() {
        let (mut restarts, web, db) =
            (Restarts::default(), "web".parse().unwrap(), "db".parse().unwrap());
        for _ in 0..RESTARTS_MAX {
            assert!(restarts.permit(&web));
        }
        assert!(!restarts.permit(&web) && restarts.permit(&db));
        tokio::time::advance(WINDOW).await;
        assert!(restarts.permit(&web));
    }
}
