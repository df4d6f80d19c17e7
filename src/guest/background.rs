//! Runs the same command line again, in a session of its own: for `--detach`, and for a guest whose
//! console a user watches and leaves.
//!
//! The child's stderr is a pipe until the guest runs, so that the parent reads any error. Then its
//! stderr becomes a log, the pipe ends, and the parent returns.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::logging;
use crate::names::GuestName;
use crate::output;
use crate::scope::{NoScope, Scope};
use crate::state_dir::{GuestDir, StateDir};

/// Environment variable of the child with the guest's name, which the parent may have generated.
const NAME_VARIABLE: &str = "LIGHTER_DETACHED_NAME";

/// Limit for messages that are read from the child, bytes.
const MESSAGES_BYTES_MAX: u64 = 64 << 10;

/// The guest's name, if this process is the background child.
pub(crate) fn name() -> Option<GuestName> {
    std::env::var(NAME_VARIABLE).ok()?.parse().ok()
}

/// Starts this command line in the background, and waits until its guest runs; it may have ended
/// since. Returns the guest's process.
///
/// # Errors
/// If the guest does not start; the error is what the child said.
pub(crate) fn start(state: &StateDir, name: &GuestName) -> Result<Child> {
    let (mut child, messages) = launch(name)?;
    // The pipe has ended: either the guest runs and its process logs to a file, or the process is
    // about to exit.
    let guest = state.guest(name);
    let is_its_own = guest.read_identity().is_ok_and(|identity| identity.pid == child.id());
    if !(is_its_own && guest.process_log().exists()) {
        let status = child.wait().context("cannot wait for the guest's process")?;
        match messages.trim().strip_prefix("lighter: ").unwrap_or(messages.trim()) {
            _ if status.success() => {}
            "" => bail!("the guest's process died unexpectedly ({status})"),
            message => bail!("{message}"),
        }
    }
    if !messages.is_empty() {
        output::note(messages.trim_end());
    }
    Ok(child)
}

/// Starts the child, in a scope of its own if it can have one, and reads its messages to their end.
fn launch(name: &GuestName) -> Result<(Child, String)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    if let Some(scope) = Scope::of_guest(name) {
        match scope.start(&program, |command| spawn(command, name), |child| Some(child.id())) {
            Ok(child) => return with_messages(child),
            Err(failed) => {
                output::note(format_args!("warning: {}", scope.warning(&cause(failed)?)));
            }
        }
    }
    let child = spawn(Command::new(program), name);
    with_messages(child.context("cannot start the guest's process")?)
}

/// Ends a process that got no scope, and returns why: what systemd-run said, if it said anything.
fn cause(failed: NoScope<Child>) -> Result<String> {
    let NoScope { launcher, cause } = failed;
    let Some(mut launcher) = launcher else { return Ok(cause) };
    // It may have exited.
    let _exited = launcher.kill();
    launcher.wait().context("cannot wait for systemd-run")?;
    let messages = read_messages(&mut launcher)?;
    Ok(if messages.trim().is_empty() { cause } else { messages })
}

/// Reads the messages of `child` to their end.
fn with_messages(mut child: Child) -> Result<(Child, String)> {
    let messages = read_messages(&mut child)?;
    Ok((child, messages))
}

/// Starts `command` with the arguments of this process.
fn spawn(mut command: Command, name: &GuestName) -> std::io::Result<Child> {
    if let Ok(text) = std::env::var(logging::VARIABLE) {
        // This process has warned of the rest.
        command.env(logging::VARIABLE, logging::usable(&text));
    }
    command
        .args(std::env::args_os().skip(1))
        .env(NAME_VARIABLE, name.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn read_messages(child: &mut Child) -> Result<String> {
    let mut messages = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr
            .take(MESSAGES_BYTES_MAX)
            .read_to_string(&mut messages)
            .context("cannot hear the guest's process")?;
    }
    Ok(messages)
}

/// The child's first step: leaves the terminal that started it.
///
/// # Errors
/// If the system refuses.
pub(crate) fn leave_terminal() -> Result<()> {
    nix::unistd::setsid().map(drop).context("cannot start a session for the guest's process")
}

/// The child's last step: from now on it writes only to its log, and the parent returns.
///
/// # Errors
/// If the log cannot be opened.
pub(crate) fn log_to_folder(guest: &GuestDir) -> Result<()> {
    let path = guest.process_log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = log.with_context(|| format!("cannot open the log {}", path.display()))?;
    nix::unistd::dup2_stderr(&log).context("cannot redirect stderr")
}
