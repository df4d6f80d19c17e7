//! systemd scopes of guests' processes.
//!
//! A process that a node or a shell starts is in their control group: systemd may end it with them,
//! and counts its memory as theirs. With a scope, each guest has a control group of its own in
//! `lighter.slice`. systemd-run(1) creates the scope for itself and then executes the program, so
//! the process ID, the standard streams and the environment stay the same. A guest whose process
//! gets no scope starts without one.

use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use uuid::Uuid;

use crate::names::GuestName;

/// The program that creates the scope.
const SYSTEMD_RUN: &str = "systemd-run";

/// The folder that exists only while systemd is the system's init (sd_booted(3)).
const SYSTEMD_FOLDER: &str = "/run/systemd/system";

/// How long systemd may take to create a scope; a D-Bus that hangs must not keep a guest from
/// starting.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often to check whether systemd-run has executed the program.
const PAUSE: Duration = Duration::from_millis(2);

/// The slice of all guests; `packaging/lighter.slice` has systemd count what they use.
const SLICE: &str = "lighter.slice";

/// What asks guests to shut down with the host (`packaging/lighter-guests.service`).
const BEFORE: &str = "Before=lighter-guests.service";

/// A scope for the process of a guest that is about to be started.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    unit: String,
    description: String,
}

impl Scope {
    /// Returns the scope for a new process of guest `name`; `None` if the host runs no systemd, or
    /// if the user is not root, whose guests stay in the user's session.
    pub(crate) fn of_guest(name: &GuestName) -> Option<Self> {
        let is_systemds = Path::new(SYSTEMD_FOLDER).is_dir() && geteuid().is_root();
        is_systemds.then(|| Self::new(name, Uuid::new_v4()))
    }

    /// The ID keeps a new process apart from the last one of that name, which may still be ending.
    fn new(name: &GuestName, id: Uuid) -> Self {
        let id = id.simple().to_string();
        Self {
            unit: format!("lighter-guest-{name}-{}", id.get(..8).unwrap_or(&id)),
            description: format!("lighter guest {name}"),
        }
    }

    /// Returns a command that executes `program` in this scope; its arguments are the caller's to
    /// add.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(SYSTEMD_RUN);
        command.args(["--scope", "--quiet", "--collect", "--no-ask-password"]);
        command.arg(format!("--slice={SLICE}"));
        command.arg(format!("--unit={}", self.unit));
        command.arg(format!("--description={}", self.description));
        for accounting in ["MemoryAccounting=yes", "CPUAccounting=yes", "IOAccounting=yes"] {
            command.args(["-p", accounting]);
        }
        // When the host shuts down, guests end once they have been asked to shut down, and before
        // the file systems with their disks are unmounted.
        for order in ["After=local-fs.target", "After=remote-fs.target", BEFORE] {
            command.args(["-p", order]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Starts `program` in this scope, and waits until systemd-run has executed it. `spawn` adds
    /// the program's arguments and starts the command; `pid` is the ID of the process, until it is
    /// waited for. Blocks, for a limited time.
    ///
    /// # Errors
    /// [`NoScope`]; the program has not begun then.
    pub(crate) fn start<C>(
        &self,
        program: &Path,
        spawn: impl FnOnce(Command) -> io::Result<C>,
        pid: impl FnOnce(&C) -> Option<u32>,
    ) -> Result<C, NoScope<C>> {
        let spawned = spawn(self.command(program));
        let child =
            spawned.map_err(|error| NoScope { launcher: None::<C>, cause: error.to_string() })?;
        let executed = pid(&child).map_or(Ok(()), |pid| await_program(pid, PATIENCE));
        match executed {
            Ok(()) => Ok(child),
            Err(cause) => Err(NoScope { launcher: Some(child), cause }),
        }
    }

    /// Returns the warning that the process starts without this scope; `cause` says why.
    pub(crate) fn warning(&self, cause: &str) -> String {
        let cause = if cause.trim().is_empty() { "no reason given" } else { cause.trim() };
        format!(
            "the {} gets no scope in {SLICE}, and may end with the service or session that starts it: {SYSTEMD_RUN}: {cause}",
            self.description
        )
    }
}

/// Why a process got no scope.
#[derive(Debug)]
pub(crate) struct NoScope<C> {
    /// The process of systemd-run, for the caller to end; none if it did not start. What it wrote
    /// to stderr says more than `cause`.
    pub(crate) launcher: Option<C>,
    /// What happened.
    pub(crate) cause: String,
}

/// Waits until the process `pid`, of systemd-run, has executed another program.
///
/// # Errors
/// If it exits instead, or takes longer than `patience`.
fn await_program(pid: u32, patience: Duration) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        match launcher_of(pid) {
            Launcher::Gone => return Ok(()),
            Launcher::Exited => return Err("it exited".to_owned()),
            Launcher::Runs if begin.elapsed() >= patience => {
                return Err(format!("no answer from systemd within {} s", patience.as_secs()));
            }
            Launcher::Runs => sleep(PAUSE),
        }
    }
}

