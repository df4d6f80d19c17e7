//! The built program: run to its end, with everything it said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::paths::built_program;
use super::wait;

/// How long a verb may take to its end. A run of memory optimization waits for balloons, whose
/// drivers take half a minute for a step where KVM emulates the guest's kernel.
const END_PATIENCE: Duration = Duration::from_secs(900);

/// The exit codes that `lighter --help` promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 2
    Usage,
    /// 3
    InDoubt,
    /// 4
    Corrupt,
    /// 5
    Unwatched,
    /// 130
    Cancelled,
    /// Ended by a signal, or a code that is not documented.
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

/// A run of the program that has ended.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub exit: Exit,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Done {
    /// The run was successful.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.exit, Exit::Done, "{self:#?}");
        self
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed
            .unwrap_or_else(|error| panic!("stdout is not one JSON document ({error}): {self:#?}"))
    }

    /// It failed with `exit`, and the complaint holds every one of `words`, like a message should:
    /// one line that starts with the program's name, no debug output.
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

/// A command of the built program, on the host whose state folder is `state_dir`; nothing of this
/// environment leaks in.
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

/// The same command in a network namespace (`ip netns`), or in this one when none is named. Set its
/// environment afterwards.
pub fn in_namespace(command: Command, namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return command };
    let mut outer = Command::new("ip");
    outer.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    outer.stdin(Stdio::null());
    without_leaks(outer)
}

/// The same command for a user who owns nothing here. Others may not get to where the program was
/// built: it is found by the working directory, which root chooses.
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

/// A run of the program that goes on; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Files, not pipes: a program that says a lot must not stand still because the test does not
    /// read.
    stdout: File,
    stderr: File,
    what: String,
}

impl Running {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let (stdout, stderr) = (scratch(), scratch());
        command.stdout(stdout.try_clone().expect("a descriptor"));
        command.stderr(stderr.try_clone().expect("a descriptor"));
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{what} does not start: {error}"));
        Self { child, stdout, stderr, what }
    }

    /// Its process.
    pub fn pid(&self) -> super::Pid {
        super::Pid(self.child.id())
    }

    /// Waits for its end.
    pub fn finish(self) -> Done {
        self.finish_watched(|| ())
    }

    /// As [`Self::finish`]; what `watch` saw last is part of the message when the end does not
    /// come.
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

    /// What it has printed so far: stdout, stderr.
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

/// The whole content of a file that somebody else appends to, whatever this descriptor's position.
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

/// The content of a file that may not be there (any more).
pub(crate) fn read(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}
