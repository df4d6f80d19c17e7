//! Two temporary hosts for a demo: folders, certificates, nodes and a guest. All of it is removed
//! afterwards.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use migrate::quic::Authority;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use super::guest_probe::GuestProbe;
use crate::api::ApiClient;
use crate::cli::host::DemoArgs;
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::node::NodeFile;
use crate::state_dir::StateDir;

/// The guest's name on both hosts.
const GUEST: &str = "demo";

/// How long a node may take until it listens.
const NODE_PATIENCE: Duration = Duration::from_secs(20);

/// How long processes may take to exit when asked; after that they are killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Time between two checks whether the guest's process has ended.
const EXIT_INTERVAL: Duration = Duration::from_millis(100);

/// How much of a failed process's messages is shown, in bytes.
const MESSAGES_BYTES_MAX: usize = 2000;

/// Returns the guest's name.
///
/// # Errors
/// Never; the name is a valid one.
pub(super) fn guest_name() -> Result<GuestName> {
    GUEST.parse()
}

/// One of the two hosts.
#[derive(Debug)]
pub(super) struct Host {
    name: &'static str,
    state: StateDir,
    address: Option<SocketAddr>,
    node: Option<Child>,
    guest: Option<Child>,
}

impl Host {
    fn new(name: &'static str, root: &Path) -> Result<Self> {
        Ok(Self {
            name,
            state: StateDir::new(&root.join(name))?,
            address: None,
            node: None,
            guest: None,
        })
    }

    /// Returns `a` or `b`.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the host's state folder.
    pub(super) fn state(&self) -> &StateDir {
        &self.state
    }

    /// Returns the address on which its node listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Returns a client of the guest, which may or may not be on this host.
    pub(super) fn guest_client(&self) -> ApiClient {
        ApiClient::new(&self.state.root().join("guests").join(GUEST).join("api.sock"))
    }

    /// Waits until no guest is left on this host; false if one is left after `END_PATIENCE`.
    pub(super) async fn is_empty_soon(&self) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        while self.state.live_guests().is_ok_and(|guests| !guests.is_empty()) {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        true
    }

    fn log(&self, process: &str) -> PathBuf {
        self.state.root().join(format!("{process}.log"))
    }

