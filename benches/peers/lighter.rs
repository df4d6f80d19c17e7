//! lighter with one guest, which goes back and forth between two nodes on this host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::console::Console;
use super::guest::LinuxGuest;
use super::peer::{Peer, Transfer};
use super::settings::Variant;
use super::usage;

const GUEST: &str = "bench";
/// How lighter names its vCPU threads.
const VCPU_MARK: &str = "vcpu";
/// How long a node may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// The source's process ends with the migration, so its CPU time is read so often until then.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// lighter with one guest.
pub(crate) struct Lighter {
    hosts: [Host; 2],
    here: usize,
    console: Console,
    memory_bytes: u64,
}

impl Lighter {
    /// Starts two nodes, and the guest on the first; it boots.
    ///
    /// # Errors
    /// lighter does not run here.
    pub(crate) fn boot(guest: &LinuxGuest, folder: &Path) -> Result<Self> {
        let states = [folder.join("host-a"), folder.join("host-b")];
        let names = ["localhost", "127.0.0.1"];
        lighter(&states[0]).args(["certs", "init"]).args(names).run()?;
        let certs = states[1].join("certs");
        lighter(&states[0]).args(["certs", "host"]).args(names).arg("--out").arg(certs).run()?;
        let [first, second] = states;
        let hosts = [Host::start(first)?, Host::start(second)?];
        lighter(&hosts[0].state)
            .args(["run", "--name", GUEST, "--detach", "--cpus", "1"])
            .args([
                "--memory",
                &format!("{}M", guest.memory_mib),
                "--acpi",
                "off",
                "--on-reboot",
                "stop",
            ])
            .args(["--cmdline", &guest.cmdline])
            .arg("--kernel")
            .arg(&guest.kernel)
            .arg("--initrd")
            .arg(&guest.initrd)
            .run()?;
        let console = hosts[0].console()?;
        Ok(Self { hosts, here: 0, console, memory_bytes: guest.memory_mib << 20 })
    }

    fn verb(&self, verb: &str) -> Result<()> {
        lighter(&self.hosts[self.here].state).args([verb, GUEST]).run().map(drop)
    }
}

impl Peer for Lighter {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn pause(&mut self) -> Result<()> {
        self.verb("pause")
    }

    fn resume(&mut self) -> Result<()> {
        self.verb("resume")
    }

    /// Nothing: its node starts the destination when the migration arrives.
    fn prepare(&mut self, _: Variant) -> Result<()> {
        Ok(())
    }

    fn migrate(&mut self, _: Variant) -> Result<Transfer> {
        let (source, destination) = (&self.hosts[self.here], &self.hosts[1 - self.here]);
        let nodes_before = (source.node_cpu_seconds()?, destination.node_cpu_seconds()?);
        let sampler = CpuSampler::start(source.guest_pid()?)?;
        let answer = lighter(&source.state)
            .args(["migrate", GUEST, &destination.address, "--json"])
            .run()
            .context("lighter's migration failed")?;
        let source_cpu_seconds = sampler.finish()? + source.node_cpu_seconds()? - nodes_before.0;
        let arrived = usage::cpu_seconds_without_vcpus(destination.guest_pid()?, VCPU_MARK)?;
        let destination_cpu_seconds = arrived + destination.node_cpu_seconds()? - nodes_before.1;
        let report: Value = serde_json::from_str(&answer).context("lighter's report is no JSON")?;
        let total = report["total_seconds"].as_f64().context("the report lacks total_seconds")?;
        let sent = &report["transfer"]["wire_bytes"];
        let transfer = Transfer {
            total: Duration::try_from_secs_f64(total)?,
            wire_bytes: sent.as_u64().context("the report lacks transfer.wire_bytes")?,
            source_cpu_seconds,
            destination_cpu_seconds,
        };
        self.console = destination.console()?;
        self.here = 1 - self.here;
        Ok(transfer)
    }

