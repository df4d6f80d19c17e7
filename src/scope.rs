//! systemd scopes of guests' processes.
//!
//! A process that a node or a shell starts is in their control group: systemd may end it with them,
//! and counts its memory as theirs. With a scope, each guest has a control group of its own in
//! `lighter.slice`. systemd-run(1) creates the scope for itself and then executes the program, so
//! the process ID, the standard streams and the environment stay the same. A guest whose process
//! gets no scope starts without one.

use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use uuid::Uuid;

use crate::names::GuestName;

/// The program that creates the scope.
const SYSTEMD_RUN: &str = "systemd-run";

/// The folder that exists only while systemd is the system's init (sd_booted(3)).
const SYSTEMD_FOLDER: &str = "/run/systemd/system";

/// The slice of all guests; `packaging/lighter.slice` limits and accounts it.
const SLICE: &str = "lighter.slice";

/// A scope for the process of a guest that is about to be started.
#[derive(Debug)]
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
        // When the host shuts down, guests end before the file systems with their disks do.
        command.args(["-p", "After=remote-fs.target"]);
        command.arg("--").arg(program);
        command
    }

    /// Whether the process of [`Scope::command`] has executed no program: it is still systemd-run,
    /// though it has exited or kept the caller waiting. Ask before it is waited for.
    pub(crate) fn has_failed(&self, pid: u32) -> bool {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim_end() == SYSTEMD_RUN)
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
            "After=remote-fs.target",
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
        let launcher = |script: &str| {
            let path = folder.path().join(SYSTEMD_RUN);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mut child = Command::new(path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a shell");
            // The shell has begun, and has executed another program or exited.
            let mut output = child.stdout.take().unwrap();
            let mut first = [0];
            let _none_at_its_end = std::io::Read::read(&mut output, &mut first).unwrap();
            let failed = scope().has_failed(child.id());
            drop(child.stdin.take());
            child.wait().unwrap();
            failed
        };
        assert!(launcher("exit 1"), "it has exited, and was not waited for");
        assert!(launcher("echo; read line"), "it hangs");
        assert!(!launcher("exec /bin/sh -c 'echo; read line'"), "it has executed the program");
    }

    #[test]
    fn the_warning_names_guest_and_cause() {
        let text = scope().warning(" Failed to connect to bus\n");
        assert!(text.contains("guest web-1.a_b") && text.ends_with(": Failed to connect to bus"));
        assert!(scope().warning("").ends_with("no reason given"));
    }
}
