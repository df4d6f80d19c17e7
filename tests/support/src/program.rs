//! Runs the built program to its end and collects its output.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::paths::built_program;
use super::wait;

/// Limit of one command. A run of memory optimization waits for balloons, whose drivers take half a
/// minute per step where KVM emulates the guest's kernel.
const END_PATIENCE: Duration = Duration::from_secs(900);

/// The environment variable, with its value, of a process that makes no early commits, like earlier
/// releases: 128 is the bit of `migrate::protocol::FEATURE_EARLY_COMMIT`.
pub const WITHOUT_EARLY_COMMIT: (&str, &str) = ("LIGHTER_PROTOCOL_WITHOUT", "128");

/// The exit codes that `lighter --help` documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Exit code 0.
    Done,
    /// Exit code 1.
    Failed,
    /// Exit code 2.
    Usage,
    /// Exit code 3.
    InDoubt,
    /// Exit code 4.
    Corrupt,
    /// Exit code 5.
    Unwatched,
    /// Exit code 130.
    Cancelled,
    /// Ended by a signal, or with an undocumented code.
    Other,
}

impl Exit {
    fn of(status: std::process::ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Done,
            Some(1) => Self::Failed,
            Some(2) => Self::Usage,
            Some(3) => Self::InDoubt,
            Some(4) => Self::Corrupt,
            Some(5) => Self::Unwatched,
            Some(130) => Self::Cancelled,
            _ => Self::Other,
        }
    }
}

/// A completed run of the program.
#[derive(Debug)]
pub struct Done {
    /// How the program ended.
    pub exit: Exit,
    /// The program's standard output.
    pub stdout: String,
    /// The program's standard error.
    pub stderr: String,
}

impl Done {
    /// Asserts that the run succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.exit, Exit::Done, "{self:#?}");
        self
    }

    /// Parses stdout, which must be one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed
            .unwrap_or_else(|error| panic!("stdout is not one JSON document ({error}): {self:#?}"))
    }

    /// Asserts that the run failed with `exit` and that its message contains each of `words` and is
    /// formed like every message: one line that starts with the program's name, without debug
    /// output.
    #[track_caller]
    pub fn complains(self, exit: Exit, words: &[&str]) -> Self {
        assert_eq!(self.exit, exit, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in the message: {self:#?}");
        }
        for debris in ["panicked", "Error {", "Os {", "Some(", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(debris), "the message is not for people: {self:#?}");
        }
        self
    }
}

/// A command of the built program on the host with state folder `state_dir`. It does not inherit
/// lighter's variables from this environment.
pub fn lighter<S: AsRef<OsStr>>(state_dir: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(built_program());
    command.arg("--state-dir").arg(state_dir).args(arguments).stdin(Stdio::null());
    without_leaks(command)
}

fn without_leaks(mut command: Command) -> Command {
    for leak in [
        "RUST_LOG",
        "LIGHTER_STATE_DIR",
        "LIGHTER_FAILPOINT",
        "LIGHTER_SECCOMP",
        "LIGHTER_LANDLOCK",
    ] {
        command.env_remove(leak);
    }
    command
}

/// Moves the command into a network namespace (`ip netns`), or leaves it in this one for `None`. It
/// keeps its arguments and its environment.
pub fn in_namespace(command: Command, namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return command };
    let mut outer = Command::new("ip");
    outer.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdin(Stdio::null());
    outer
}

/// The same command for a user without any rights here. That user may not enter the folder of the
/// built program, so the command runs the program by a relative path, from a working directory that
/// root sets.
pub fn as_stranger(command: &Command) -> Command {
    let program = Path::new(command.get_program());
    let (folder, name) =
        (program.parent().expect("a folder"), program.file_name().expect("a name"));
    let mut outer = Command::new("setpriv");
    outer.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    outer.arg(Path::new(".").join(name)).args(command.get_args());
    outer.current_dir(folder).stdin(Stdio::null());
    without_leaks(outer)
}

/// The same command in a terminal of its own (script(1)): its output is that of the terminal, and
/// what is written to its stdin is typed.
pub fn in_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.display())).collect();
    let mut outer = Command::new("script");
    // A shell that waits for its command would take Ctrl-C as well, and end with 130.
    let line = format!("exec {}", quoted.join(" "));
    outer.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    without_leaks(outer)
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Files, not pipes: a program with much output must not block because the test does not read.
    stdout: File,
    stderr: File,
    what: String,
}

impl Running {
    /// Starts `command`, with its output in temporary files.
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let (stdout, stderr) = (scratch(), scratch());
        command.stdout(stdout.try_clone().expect("a descriptor"));
        command.stderr(stderr.try_clone().expect("a descriptor"));
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{what} does not start: {error}"));
        Self { child, stdout, stderr, what }
    }

    /// The program's process.
    pub fn pid(&self) -> super::Pid {
        super::Pid(self.child.id())
    }

    /// Waits until the program ends.
    pub fn finish(self) -> Done {
        self.finish_watched(|| ())
    }

    /// As [`Self::finish`]; if the program does not end in time, the panic message contains what
    /// `watch` returned last.
    pub fn finish_watched<W: std::fmt::Debug>(mut self, watch: impl Fn() -> W) -> Done {
        let what = format!("{} ends", self.what);
        let status =
            wait::within(END_PATIENCE, &what, || match self.child.try_wait().expect("a child") {
                Some(status) => Ok(status),
                None => Err((self.said(), watch())),
            });
        let (stdout, stderr) = self.said();
        Done { exit: Exit::of(status), stdout, stderr }
    }

    /// The output so far: stdout, stderr.
    pub fn said(&self) -> (String, String) {
        (content(&self.stdout), content(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn scratch() -> File {
    tempfile::tempfile().expect("a temporary file")
}

/// The whole content of a file to which another process appends, whatever the position of this
/// descriptor.
fn content(file: &File) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().map_or(0, |metadata| metadata.len() as usize)];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs `command` to its end.
pub fn run(command: Command) -> Done {
    Running::start(command).finish()
}

/// The content of a file; empty if it cannot be read.
pub(crate) fn read(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}
