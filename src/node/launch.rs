//! Starts the process for an incoming guest and learns on which port it listens.
//!
//! The node sends it two secrets, the process's own key and the token that the source must show,
//! and reads one line. After that the two are independent. The process leads its own session, so
//! neither a signal to the node's terminal nor the node's end reaches it.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{self, ExitStatus, Stdio};
use std::sync::Once;
use std::time::Duration;

use migrate::progress::Role;
use migrate::quic::{Identity, TlsError};
use migrate::{MigrationId, Token};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::address::PortRange;
use crate::cli::LogArgs;
use crate::cli::net::{NetAllowed, NetRename};
use crate::names::GuestName;
use crate::scope::Scope;
use crate::state_dir::StateDir;

/// How long the process may take to listen; it builds nothing before that.
const LAUNCH_PATIENCE: Duration = Duration::from_secs(10);

/// How long the process, once its guest runs, waits for the source to receive that news. The node
/// answers any later request.
pub(crate) const LINGER: Duration = Duration::from_secs(30);

/// Longest line that is read from the process, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// The parameters of the process.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The state folder of this host.
    pub(crate) state: &'a StateDir,
    /// The guest's name.
    pub(crate) name: &'a GuestName,
    /// UUID of the guest.
    pub(crate) uuid: Uuid,
    /// The migration that brings the guest.
    pub(crate) migration: MigrationId,
    /// The secret that the source must show.
    pub(crate) token: &'a Token,
    /// The address to listen on.
    pub(crate) bind: IpAddr,
    /// UDP ports to choose from.
    pub(crate) ports: PortRange,
    /// The disks that the guest will use.
    pub(crate) disks: &'a [PathBuf],
    /// Renames of bridges and taps on this host.
    pub(crate) net_map: &'a [NetRename],
    /// Bridges and taps that the guest may use.
    pub(crate) net_allowed: &'a NetAllowed,
    /// Folders in which copied disks may be created; none for a guest without disks.
    pub(crate) disk_folders: &'a [PathBuf],
    /// Whether the guest has vsock.
    pub(crate) vsock: bool,
    /// Its logging options.
    pub(crate) log: &'a LogArgs,
}

/// A process that waits for its guest.
#[derive(Debug)]
pub(crate) struct Launched {
    /// UDP port on which it listens.
    pub(crate) port: u16,
    /// The process; dropping this leaves it running.
    pub(crate) child: Child,
}

/// The one line that the process of an incoming guest reads from its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IncomingGreeting {
    /// The secret that the source must show.
    pub(crate) token: Token,
    /// The key and certificate with which the process authenticates itself.
    pub(crate) identity: Identity,
}

/// The one line that the process of an incoming guest writes to its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IncomingLine {
    /// The process listens on this port.
    Port(u16),
    /// The process cannot listen, and exits; the text is for users.
    Error(String),
}

/// Why no process waits for the guest. No process is left behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The process could not be started.
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    /// There is no certificate with which the process could authenticate itself.
    #[error(transparent)]
    Identity(#[from] TlsError),
    /// The process reported this error.
    #[error("{0}")]
    Said(String),
    /// The process exited before it wrote its line.
    #[error("it ended with {0} before it listened")]
    Ended(ExitStatus),
    /// The process neither listened nor exited in time.
    #[error("it did not listen within {} s", LAUNCH_PATIENCE.as_secs())]
    Slow,
    /// The process wrote something else than a port.
    #[error("it said {0:?}, which is not a port")]
    Strange(String),
}

/// Starts the process and waits until it listens.
///
/// # Errors
/// [`LaunchError`]; the process has been ended in that case.
pub(crate) async fn launch(what: &Launch<'_>) -> Result<Launched, LaunchError> {
    let identity = Identity::of_guest(&what.state.certs(), what.uuid, Role::Destination)?;
    let greeting = IncomingGreeting { token: *what.token, identity };
    let mut child = start(what).await.map_err(LaunchError::Start)?;
    match tokio::time::timeout(LAUNCH_PATIENCE, greet(&mut child, &greeting)).await {
        Ok(Ok(port)) => Ok(Launched { port, child }),
        Ok(Err(error)) => Err(give_up(child, error).await),
        Err(_) => Err(give_up(child, LaunchError::Slow).await),
    }
}

