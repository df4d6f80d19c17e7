//! The lab itself: several side by side, and nothing left of one that ends, however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::fixtures::{holds, lab_command, until};

/// A lab beside that of the other tests, whose host is booting, and the process that owns it.
struct Second {
    name: String,
    owner: Child,
}

impl Second {
    fn up(name: &str) -> Self {
        let owner = Command::new("sleep").arg("3600").spawn().expect("a process");
        let second = Self { name: format!("{name}-{}", std::process::id()), owner };
        let mut up = lab_command(&second.name, &["up", "1"]);
        up.env("LAB_OWNER", second.owner.id().to_string()).stderr(Stdio::null());
        let mut booting = up.spawn().expect("scripts/lab");
        let pid = second.folder().join("host1/pid");
        until("the host has power", || holds(pid.exists(), booting.try_wait()));
        booting.kill().and_then(|()| booting.wait()).expect("a child");
        second
    }

    fn folder(&self) -> PathBuf {
        std::env::temp_dir().join(format!("lighter-lab-{}", self.name))
    }

    fn supervisor(&self) -> String {
        fs::read_to_string(self.folder().join("supervisor")).expect("a lab that is up")
    }

    /// No process and no folder is left of it.
    fn leaves_nothing(mut self) {
        until("the lab is gone", || {
            let left = processes_of(&self.folder());
            let listed = lab_command(&self.name, &["ls"]).output().expect("scripts/lab");
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            holds(left.is_empty() && !listed.contains(&self.name), (left, listed))
        });
        // What was killed leaves files until another lab is started, or ended.
        lab_command(&self.name, &["down"]).status().expect("scripts/lab");
        assert!(!self.folder().exists(), "{:?}", self.folder());
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

/// The command lines of processes that were told of `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let text = folder.display().to_string();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&text)).collect()
}

#[test]
fn a_lab_ends_with_its_owner() {
    let mut lab = Second::up("owned");
    lab.owner.kill().and_then(|()| lab.owner.wait()).expect("a child");
    lab.leaves_nothing();
}

#[test]
fn a_lab_whose_supervisor_is_killed_leaves_no_process() {
    let lab = Second::up("kept");
    Command::new("kill").args(["-KILL", lab.supervisor().trim()]).status().expect("kill");
    lab.leaves_nothing();
}
