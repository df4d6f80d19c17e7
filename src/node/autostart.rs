//! Starts the guests that are marked for autostart, once per boot of the host.
//!
//! The node does it when it first serves after the host has booted. A node that is restarted later
//! leaves alone guests that were shut down meanwhile. Each guest is started by running `lighter
//! start`, one after the other.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::service::Node;
use crate::clock;
use crate::durable;
use crate::names::GuestName;
use crate::state_dir::StateDir;
use crate::whereabouts::Whereabouts;

/// Largest file that is read here, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How long a guest may take to start before the next one is started.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Pause between two checks of guests that may be on another host.
const POLL_PAUSE: Duration = Duration::from_secs(2);

/// The content of `autostarted.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Autostarted {
    /// Boot ID of the host's boot in which guests were last autostarted.
    boot_id: String,
    /// Guests that wait until their last migration is settled.
    #[serde(default)]
    waiting: Vec<GuestName>,
}

/// Starts the guests marked for autostart, unless that was done since the host booted. Failures are
/// logged. A guest whose last migration is not settled waits until it is.
pub(crate) async fn start_guests(node: Arc<Node>) {
    if let Err(error) = start_all(&node).await {
        tracing::error!("guests are not started with the host: {error:#}");
    }
}

async fn start_all(node: &Node) -> Result<()> {
    let mut round = begin(node.state())?;
    if round.waiting.is_empty() {
        tracing::debug!("guests have been started with the host before");
    }
    let mut reported = BTreeSet::new();
    while !round.waiting.is_empty() {
        let mut waiting = Vec::new();
        for name in &round.waiting {
            if let Some(why) = try_start(node, name).await {
                waiting.push(name.clone());
                if reported.insert(name.clone()) {
                    tracing::warn!(guest = %name, "not started with the host yet: {name} {why}");
                }
            }
        }
        if waiting != round.waiting {
            round.waiting = waiting;
            if let Err(error) = durable::write_json(&node.state().autostarted_file(), &round) {
                tracing::warn!("cannot keep which guests wait to be started: {error:#}");
            }
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
    Ok(())
}

/// Returns the guests that are still to be started in this boot. The file is written before they
/// are: even if this node is killed right now, the next one finds only the guests that wait. A
/// guest that a user has shut down since must not start again.
fn begin(state: &StateDir) -> Result<Autostarted> {
    let boot_id = clock::boot_id().context("cannot tell which boot of the host this is")?;
    let path = state.autostarted_file();
    // A missing or damaged file counts as no autostart in this boot.
    let last = regular_file::read(&path, FILE_BYTES_MAX).ok();
    let last = last.and_then(|text| serde_json::from_slice::<Autostarted>(&text).ok());
    if let Some(last) = last.filter(|last| last.boot_id == boot_id) {
        return Ok(last);
    }
    let (mut waiting, mut due) = (Vec::new(), Vec::new());
    for definition in state.definitions().list()?.into_iter().filter(|it| it.autostart) {
        // A damaged record stops only its own guest, and that guest's start reports it.
        if matches!(Whereabouts::of(state, &definition.name), Ok(Whereabouts::Unsettled(_))) {
            waiting.push(definition.name.clone());
        }
        due.push(definition.name);
    }
    durable::write_json(&path, &Autostarted { boot_id: boot_id.clone(), waiting })?;
    Ok(Autostarted { boot_id, waiting: due })
}

/// Starts a guest, if it is on this host. Returns why not yet.
async fn try_start(node: &Node, name: &GuestName) -> Option<String> {
    let state = node.state();
    let definition = state.definitions().find(name).ok().flatten();
    if state.guest(name).is_live() || !definition.is_some_and(|it| it.autostart) {
        return None;
    }
    let whereabouts = tokio::task::block_in_place(|| Whereabouts::of(state, name));
    if let Ok(Whereabouts::Unsettled(why)) = whereabouts {
        return Some(why);
    }
    match start(node, name).await {
        Ok(()) => tracing::info!(guest = %name, "started with the host"),
        Err(error) => tracing::error!(guest = %name, "not started with the host: {error:#}"),
    }
    None
}

/// Starts a defined guest with `lighter start`, and waits until it runs.
///
/// # Errors
/// If it does not start, with what that command says.
pub(super) async fn start(node: &Node, name: &GuestName) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(node.state().root()).args(node.log().to_arguments());
    command.args(["start", name.as_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(false);
    let run = command.spawn().context("cannot start a process for it")?.wait_with_output();
    let done = match tokio::time::timeout(START_PATIENCE, run).await {
        Ok(done) => done.context("cannot wait for its start")?,
        Err(_) => {
            bail!("it has not started after {} s; it is not waited for", START_PATIENCE.as_secs())
        }
    };
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.trim();
    if done.status.success() {
        // Warnings, e.g. that the other host cannot be asked whether it runs the guest.
        said.lines().for_each(|line| tracing::warn!(guest = %name, "{line}"));
    } else {
        bail!("{}", said.strip_prefix("lighter: ").unwrap_or(said));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use migrate::record::SourceState;

    use super::super::liveness::tests::source_record;
    use super::*;

    fn define(state: &StateDir, name: &str) {
        let file = state.root().join("guest.toml");
        std::fs::write(&file, format!("name = \"{name}\"")).unwrap();
        let name = state.definitions().define(&file, |_| Ok(None)).unwrap();
        state.definitions().set_autostart(&name, true).unwrap();
    }

    fn names(round: &Autostarted) -> Vec<&str> {
        round.waiting.iter().map(GuestName::as_str).collect()
    }

    #[test]
    fn guests_start_once_per_host_boot() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        define(&state, "web");
        assert_eq!(names(&begin(&state).unwrap()), ["web"]);
        assert_eq!(names(&begin(&state).unwrap()), [""; 0]);
        for other_life in ["{\"boot_id\": \"x\"}", "{"] {
            std::fs::write(state.autostarted_file(), other_life).unwrap();
            assert_eq!(names(&begin(&state).unwrap()), ["web"]);
            assert_eq!(names(&begin(&state).unwrap()), [""; 0]);
        }
    }

    #[test]
    fn a_guest_with_a_damaged_record_keeps_no_other_from_starting() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        define(&state, "db");
        define(&state, "web");
        let record = source_record(SourceState::Done, 1);
        state.records().unwrap().create(&record).unwrap();
        let place = state.place_of_records(&"web".parse().unwrap(), record.guest_uuid);
        std::fs::write(place.join("later.source.json"), "rubbish").unwrap();
        Whereabouts::of(&state, &"web".parse().unwrap()).unwrap_err();
        assert_eq!(names(&begin(&state).unwrap()), ["db", "web"]);
        assert_eq!(names(&begin(&state).unwrap()), [""; 0]);
    }

    #[test]
    fn a_waiting_guest_keeps_waiting_when_the_node_restarts() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        define(&state, "db");
        define(&state, "web");
        let open = source_record(SourceState::Undecided, 1);
        state.records().unwrap().create(&open).unwrap();
        assert_eq!(names(&begin(&state).unwrap()), ["db", "web"]);
        assert_eq!(names(&begin(&state).unwrap()), ["web"]);
    }
}