/// Starts the process, in a scope of its own if it can have one.
async fn start(what: &Launch<'_>) -> io::Result<Child> {
    let (program, arguments) = (std::env::current_exe()?, arguments(what));
    let Some(scope) = Scope::of_guest(what.name) else {
        return spawn(process::Command::new(program), &arguments);
    };
    let in_scope = {
        let (scope, program, arguments) = (scope.clone(), program.clone(), arguments.clone());
        let spawn = move |command| spawn(command, &arguments);
        move || scope.start(&program, spawn, Child::id).map_err(Box::new)
    };
    let failed = match tokio::task::spawn_blocking(in_scope).await.map_err(io::Error::other)? {
        Ok(child) => return Ok(child),
        Err(failed) => failed,
    };
    if let Some(mut launcher) = failed.launcher {
        // Its message, if any, precedes this one in the log. It may have exited.
        let _exited = launcher.kill().await;
    }
    warn_once(&scope.warning(&failed.cause));
    spawn(process::Command::new(program), &arguments)
}

/// Logs that systemd gives no scopes, the first time only: it is not about one guest.
fn warn_once(warning: &str) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| tracing::warn!("{warning}"));
}

/// Starts `command` with these arguments.
fn spawn(command: process::Command, arguments: &[OsString]) -> io::Result<Child> {
    Command::from(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(false)
        .spawn()
}

/// Returns the arguments of the process.
fn arguments(what: &Launch<'_>) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("--state-dir"), what.state.root().into()];
    arguments.extend(what.log.to_arguments().into_iter().map(OsString::from));
    let options = [
        ("--name", what.name.to_string()),
        ("--uuid", what.uuid.to_string()),
        ("--migration-id", what.migration.to_string()),
        ("--bind", what.bind.to_string()),
        ("--ports", what.ports.to_string()),
    ];
    let renames = what.net_map.iter().map(|rename| ("--net-map", rename.to_string()));
    let allowed = what.net_allowed.names().iter().map(|name| ("--net-allow", name.clone()));
    arguments.push("incoming".into());
    for (option, value) in options.into_iter().chain(renames).chain(allowed) {
        arguments.extend([OsString::from(option), OsString::from(value)]);
    }
    let disks = what.disks.iter().map(|disk| ("--disk", disk));
    let folders = what.disk_folders.iter().map(|folder| ("--disk-dir", folder));
    for (option, path) in disks.chain(folders) {
        arguments.extend([OsString::from(option), OsString::from(path)]);
    }
    arguments.extend(what.vsock.then(|| OsString::from("--vsock")));
    arguments
}

/// Sends the secrets and reads the line.
async fn greet(child: &mut Child, greeting: &IncomingGreeting) -> Result<u16, LaunchError> {
    if let Some(mut input) = child.stdin.take() {
        let line = serde_json::to_string(greeting).map_err(io::Error::from);
        let line = line.map_err(LaunchError::Start)? + "\n";
        // If the process has exited already, its exit status says more than this error.
        let _ended_early = input.write_all(line.as_bytes()).await;
    }
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let read = BufReader::new(output.take(LINE_BYTES_MAX)).read_line(&mut line).await;
        read.map_err(LaunchError::Start)?;
    }
    if line.is_empty() {
        return Err(LaunchError::Ended(child.wait().await.map_err(LaunchError::Start)?));
    }
    match serde_json::from_str(line.trim_end()) {
        Ok(IncomingLine::Port(port)) if port != 0 => Ok(port),
        Ok(IncomingLine::Error(text)) => Err(LaunchError::Said(text)),
        _ => Err(LaunchError::Strange(line.trim_end().chars().take(200).collect())),
    }
}

/// Ends a process that is not needed any more.
async fn give_up(mut child: Child, error: LaunchError) -> LaunchError {
    if let Err(failure) = child.kill().await {
        tracing::warn!(%failure, "cannot end the process of a guest that will not arrive");
    }
    error
}
