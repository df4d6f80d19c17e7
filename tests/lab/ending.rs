//! The lab itself: several labs run side by side, and one that ends leaves nothing behind, however
//! it ends.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::fixtures::{holds, lab_command, lab_folder, until};

/// A second lab beside that of the other tests, with a host that is booting, and the process that
/// owns the lab.
struct Second {
    name: String,
    owner: Child,
    supervisor: u32,
}

impl Second {
    fn up(name: &str) -> Self {
        let owner = Command::new("sleep").arg("3600").spawn().expect("a process");
        let name = format!("{name}-{}", std::process::id());
        let mut up = lab_command(&name, &["up", "1"]);
        up.env("LAB_OWNER", owner.id().to_string()).stderr(Stdio::null());
        let mut booting = up.spawn().expect("scripts/lab");
        let pid = lab_folder(&name).join("host1/pid");
        until("the host has power", || holds(pid.exists(), booting.try_wait()));
        booting.kill().and_then(|()| booting.wait()).expect("a child");
        let supervisor = fs::read_to_string(lab_folder(&name).join("supervisor"));
        let supervisor = supervisor.expect("a lab that is up").trim().parse().expect("a PID");
        let second = Self { name, owner, supervisor };
        let is_there = |part| second.processes().iter().any(|line| line.contains(part));
        assert!(is_there("_supervise") && is_there("qemu-system"), "{:?}", second.processes());
        second
    }

    fn folder(&self) -> PathBuf {
        lab_folder(&self.name)
    }

    /// The command lines of the lab's processes: those in its supervisor's session, and the
    /// emulators, which run in sessions of their own.
    fn processes(&self) -> Vec<String> {
        let (session, folder) = (self.supervisor.to_string(), self.folder().display().to_string());
        let found = [["--session", &session], ["--full", &folder]].map(|which| {
            let found = Command::new("pgrep").args(which).arg("--list-full").output();
            String::from_utf8_lossy(&found.expect("procps is installed").stdout).into_owned()
        });
        found.concat().lines().map(str::to_owned).collect()
    }

    /// Asserts that none of the lab's processes is left.
    fn runs_no_more(&self) {
        until("the lab is gone", || {
            let left = self.processes();
            let listed = lab_command(&self.name, &["ls"]).output().expect("scripts/lab");
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            holds(left.is_empty() && !listed.contains(&self.name), (left, listed))
        });
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // The lab ends with its owner, whether or not the test passed.
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

#[test]
fn a_lab_ends_with_its_owner() {
    let mut lab = Second::up("owned");
    lab.owner.kill().and_then(|()| lab.owner.wait()).expect("a child");
    lab.runs_no_more();
    until("its folder is gone", || holds(!lab.folder().exists(), lab.folder()));
}

#[test]
fn a_lab_whose_supervisor_is_killed_leaves_no_process() {
    let lab = Second::up("kept");
    Command::new("kill").args(["-KILL", &lab.supervisor.to_string()]).status().expect("kill");
    lab.runs_no_more();
    // A killed supervisor leaves files until the next lab starts, or this one is taken down.
    lab_command(&lab.name, &["down"]).status().expect("scripts/lab");
    assert!(!lab.folder().exists(), "{:?}", lab.folder());
}
