//! lighter with one guest, which migrates back and forth between two nodes on this host.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::guest::LinuxGuest;
use super::peer::{Course, Estimated, Peer, Transfer};
use super::place::Place;
use super::settings::Mode;
use support::ask;
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
/// Interval at which a migration's progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(2);

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
    pub(crate) fn boot(guest: &LinuxGuest, places: [Place; 2], folder: &Path) -> Result<Self> {
        let states = [folder.join("host-a"), folder.join("host-b")];
        let [first, second] = &states;
        let names = |place: &Place| ["localhost".to_owned(), place.address().to_owned()];
        let [place, other] = places;
        let here = |place: &Place| lighter_at(place, first);
        here(&place).args(["certs", "init"]).args(names(&place)).run()?;
        let certs = second.join("certs");
        here(&place).args(["certs", "host"]).args(names(&other)).arg("--out").arg(certs).run()?;
        let [first, second] = states;
        let hosts = [Host::start(first, place)?, Host::start(second, other)?];
        let memory = format!("{}M", guest.memory_mib);
        hosts[0]
            .lighter()
            .args(["run", "--name", GUEST, "--detach", "--cpus", &guest.cpus.to_string()])
            .args(["--memory", &memory, "--acpi", "off", "--on-reboot", "stop"])
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
        self.hosts[self.here].lighter().args([verb, GUEST]).run().map(drop)
    }

    /// The command that migrates the guest to the other host.
    fn migration(&self, course: &Course) -> Command {
        let (source, destination) = (&self.hosts[self.here], &self.hosts[1 - self.here]);
        let mut command = source.lighter();
        command
            .args(["migrate", GUEST, &destination.address(), "--json"])
            .args(["--downtime", &format!("{}ms", course.downtime_limit_ms())])
            .args(["--on-stall", course.on_stall.name()])
            .args(["--timeout", &format!("{}s", course.patience.as_secs())]);
        if course.ways > 1 {
            command.args(["--via", &destination.place.addresses[..course.ways].join(",")]);
        }
        command
    }
}

impl Peer for Lighter {
    fn here(&self) -> usize {
        self.here
    }

    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn pause(&mut self) -> Result<()> {
        self.verb("pause")
    }

    fn resume(&mut self) -> Result<()> {
        self.verb("resume")
    }

    /// Makes the estimate, if there is to be one. The node starts the destination when the
    /// migration arrives.
    fn prepare(&mut self, course: &Course) -> Result<()> {
        match course.mode {
            Mode::Precopy | Mode::Postcopy => Ok(()),
            Mode::Estimate => self.migration(course).arg("--estimate").run().map(drop),
        }
    }

    fn migrate(&mut self, course: &Course) -> Result<Option<Transfer>> {
        let (source, destination) = (&self.hosts[self.here], &self.hosts[1 - self.here]);
        let nodes_before = (source.node_cpu_seconds()?, destination.node_cpu_seconds()?);
        let sampler = CpuSampler::start(source.guest_pid()?)?;
        let mut running = self.migration(course);
        let running = running.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = running.spawn().context("cannot start lighter")?;
        if course.mode == Mode::Postcopy {
            source.hand_over_first(&mut running)?;
        }
        let done = running.wait_with_output()?;
        let source_cpu_seconds = sampler.finish()? + source.node_cpu_seconds()? - nodes_before.0;
        let complaint = String::from_utf8_lossy(&done.stderr);
        let report: Value = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("lighter's migration has no report: {complaint}"))?;
        if report["error"]["reason"] == "timeout" {
            return Ok(None);
        }
        ensure!(done.status.success(), "lighter's migration failed: {complaint}");
        let arrived = usage::cpu_seconds_without_vcpus(destination.guest_pid()?, VCPU_MARK)?;
        let destination_cpu_seconds = arrived + destination.node_cpu_seconds()? - nodes_before.1;
        let downtime = Duration::try_from_secs_f64(figure(&report["downtime_seconds"])?)?;
        let phases = report["phases"].as_array().context("the report lacks phases")?;
        eprintln!("  lighter's hand-over, ms: {}", hand_over(&report)?);
        let transfer = Transfer {
            total: Duration::try_from_secs_f64(figure(&report["total_seconds"])?)?,
            downtime,
            pause: downtime,
            wire_bytes: figure(&report["transfer"]["wire_bytes"])? as u64,
            source_cpu_seconds,
            destination_cpu_seconds,
            is_postcopy: phases.iter().any(|phase| phase["phase"] == "postcopy"),
            estimate: estimated(&report["estimate"])?,
        };
        self.console = destination.console()?;
        self.here = 1 - self.here;
        Ok(Some(transfer))
    }

    fn overhead_bytes(&self) -> Result<u64> {
        usage::overhead_bytes(self.hosts[self.here].guest_pid()?, self.memory_bytes)
    }
}

