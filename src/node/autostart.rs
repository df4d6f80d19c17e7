//! Starts the guests that start with the host, once in each life of the host.
//!
//! The node does it when it first serves after the host has booted; a node that is started again later leaves guests that were
//! shut down meanwhile alone. Each is started as by `lighter start`, by that program, one after the other.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use migrate::record::{DestinationState, Record, Side, SourceState};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::service::Node;
use crate::durable;
use crate::ended::{Ended, How};
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// What tells one life of the host from another (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The longest file of these that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// How long a guest may take to start, before the next has its turn.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// `autostarted.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Autostarted {
    /// The life of the host in which guests were last started with it.
    boot_id: String,
}

/// Starts the guests that start with the host, unless that has been done since it booted. What fails is logged.
pub(crate) async fn start_guests(node: Arc<Node>) {
    let state = node.state();
    match is_first_time(state) {
        Ok(true) => {}
        Ok(false) => return tracing::debug!("guests have been started with the host before"),
        Err(error) => return tracing::error!("guests are not started with the host: {error:#}"),
    }
    let defined = match state.definitions().list() {
        Ok(defined) => defined,
        Err(error) => return tracing::error!("guests are not started with the host: {error:#}"),
    };
    for definition in defined.into_iter().filter(|it| it.autostart) {
        let name = definition.name;
        if state.guest(&name).is_live() {
            continue;
        }
        match start(&node, &name).await {
            Ok(()) => tracing::info!(guest = %name, "started with the host"),
            Err(error) => tracing::error!(guest = %name, "not started with the host: {error:#}"),
        }
    }
}

/// Whether this is the first look since the host booted. The next one is not, also when this node is killed just now: a guest
/// must not start again that somebody has shut down since.
fn is_first_time(state: &StateDir) -> Result<bool> {
    let boot_id = regular_file::read_text(Path::new(BOOT_ID), FILE_BYTES_MAX)
        .with_context(|| format!("cannot read {BOOT_ID}"))?;
    let now = Autostarted { boot_id: boot_id.trim().to_owned() };
    let path = state.autostarted_file();
    // A file that is not there or damaged tells of no start.
    let last = regular_file::read(&path, FILE_BYTES_MAX).ok();
    let last = last.and_then(|text| serde_json::from_slice::<Autostarted>(&text).ok());
    if last.as_ref() == Some(&now) {
        return Ok(false);
    }
    durable::write_json(&path, &now)?;
    Ok(true)
}

