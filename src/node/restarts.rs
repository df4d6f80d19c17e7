//! Starts defined guests again that have failed, if their definition says so
//! (`restart = "on-failure"`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::autostart::start;
use super::service::Node;
use crate::cli::spec::RestartArg;
use crate::events::Window;
use crate::names::GuestName;

/// A guest that fails more often than this within [`WINDOW`] stays off.
const RESTARTS_MAX: u32 = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// Pause before a guest is started again, so that one that fails at once does not take a processor.
const PAUSE: Duration = Duration::from_secs(1);

/// How often guests have failed lately.
#[derive(Debug, Default)]
pub(super) struct Restarts(BTreeMap<GuestName, Window>);

impl Restarts {
    /// Starts the guest again that has just failed, unless its definition does not ask for that, or
    /// it fails again and again.
    pub(super) fn failed(&mut self, node: &Arc<Node>, guest: &GuestName) {
        if !is_wanted(node, guest) {
            return;
        }
        if !self.permit(guest) {
            tracing::error!(
                %guest,
                "it has failed more than {RESTARTS_MAX} times within {} minutes, and is not started again",
                WINDOW.as_secs() / 60
            );
            return;
        }
        tokio::spawn(start_again(Arc::clone(node), guest.clone()));
    }

    fn permit(&mut self, guest: &GuestName) -> bool {
        self.0.retain(|_, window| !window.is_over(WINDOW));
        self.0.entry(guest.clone()).or_default().count(WINDOW) <= RESTARTS_MAX
    }
}

fn is_wanted(node: &Node, guest: &GuestName) -> bool {
    let definition = node.state().definitions().find(guest).ok().flatten();
    let spec = definition.and_then(|definition| definition.spec.ok());
    spec.is_some_and(|spec| spec.restart == Some(RestartArg::OnFailure))
}

async fn start_again(node: Arc<Node>, guest: GuestName) {
    tokio::time::sleep(PAUSE).await;
    if node.state().guest(&guest).is_live() {
        return;
    }
    match start(&node, &guest).await {
        Ok(()) => tracing::warn!(%guest, "started again after it had failed"),
        Err(error) => tracing::error!(%guest, "not started again: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