    fn overhead_bytes(&self) -> Result<u64> {
        usage::overhead_bytes(self.hosts[self.here].guest_pid()?, self.memory_bytes)
    }
}

impl Drop for Lighter {
    fn drop(&mut self) {
        if let Err(error) = self.verb("stop") {
            eprintln!("lighter's guest may still run: {error:#}");
        }
    }
}

/// A node with a state folder of its own, ended when dropped.
struct Host {
    state: PathBuf,
    node: Child,
    address: String,
}

impl Host {
    fn start(state: PathBuf) -> Result<Self> {
        let log = File::create(state.with_extension("log"))?;
        let node = lighter(&state)
            .args(["node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut host = Self { state, node, address: String::new() };
        let start = Instant::now();
        while host.address.is_empty() {
            ensure!(start.elapsed() < PATIENCE, "the node did not start");
            thread::sleep(POLL_INTERVAL);
            let file = std::fs::read(host.state.join("node.json")).unwrap_or_default();
            let node: Value = serde_json::from_slice(&file).unwrap_or_default();
            host.address = node["listen"].as_str().unwrap_or_default().to_owned();
        }
        Ok(host)
    }

    fn guest_pid(&self) -> Result<u32> {
        let answer = lighter(&self.state).args(["show", GUEST, "--json"]).run()?;
        let shown: Value = serde_json::from_str(&answer)?;
        let pid = shown["pid"].as_u64().or_else(|| shown["guest"]["pid"].as_u64());
        u32::try_from(pid.context("`lighter show` tells no pid")?).context("pid")
    }

    fn node_cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds(self.node.id())
    }

    fn console(&self) -> Result<Console> {
        let guest = self.state.join("guests").join(GUEST);
        let log = guest.join("console.log");
        let open = File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let alive = Arc::new(());
        let output = Tail { file: open, alive: Arc::downgrade(&alive) };
        Ok(Console::new(output, Keys { socket: guest.join("api.sock"), _alive: alive }))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

/// A file that is still being written, for as long as anyone wants to know.
struct Tail {
    file: File,
    alive: Weak<()>,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.alive.strong_count() > 0 {
            match self.file.read(buffer)? {
                0 => thread::sleep(POLL_INTERVAL),
                count => return Ok(count),
            }
        }
        Ok(0)
    }
}

/// Types on the console through the guest's API.
struct Keys {
    socket: PathBuf,
    _alive: Arc<()>,
}

impl Write for Keys {
    fn write(&mut self, keys: &[u8]) -> io::Result<usize> {
        let body = serde_json::json!({ "input": String::from_utf8_lossy(keys) }).to_string();
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "PUT /v1/guest/console HTTP/1.1\r\nHost: guest\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 2") {
            Ok(keys.len())
        } else {
            Err(io::Error::other(format!("the guest takes no input: {answer}")))
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows the CPU time of a process that is about to end.
struct CpuSampler {
    stop: Sender<()>,
    thread: JoinHandle<f64>,
}

impl CpuSampler {
    fn start(pid: u32) -> Result<Self> {
        let (stop, stopped): (_, Receiver<()>) = channel();
        let start = usage::cpu_seconds_without_vcpus(pid, VCPU_MARK)?;
        let thread = thread::spawn(move || {
            let mut last = start;
            while stopped.recv_timeout(SAMPLE_INTERVAL).is_err() {
                match usage::cpu_seconds_without_vcpus(pid, VCPU_MARK) {
                    Ok(seconds) => last = seconds.max(last),
                    Err(_) => break,
                }
            }
            last - start
        });
        Ok(Self { stop, thread })
    }

    fn finish(self) -> Result<f64> {
        // The thread has ended already when the process has.
        let _ = self.stop.send(());
        self.thread.join().ok().context("the sampler broke down")
    }
}

/// The program under test with its state in `state`.
fn lighter(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lighter"));
    command.env("LIGHTER_STATE_DIR", state);
    command
}

/// Runs a command to its end.
trait Run {
    /// What it printed.
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