/// Returns what the time without the guest was spent on, in milliseconds, the last round, and the
/// rate of the first.
fn hand_over(report: &Value) -> Result<String> {
    let step = |name: &str| {
        Ok(format!("{name} {:.1}", 1e3 * figure(&report["standstill"][format!("{name}_seconds")])?))
    };
    let steps: Result<Vec<_>> =
        ["pause", "flush", "save", "send", "ready"].map(step).into_iter().collect();
    let phase = |name: &str| {
        let found = report["phases"].as_array()?.iter().find(|phase| phase["phase"] == name)?;
        Some(format!("{name} {:.1}", 1e3 * found["seconds"].as_f64()?))
    };
    let phases: Vec<_> = ["commit", "resume"].into_iter().filter_map(phase).collect();
    let rounds = report["rounds"].as_array().context("the report lacks rounds")?;
    let last = rounds.last().map(|round| format!("last round {} pages", round["pages"]));
    let rate = |round: &Value| {
        let megabits = round["wire_bytes"].as_f64()? * 8.0 / 1e6;
        Some(format!("first round {:.0} Mbit/s", megabits / round["seconds"].as_f64()?))
    };
    let first = rounds.first().and_then(rate);
    Ok([steps?, phases, Vec::from_iter(last.into_iter().chain(first))].concat().join(", "))
}

impl Drop for Lighter {
    fn drop(&mut self) {
        if let Err(error) = self.verb("stop") {
            eprintln!("lighter's guest may still run: {error:#}");
        }
    }
}

fn figure(value: &Value) -> Result<f64> {
    value.as_f64().context("lighter's report lacks a figure")
}

/// What an estimate said; none if it saw no end of the migration, or there was none.
fn estimated(value: &Value) -> Result<Option<Estimated>> {
    if value.is_null() {
        return Ok(None);
    }
    Ok(Some(Estimated {
        total_seconds: figure(&value["total_seconds"])?,
        downtime_seconds: figure(&value["downtime_seconds"])?,
        wire_bytes: figure(&value["wire_bytes"])?,
    }))
}

/// The program in `place`, with `state` as its state folder.
fn lighter_at(place: &Place, state: &Path) -> Command {
    place.within(lighter(state))
}

/// A node with a state folder of its own.
struct Host {
    state: PathBuf,
    place: Place,
    node: Node,
}

impl Host {
    fn start(state: PathBuf, place: Place) -> Result<Self> {
        let node = Node::start_by(lighter_at(&place, &state), &state, place.listens_on())?;
        Ok(Self { state, place, node })
    }

    fn lighter(&self) -> Command {
        lighter_at(&self.place, &self.state)
    }

    /// The HOST:PORT at which its node is reached on the first cable.
    fn address(&self) -> String {
        format!("{}:{}", self.place.address(), self.node.port())
    }

    fn guest_folder(&self) -> PathBuf {
        self.state.join("guests").join(GUEST)
    }

    /// Hands the guest over before the rest of its memory, once that has been sent once, unless the
    /// migration ends before.
    fn hand_over_first(&self, migration: &mut Child) -> Result<()> {
        let socket = self.guest_folder().join("api.sock");
        while migration.try_wait()?.is_none() {
            // The process ends with the migration.
            let Ok(answer) = ask(&socket, "GET", "/v1/guest/migration", None) else {
                return Ok(());
            };
            // None before the first round has ended.
            if answer.body["progress"]["expected_downtime_seconds"].is_number() {
                // Refused if the guest is being handed over already.
                let _ = ask(&socket, "PUT", "/v1/guest/migration/postcopy", None);
                return Ok(());
            }
            thread::sleep(PROGRESS_INTERVAL);
        }
        Ok(())
    }

    fn guest_pid(&self) -> Result<u32> {
        let answer = self.lighter().args(["show", GUEST, "--json"]).run()?;
        let shown: Value = serde_json::from_str(&answer)?;
        let pid = shown["pid"].as_u64().or_else(|| shown["guest"]["pid"].as_u64());
        u32::try_from(pid.context("`lighter show` tells no pid")?).context("pid")
    }

    fn node_cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds(self.node.pid())
    }

    fn console(&self) -> Result<Console> {
        lighter_console::of_guest(&self.guest_folder())
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
