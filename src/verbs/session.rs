//! How a command reaches a guest: a small runtime for the duration of the command, and a client of
//! the guest's socket.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::api::ApiClient;
use crate::api::types::{GuestInfo, GuestState};
use crate::cli::named_disk::NamedDisk;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, ProcessHandle, StateDir};

/// How long a guest's process may take to exit after it was told to.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two checks whether a process has exited.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Runs a command's requests to other processes.
///
/// # Errors
/// The command's own errors, or if the runtime cannot be started.
pub(crate) fn block_on<T>(verb: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?
        .block_on(verb)
}

/// Carries out `verb` for one guest after the other, and prints what became of it, which completes
/// the sentence "web-1 ...". A failure does not keep the others back.
///
/// # Errors
/// The last failure; those before it are printed.
pub(crate) fn for_each(
    names: &[GuestName],
    mut verb: impl FnMut(&GuestName) -> Result<String>,
) -> Result<Exit> {
    let mut failure: Option<anyhow::Error> = None;
    for name in names {
        match verb(name) {
            Ok(done) => output::print_line(format_args!("{name} {done}"))?,
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    output::note(format_args!("lighter: {earlier:#}"));
                }
            }
        }
    }
    failure.map_or(Ok(Exit::Done), Err)
}

/// Returns a client of the live guest of this name.
///
/// # Errors
/// If there is no such guest on this host.
pub(crate) fn guest_client(state: &StateDir, name: &GuestName) -> Result<ApiClient> {
    Ok(ApiClient::new(&state.live_guest(name)?.socket()))
}

/// Returns the path on this host of a disk of the guest `name`, which `client` reaches. A disk that
/// is named by its path may be none of the guest's.
///
/// # Errors
/// If the guest has fewer disks, or cannot be asked.
pub(crate) async fn path_of(
    client: &ApiClient,
    name: &GuestName,
    disk: &NamedDisk,
) -> Result<PathBuf> {
    let number = match disk {
        NamedDisk::Path(path) => return Ok(path.clone()),
        NamedDisk::Number(number) => *number,
    };
    let guest: GuestInfo = client.get("/v1/guest").await?;
    let found = guest.disks.into_iter().nth(number);
    let missing = || format!("{name} has no disk {disk}: `lighter show {name}` lists its disks");
    Ok(found.with_context(missing)?.path)
}

/// Returns the state of the guest that `client` reaches, if it answers.
pub(crate) async fn state_of(client: &ApiClient) -> Option<GuestState> {
    let info: Result<GuestInfo, _> = client.get("/v1/guest").await;
    info.ok().map(|info| info.state)
}

/// Returns how the last guest of this name ended: "web-1 powered off".
pub(crate) fn how_it_ended(state: &StateDir, name: &GuestName) -> String {
    let how = state.ended().read(name).map(|ended| ended.reason);
    format!("{name} {}", how.as_deref().unwrap_or("is gone"))
}

/// Waits until `guest` and its process are gone; returns false if they are not after `patience`.
/// The guest's name is free a moment before its process has exited. That exit is waited for only if
/// `process` is given, which must be obtained before the process is told to exit.
pub(crate) async fn is_gone_within(
    guest: &GuestDir,
    process: Option<&ProcessHandle>,
    patience: Duration,
) -> bool {
    let gone = async {
        while guest.is_live() || process.is_some_and(|process| !process.has_ended()) {
            tokio::time::sleep(POLL_PAUSE).await;
        }
    };
    tokio::time::timeout(patience, gone).await.is_ok()
}
