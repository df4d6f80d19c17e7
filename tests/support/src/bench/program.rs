//! The program under test: its commands and its node.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::built_program;

/// How long a node may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A node on ports that the kernel chooses; ended when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    port: u16,
}

impl Node {
    /// Starts a node for the guests in `state`, which has certificates, and waits until it listens.
    ///
    /// # Errors
    /// If the node does not start within 20 seconds.
    pub fn start(state: &Path) -> Result<Self> {
        Self::start_by(lighter(state), state, "127.0.0.1")
    }

    /// As [`Self::start`], by `program`, which runs lighter in a place that has this `address`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_by(mut program: Command, state: &Path, address: &str) -> Result<Self> {
        let log = File::create(state.with_extension("log"))?;
        let child = program
            .args(["node", "--listen", &format!("{address}:0"), "--metrics", "127.0.0.1:0"])
            .args(["--foreign-guests", "off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut node = Self { child, port: 0 };
        let start = Instant::now();
        while node.port == 0 {
            ensure!(start.elapsed() < PATIENCE, "the node did not start");
            thread::sleep(POLL_INTERVAL);
            let file = std::fs::read(state.join("node.json")).unwrap_or_default();
            let said: Value = serde_json::from_slice(&file).unwrap_or_default();
            let is_its = said["pid"].as_u64() == Some(u64::from(node.pid()));
            let address = said["listen"].as_str().filter(|_| is_its);
            let port = address.and_then(|address| address.rsplit_once(':')?.1.parse().ok());
            node.port = port.unwrap_or_default();
        }
        Ok(node)
    }

    /// The port at which the node takes migrations.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The node's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().map_or(true, |status| status.is_some())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SIGTERM first, so that the node can undo its changes to the host; it fails harmlessly if
        // the node has already exited.
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM);
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < PATIENCE {
            thread::sleep(POLL_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program under test, with `state` as its state folder.
pub fn lighter(state: &Path) -> Command {
    let mut command = Command::new(built_program());
    command.env("LIGHTER_STATE_DIR", state);
    command
}

/// Runs a command to its end; implemented for `Command`.
pub trait Run {
    /// Returns what the command printed.
    ///
    /// # Errors
    /// If the command fails; the error contains the command's stderr.
    fn run(&mut self) -> Result<String>;
}

impl Run for Command {
    fn run(&mut self) -> Result<String> {
        let output = self.stdin(Stdio::null()).output().with_context(|| format!("{self:?}"))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("{self:?} ended with {}: {}", output.status, complaint.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}
