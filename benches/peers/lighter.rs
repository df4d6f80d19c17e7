//! lighter with one guest, which migrates back and forth between two nodes on this host.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::guest::LinuxGuest;
use super::peer::{Peer, Transfer};
use super::settings::Variant;
use support::bench::console::Console;
use support::bench::lighter_console;
use support::bench::program::{Node, Run, lighter};
use support::bench::usage;

const GUEST: &str = "bench";
/// Part of the name of lighter's vCPU threads.
const VCPU_MARK: &str = "vcpu";
/// Interval at which the CPU time of the source's process is sampled: the process ends with the
/// migration, so it cannot be read afterwards.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

/// lighter with one guest and two hosts.
pub(crate) struct Lighter {
    hosts: [Host; 2],
    here: usize,
    console: Console,
    memory_bytes: u64,
}

impl Lighter {
    /// Starts two nodes, and the guest on the first; the guest then boots.
    ///
    /// # Errors
    /// If lighter does not run here.
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

    /// Does nothing: the node starts the destination when the migration arrives.
    fn prepare(&mut self, _: Variant) -> Result<()> {
        Ok(())
    }

    fn migrate(&mut self, _: Variant) -> Result<Transfer> {
        let (source, destination) = (&self.hosts[self.here], &self.hosts[1 - self.here]);
        let nodes_before = (source.node_cpu_seconds()?, destination.node_cpu_seconds()?);
        let sampler = CpuSampler::start(source.guest_pid()?)?;
        let answer = lighter(&source.state)
            .args(["migrate", GUEST, destination.node.address(), "--json"])
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

/// A node with a state folder of its own.
struct Host {
    state: PathBuf,
    node: Node,
}

impl Host {
    fn start(state: PathBuf) -> Result<Self> {
        let node = Node::start(&state)?;
        Ok(Self { state, node })
    }

    fn guest_pid(&self) -> Result<u32> {
        let answer = lighter(&self.state).args(["show", GUEST, "--json"]).run()?;
        let shown: Value = serde_json::from_str(&answer)?;
        let pid = shown["pid"].as_u64().or_else(|| shown["guest"]["pid"].as_u64());
        u32::try_from(pid.context("`lighter show` tells no pid")?).context("pid")
    }

    fn node_cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds(self.node.pid())
    }

    fn console(&self) -> Result<Console> {
        lighter_console::of_guest(&self.state.join("guests").join(GUEST))
    }
}

/// Samples the CPU time of a process that is about to end.
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
        // If the process has ended, so has the thread.
        let _ = self.stop.send(());
        self.thread.join().ok().context("the sampler panicked")
    }
}
