//! Processes as the kernel shows them: which belong to a state folder, which are alive; and signals
//! to one of them by its id.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};

use super::wait;

/// A process id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid(pub u32);

impl Pid {
    /// Whether the process can execute: a zombie does not count.
    pub fn is_alive(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        state(&stat).is_some_and(|state| !['Z', 'X'].contains(&state))
    }

    /// Sends SIGKILL; does nothing if the process is gone.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends SIGSTOP and waits until the threads of the process have stopped, except for those of
    /// vCPUs: one in which KVM accesses a page that is still at the guest's source stops only when
    /// that has come. It executes nothing until then.
    pub fn freeze(self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.0);
        let states = || -> Vec<char> {
            let threads = fs::read_dir(&tasks).expect("a process that lives").flatten();
            let stats = threads.filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
            stats.filter(|stat| !stat.contains("(vcpu")).filter_map(|stat| state(&stat)).collect()
        };
        wait::until("all threads stand", || {
            let states = states();
            wait::holds(states.iter().all(|state| *state == 'T'), states)
        });
    }

    /// Continues the process after [`Self::freeze`].
    pub fn thaw(self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal; does nothing if the process is gone.
    pub fn signal(self, signal: Signal) {
        let _ = kill(nix::unistd::Pid::from_raw(self.0 as i32), signal);
    }

    /// The process's command line, for messages.
    pub fn command_line(self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    }

    /// The process's live children.
    pub fn children(self) -> Vec<Self> {
        all().filter(|pid| pid.parent() == Some(self) && pid.is_alive()).collect()
    }

    /// The process's resident anonymous memory, in bytes. Unlike PSS, it does not change with the
    /// number of processes that map the same program.
    pub fn anonymous_bytes(self) -> u64 {
        let value = self.status("RssAnon:").expect("a process");
        value.trim_end_matches(" kB").parse::<u64>().expect("a size") << 10
    }

    fn parent(self) -> Option<Self> {
        self.status("PPid:")?.parse().ok().map(Self)
    }

    /// The rest of the line that begins with `name` in the process's `status` file.
    fn status(self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().to_owned())
    }

    fn mentions(self, text: &[u8]) -> bool {
        ["cmdline", "environ"].iter().any(|file| {
            let content = fs::read(format!("/proc/{}/{file}", self.0)).unwrap_or_default();
            content.windows(text.len()).any(|window| window == text)
        })
    }
}

/// The state in the text of a `stat` file.
fn state(stat: &str) -> Option<char> {
    // The process name, in parentheses, may contain any character; the state is the first field
    // after it.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The live processes that have `state_dir` on their command line or in their environment.
pub(crate) fn processes_of(state_dir: &Path) -> Vec<Pid> {
    let text = state_dir.as_os_str().as_encoded_bytes();
    all().filter(|pid| pid.mentions(text) && pid.is_alive()).collect()
}

fn all() -> impl Iterator<Item = Pid> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    names.filter(move |pid| *pid != own).map(Pid)
}