    /// Starts this program with `arguments` on this host; its messages go to a file.
    fn spawn(&self, process: &str, arguments: &[String]) -> Result<Child> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let log =
            File::create(self.log(process)).context("cannot write in the temporary folder")?;
        Command::new(program)
            .arg("--state-dir")
            .arg(self.state.root())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the {process} of host {}", self.name))
    }

    fn start_node(&mut self, authority: &Authority) -> Result<()> {
        self.state.create()?;
        let names = [self.name, "localhost", "127.0.0.1"].map(str::to_owned);
        authority.issue(&names)?.save(&self.state.certs())?;
        let arguments = [
            "node",
            "--listen",
            "127.0.0.1:0",
            "--ports",
            "0",
            "--metrics",
            "127.0.0.1:0",
            "--foreign-guests",
            "off",
        ]
        .map(str::to_owned);
        self.node = Some(self.spawn("node", &arguments)?);
        Ok(())
    }

    async fn wait_for_node(&mut self) -> Result<()> {
        let deadline = Instant::now() + NODE_PATIENCE;
        let pid = self.node.as_ref().map_or(0, Child::id);
        loop {
            let text = std::fs::read(self.state.node_file()).unwrap_or_default();
            if let Ok(found) = serde_json::from_slice::<NodeFile>(&text)
                && found.pid == pid
            {
                self.address = Some(found.listen);
                return Ok(());
            }
            if let Some(status) = self.node.as_mut().and_then(|node| node.try_wait().ok().flatten())
            {
                bail!("the node of host {} ended at once ({status})", self.name);
            }
            if Instant::now() > deadline {
                bail!("the node of host {} does not listen", self.name);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Waits until the guest that was started on this host runs.
    ///
    /// # Errors
    /// If its process ends, which says why; or if it does not run before the deadline.
    pub(super) async fn meet_own_guest(&mut self, deadline: Instant) -> Result<GuestProbe> {
        loop {
            match timeout(EXIT_INTERVAL, GuestProbe::meet(self, deadline)).await {
                Ok(met) => return met,
                Err(_not_yet) => self.expect_guest_process()?,
            }
        }
    }

    fn expect_guest_process(&mut self) -> Result<()> {
        let ended = self.guest.as_mut().and_then(|guest| guest.try_wait().ok().flatten());
        let Some(status) = ended else { return Ok(()) };
        let text = std::fs::read_to_string(self.log("guest")).unwrap_or_default();
        let last = text.lines().last().map(|line| line.trim_start_matches("lighter: ").to_owned());
        let message = last.unwrap_or_else(|| format!("the guest's process ended ({status})"));
        Err(ExitWith { exit: Exit::Failed, message }.into())
    }

    /// Returns the last messages of this host's processes.
    fn messages(&self) -> String {
        let mut all = String::new();
        for process in ["node", "guest"] {
            let text = std::fs::read_to_string(self.log(process)).unwrap_or_default();
            let start = text.len().saturating_sub(MESSAGES_BYTES_MAX);
            let tail = text.get(start..).or_else(|| text.lines().last()).unwrap_or_default().trim();
            if !tail.is_empty() {
                all.push_str(&format!("\n--- {process} of host {}:\n{tail}", self.name));
            }
        }
        all
    }

    /// Ends the guests on this host, including those that arrived, then its node.
    fn tear_down(&mut self) {
        let guests = self.state.live_guests().unwrap_or_default();
        let pids: Vec<Pid> =
            guests.iter().filter_map(|guest| pid_of(guest.read_identity().ok()?.pid)).collect();
        let deadline = Instant::now() + END_PATIENCE;
        pids.iter().for_each(|pid| signal_process(*pid, Signal::SIGTERM));
        while guests.iter().any(|guest| guest.is_live()) && Instant::now() < deadline {
            reap(self.guest.as_mut());
            std::thread::sleep(INTERVAL);
        }
        for guest in guests.iter().filter(|guest| guest.is_live()) {
            if let Some(pid) = guest.read_identity().ok().and_then(|identity| pid_of(identity.pid))
            {
                signal_process(pid, Signal::SIGKILL);
            }
        }
        end(self.guest.take());
        end(self.node.take());
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

/// Sends a signal to a process of the demo. A process that has already exited needs none.
fn signal_process(pid: Pid, signal: Signal) {
    let _gone = kill(pid, signal);
}

fn reap(child: Option<&mut Child>) {
    drop(child.map(Child::try_wait));
}

/// Asks a child process to exit, and kills it if it does not.
fn end(child: Option<Child>) {
    let Some(mut child) = child else { return };
    if let (Ok(None), Some(pid)) = (child.try_wait(), pid_of(child.id())) {
        signal_process(pid, Signal::SIGTERM);
    }
    let deadline = Instant::now() + END_PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            drop(child.kill());
            drop(child.wait());
            return;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Both hosts, in a folder that is removed with them.
#[derive(Debug)]
pub(super) struct Stage {
    root: PathBuf,
    /// Host on which the guest starts.
    pub(super) a: Host,
    /// Host to which the guest moves.
    pub(super) b: Host,
}

impl Stage {
    /// Creates the folder, with nothing running yet.
    ///
    /// # Errors
    /// If no temporary folder can be created.
    pub(super) fn new() -> Result<Self> {
        // mkdtemp(3) replaces the last six letters with unique ones.
        let template = std::env::temp_dir().join(format!("lighter-demo-{}", "X".repeat(6)));
        let root = nix::unistd::mkdtemp(&template)
            .with_context(|| format!("cannot create {}", template.display()))?;
        let host = |name| Host::new(name, &root);
        let (a, b) = (host("a")?, host("b")?);
        Ok(Self { root, a, b })
    }

    /// Creates certificates and starts the nodes.
    ///
    /// # Errors
    /// If a node does not start.
    pub(super) async fn raise(&mut self) -> Result<()> {
        let authority = Authority::create()?;
        for host in [&mut self.a, &mut self.b] {
            host.start_node(&authority)?;
        }
        self.a.wait_for_node().await?;
        self.b.wait_for_node().await
    }

    /// Starts the guest on host a.
    ///
    /// # Errors
    /// If its process cannot be started.
    pub(super) fn start_guest(&mut self, args: &DemoArgs) -> Result<()> {
        let pattern = args.pattern.to_possible_value().context("a pattern without a name")?;
        let arguments = [
            "run".to_owned(),
            format!("--name={GUEST}"),
            format!("--memory={}", args.memory),
            format!("--cpus={}", args.cpus),
            format!("--dirty-rate={}", args.dirty_rate),
            format!("--working-set={}", args.working_set),
            format!("--pattern={}", pattern.get_name()),
        ];
        self.a.guest = Some(self.a.spawn("guest", &arguments)?);
        Ok(())
    }

    /// Adds the messages of the processes to an error.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let messages = format!("{}{}", self.a.messages(), self.b.messages());
        if messages.is_empty() || error.is::<ExitWith>() {
            return error;
        }
        anyhow::anyhow!("{error:#}{messages}")
    }

    /// Ends the processes and removes the folder. Does nothing the second time.
    pub(super) fn tear_down(&mut self) {
        self.a.tear_down();
        self.b.tear_down();
        if self.root.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.root)
        {
            tracing::warn!(folder = %self.root.display(), %error, "cannot remove the demo's folder");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.tear_down();
    }
}