async fn start(node: &Node, name: &GuestName) -> Result<()> {
    let (records, _damaged) = node.records().list().context("cannot read where it is")?;
    if let Some(elsewhere) = elsewhere(node.state(), &records, name) {
        bail!("{elsewhere}; `lighter start {name}` starts it here all the same");
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(node.state().root()).args(node.log().to_arguments());
    command.args(["start", name.as_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(false);
    let run = command.spawn().context("cannot start a process for it")?.wait_with_output();
    let done = match tokio::time::timeout(START_PATIENCE, run).await {
        Ok(done) => done.context("cannot wait for its start")?,
        Err(_) => bail!("it is not done after {START_PATIENCE:?}; it is not waited for"),
    };
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.trim();
        bail!("{}", said.strip_prefix("lighter: ").unwrap_or(said));
    }
    Ok(())
}

/// Why the guest may be running on another host, or where it is kept, if so.
fn elsewhere(state: &StateDir, records: &[Record], name: &GuestName) -> Option<String> {
    let its = records.iter().filter(|record| record.guest == name.as_str());
    let last = its.max_by_key(|record| record.started_unix_ms);
    let ended = state.ended().read(name);
    let has_moved = |ended: &Ended| matches!(ended.how, How::Moved | How::Saved | How::Discarded);
    // One that was started here since by hand, and ended here, is here.
    if let (Some(last), Some(ended)) = (last, &ended)
        && !has_moved(ended)
        && ended.ended_unix_ms > last.updated_unix_ms
    {
        return None;
    }
    match last.map(|record| &record.side) {
        Some(Side::Source { state: SourceState::Undecided | SourceState::Aborted, .. }) => None,
        Some(Side::Source { destination, .. }) => Some(format!("it has moved to {destination}")),
        Some(Side::Destination {
            state: DestinationState::Taking | DestinationState::Running,
            ..
        }) => None,
        Some(Side::Destination { .. }) => {
            Some("it was last on its way here from another host, and may still be there".to_owned())
        }
        None => ended.filter(has_moved).map(|ended| format!("it {}", ended.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::liveness::tests::{destination_record, source_record};
    use super::*;

    #[test]
    fn guests_start_once_in_each_life_of_the_host() {
        let (_folder, state) = StateDir::temporary();
        assert!(is_first_time(&state).unwrap());
        assert!(!is_first_time(&state).unwrap());
        durable::write_json(&state.autostarted_file(), &Autostarted { boot_id: "x".to_owned() })
            .unwrap();
        assert!(is_first_time(&state).unwrap());
        std::fs::write(state.autostarted_file(), "{").unwrap();
        assert!(is_first_time(&state).unwrap());
        assert!(!is_first_time(&state).unwrap());
    }

    #[test]
    fn a_guest_that_may_run_on_another_host_is_not_started() {
        let (_folder, state) = StateDir::temporary();
        let name: GuestName = "web".parse().unwrap();
        let is_elsewhere = |record: &Record| {
            let mut older = source_record(SourceState::Done, 1);
            older.started_unix_ms = 0;
            let newer = Record { started_unix_ms: 1, ..record.clone() };
            elsewhere(&state, &[newer, older], &name).is_some()
        };
        for (state, moved) in [
            (SourceState::Undecided, false),
            (SourceState::Aborted, false),
            (SourceState::Committed, true),
            (SourceState::Done, true),
        ] {
            assert_eq!(is_elsewhere(&source_record(state, 1)), moved, "{state:?}");
        }
        for (state, there) in [
            (DestinationState::Taking, false),
            (DestinationState::Running, false),
            (DestinationState::Loading, true),
            (DestinationState::Ready, true),
            (DestinationState::Failed, true),
            (DestinationState::Discarded, true),
        ] {
            assert_eq!(is_elsewhere(&destination_record(state, 1)), there, "{state:?}");
        }
    }

    #[test]
    fn a_guest_that_has_ended_here_since_it_left_is_here() {
        let (_folder, state) = StateDir::temporary();
        let left = source_record(SourceState::Done, 1);
        let name: GuestName = "web".parse().unwrap();
        for (after_ms, is_elsewhere) in [(0, true), (1, false)] {
            let ended = Ended {
                name: name.clone(),
                uuid: uuid::Uuid::nil(),
                ended_unix_ms: left.updated_unix_ms + after_ms,
                how: How::PoweredOff,
                reason: "powered off".to_owned(),
            };
            state.ended().write(&ended).unwrap();
            let found = elsewhere(&state, std::slice::from_ref(&left), &name);
            assert_eq!(found.is_some(), is_elsewhere);
        }
    }

    #[test]
    fn without_a_record_the_last_end_tells() {
        let (_folder, state) = StateDir::temporary();
        let name: GuestName = "web".parse().unwrap();
        assert_eq!(elsewhere(&state, &[], &name), None);
        for (how, is_elsewhere) in
            [(How::PoweredOff, false), (How::Moved, true), (How::Saved, true)]
        {
            let uuid = uuid::Uuid::nil();
            let reason = "moved to b".to_owned();
            let ended = Ended { name: name.clone(), uuid, ended_unix_ms: 0, how, reason };
            state.ended().write(&ended).unwrap();
            assert_eq!(elsewhere(&state, &[], &name).is_some(), is_elsewhere);
        }
    }
}