/// The state of systemd-run in a process.
enum Launcher {
    /// It waits for systemd.
    Runs,
    /// It has exited, and was not waited for.
    Exited,
    /// The process has executed another program.
    Gone,
}

/// Reads the state of systemd-run in the process `pid`. A process whose state cannot be read is not
/// systemd-run: this process has not waited for that one.
fn launcher_of(pid: u32) -> Launcher {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // PID (NAME) STATE ..., and a name may have parentheses (proc_pid_stat(5)).
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    match name {
        Some((SYSTEMD_RUN, rest)) if rest.trim_start().starts_with(['Z', 'X']) => Launcher::Exited,
        Some((SYSTEMD_RUN, _)) => Launcher::Runs,
        _ => Launcher::Gone,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use super::*;

    fn scope() -> Scope {
        let id = "8f0c5a52-0f7b-4a37-9b0c-5c1d2e3f4a5b".parse().unwrap();
        Scope::new(&"web-1.a_b".parse().unwrap(), id)
    }

    #[test]
    fn the_program_is_executed_in_a_scope_of_the_guest() {
        let command = scope().command(Path::new("/usr/bin/lighter"));
        assert_eq!(command.get_program(), "systemd-run");
        let arguments: Vec<&str> = command.get_args().map(|it| it.to_str().unwrap()).collect();
        let expected = [
            "--scope",
            "--quiet",
            "--collect",
            "--no-ask-password",
            "--slice=lighter.slice",
            "--unit=lighter-guest-web-1.a_b-8f0c5a52",
            "--description=lighter guest web-1.a_b",
            "-p",
            "MemoryAccounting=yes",
            "-p",
            "CPUAccounting=yes",
            "-p",
            "IOAccounting=yes",
            "-p",
            "After=local-fs.target",
            "-p",
            "After=remote-fs.target",
            "-p",
            "Before=lighter-guests.service",
            "--",
            "/usr/bin/lighter",
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn two_processes_of_a_guest_have_different_scopes() {
        let name = "web".parse().unwrap();
        let [one, other] = [(); 2].map(|()| Scope::new(&name, Uuid::new_v4()).unit);
        assert_ne!(one, other);
    }

    #[test]
    fn a_launcher_that_exits_or_hangs_has_failed_and_a_program_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let outcome = |script: &str, patience| {
            let path = folder.path().join(SYSTEMD_RUN);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mut child = Command::new(path).stdin(Stdio::piped()).spawn().expect("a shell");
            let outcome = await_program(child.id(), patience);
            drop(child.stdin.take());
            child.wait().unwrap();
            outcome
        };
        let long = Duration::from_secs(60);
        assert_eq!(outcome("exit 1", long).unwrap_err(), "it exited");
        let hangs = outcome("read line", Duration::ZERO).unwrap_err();
        assert!(hangs.contains("no answer from systemd"), "{hangs}");
        outcome("exec /bin/sh -c 'read line'", long).expect("it has executed the program");
    }

    #[test]
    fn a_launcher_that_does_not_start_is_reported() {
        let missing = |_: Command| Err::<(), io::Error>(io::ErrorKind::NotFound.into());
        let failed = scope().start(Path::new("/bin/true"), missing, |_| None).unwrap_err();
        assert!(failed.launcher.is_none() && failed.cause.contains("not found"), "{failed:?}");
    }

    #[test]
    fn the_warning_names_guest_and_cause() {
        let text = scope().warning(" Failed to connect to bus\n");
        assert!(text.contains("guest web-1.a_b") && text.ends_with(": Failed to connect to bus"));
        assert!(scope().warning("").ends_with("no reason given"));
    }
}
