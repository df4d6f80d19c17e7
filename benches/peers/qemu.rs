//! QEMU with one guest: one process for each place that the guest has been in.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::credentials::{self, HOST_NAME};
use super::guest::LinuxGuest;
use super::peer::{Course, Peer, Transfer};
use super::place::Place;
use super::qmp::{Qmp, connect_unix};
use super::settings::{Mode, Variant};
use support::bench::console::Console;
use support::bench::usage;

/// QEMU names its vCPU threads `CPU 0/KVM` with `debug-threads=on`.
const VCPU_MARK: &str = "/KVM";
/// Far above what loopback carries; QEMU's default would limit the migration.
const BANDWIDTH_BYTES_PER_SECOND: u64 = 1 << 40;
/// Limit for a migration to be cancelled, or to complete at its destination too.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
const REPORT_ATTEMPTS_MAX: u32 = 1000;
const REPORT_INTERVAL: Duration = Duration::from_millis(5);

/// The round that begins when all memory has been sent once, as QEMU counts them.
const SECOND_PASS: u64 = 2;

/// QEMU with one guest, and the process that it migrates to next.
pub(crate) struct Qemu {
    folder: PathBuf,
    places: [Place; 2],
    /// Further capabilities of its migrations.
    capabilities: Vec<String>,
    credentials: PathBuf,
    guest: LinuxGuest,
    started: u32,
    /// Which of the places the guest is in.
    here_at: usize,
    here: Process,
    /// The process, and where it listens.
    next: Option<(Process, String)>,
}

impl Qemu {
    /// Starts QEMU; the guest then boots.
    ///
    /// # Errors
    /// If there is no QEMU, or it does not run here.
    pub(crate) fn boot(
        guest: &LinuxGuest,
        places: [Place; 2],
        capabilities: &[String],
        folder: &Path,
    ) -> Result<Self> {
        let credentials = credentials::make(folder)?;
        let files = Files { folder, credentials: &credentials, number: 0 };
        let here = Process::start(guest, &places[0], &files, &[])?;
        let (folder, guest) = (folder.to_owned(), guest.clone());
        let capabilities = capabilities.to_vec();
        Ok(Self {
            folder,
            places,
            capabilities,
            credentials,
            guest,
            started: 1,
            here_at: 0,
            here,
            next: None,
        })
    }

    /// QEMU's figures of the migration that has just completed.
    fn report(&mut self) -> Result<Value> {
        // QEMU announces completion shortly before its figures are final.
        for _ in 0..REPORT_ATTEMPTS_MAX {
            let report = self.here.qmp.execute("query-migrate", &json!({}))?;
            if report["total-time"].as_u64().is_some_and(|ms| ms > 0) {
                return Ok(report);
            }
            std::thread::sleep(REPORT_INTERVAL);
        }
        bail!("QEMU does not say how long its migration took")
    }

    /// Waits until the migration has completed; returns whether it has in time.
    fn completes(&mut self, seen: &mut Seen, course: &Course) -> Result<bool> {
        let end = Instant::now() + course.patience;
        let completed = self.here.qmp.wait_for(end, |event| seen.completion(event, "STOP"))?;
        Ok(completed.is_some())
    }

    /// Hands the guest over before the rest of its memory, once that has been sent once, unless the
    /// migration has completed before, and waits for its end; returns whether it came in time.
    fn hands_over_first(&mut self, seen: &mut Seen, course: &Course) -> Result<bool> {
        let end = Instant::now() + course.patience;
        if self.here.qmp.wait_for(end, |event| seen.first_pass(event))?.is_none() {
            return Ok(false);
        }
        if seen.is_over() {
            return Ok(true);
        }
        self.here.qmp.execute("migrate-start-postcopy", &json!({}))?;
        let has_completed = self.completes(seen, course)?;
        ensure!(
            has_completed || !seen.is_postcopy,
            "QEMU does not send the rest of the guest's memory"
        );
        Ok(has_completed)
    }

    /// Cancels the migration, and waits until the guest is only here.
    fn call_off(&mut self) -> Result<()> {
        self.here.qmp.execute("migrate_cancel", &json!({}))?;
        let end = Instant::now() + CANCEL_PATIENCE;
        let cancelled = |event: &Value| {
            ensure!(
                status(event) != Some("completed"),
                "QEMU's migration ended while it was cancelled"
            );
            Ok((status(event) == Some("cancelled")).then_some(()))
        };
        self.here.qmp.wait_for(end, cancelled)?.context("QEMU does not cancel its migration")
    }
}

/// What the events of a migration have said.
#[derive(Default)]
struct Seen {
    has_completed: bool,
    is_postcopy: bool,
    /// When the guest was stopped, or runs.
    switched: Option<Duration>,
}

impl Seen {
    /// Whether the migration has completed and the guest has been stopped, or runs: those events
    /// come in either order.
    const fn is_over(&self) -> bool {
        self.has_completed && self.switched.is_some()
    }

    /// Whether all memory has been sent once; nothing yet if not.
    fn first_pass(&mut self, event: &Value) -> Result<Option<()>> {
        let is_over = self.completion(event, "STOP")?.is_some();
        let pass = event["data"]["pass"].as_u64().unwrap_or(0);
        let is_second = event["event"] == "MIGRATION_PASS" && pass >= SECOND_PASS;
        Ok((is_over || is_second).then_some(()))
    }

    /// Whether the migration is over; notes the time of the event that is called `switch`.
    fn completion(&mut self, event: &Value, switch: &str) -> Result<Option<()>> {
        if event["event"] == switch {
            let part = |name: &str| event["timestamp"][name].as_u64();
            let (seconds, micros) = (part("seconds"), part("microseconds"));
            let micros = Duration::from_micros(micros.context("an event without a time")?);
            let seconds = Duration::from_secs(seconds.context("an event without a time")?);
            self.switched = Some(seconds + micros);
        }
        match status(event) {
            Some("completed") => self.has_completed = true,
            Some("postcopy-active") => self.is_postcopy = true,
            Some("failed") => bail!("QEMU's migration failed: {event}"),
            _ => {}
        }
        Ok(self.is_over().then_some(()))
    }
}

/// The state of a migration, if that is what the event is about.
fn status(event: &Value) -> Option<&str> {
    event["data"]["status"].as_str().filter(|_| event["event"] == "MIGRATION")
}

impl Peer for Qemu {
    fn here(&self) -> usize {
        self.here_at
    }

    fn console(&mut self) -> &mut Console {
        &mut self.here.console
    }

    fn pause(&mut self) -> Result<()> {
        self.here.qmp.execute("stop", &json!({})).map(drop)
    }

    fn resume(&mut self) -> Result<()> {
        self.here.qmp.execute("cont", &json!({})).map(drop)
    }

    fn prepare(&mut self, course: &Course) -> Result<()> {
        let number = self.started;
        self.started += 1;
        let place = &self.places[1 - self.here_at];
        let files = Files { folder: &self.folder, credentials: &self.credentials, number };
        let mut next = Process::start(&self.guest, place, &files, &["-incoming", "defer"])?;
        next.configure(course, &self.capabilities, "arriving")?;
        // The port is free now, and no other process on this host wants it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let uri = format!("tcp:{}:{port}", place.address());
        next.qmp.execute("migrate-incoming", &json!({ "uri": uri }))?;
        self.next = Some((next, uri));
        Ok(())
    }

    fn migrate(&mut self, course: &Course) -> Result<Option<Transfer>> {
        let (mut next, uri) = self.next.take().context("no destination was prepared")?;
        self.here.configure(course, &self.capabilities, "leaving")?;
        let before = (self.here.cpu_seconds()?, next.cpu_seconds()?);
        self.here.qmp.forget_events();
        next.qmp.forget_events();
        self.here.qmp.execute("migrate", &json!({ "uri": uri }))?;
        let mut seen = Seen::default();
        let has_completed = match course.mode {
            Mode::Precopy | Mode::Estimate => self.completes(&mut seen, course)?,
            Mode::Postcopy => self.hands_over_first(&mut seen, course)?,
        };
        if !has_completed {
            self.call_off()?;
            return Ok(None);
        }
        let mut seen_there = Seen::default();
        let end = Instant::now() + CANCEL_PATIENCE;
        let arrived = next.qmp.wait_for(end, |event| seen_there.completion(event, "RESUME"))?;
        arrived.context("QEMU's destination does not say that the guest has arrived")?;
        let after = (self.here.cpu_seconds()?, next.cpu_seconds()?);
        let report = self.report()?;
        let number = |value: &Value| value.as_u64().context("query-migrate lacks a figure");
        let stopped = seen.switched.context("QEMU has not said when it stopped the guest")?;
        let runs = seen_there.switched.context("QEMU has not said when the guest ran again")?;
        let transfer = Transfer {
            total: Duration::from_millis(number(&report["total-time"])?),
            downtime: Duration::from_millis(number(&report["downtime"])?),
            pause: runs.saturating_sub(stopped),
            wire_bytes: number(&report["ram"]["transferred"])?,
            source_cpu_seconds: after.0 - before.0,
            destination_cpu_seconds: after.1 - before.1,
            is_postcopy: seen.is_postcopy,
            estimate: None,
        };
        self.here = next;
        self.here_at = 1 - self.here_at;
        Ok(Some(transfer))
    }

    fn overhead_bytes(&self) -> Result<u64> {
        usage::overhead_bytes(self.here.child.id(), self.guest.memory_mib << 20)
    }
}

/// Where a process's sockets and credentials are.
struct Files<'a> {
    folder: &'a Path,
    credentials: &'a Path,
    /// Number of the process.
    number: u32,
}

/// A QEMU process, killed when dropped.
struct Process {
    child: Child,
    qmp: Qmp,
    console: Console,
}

impl Process {
    fn start(guest: &LinuxGuest, place: &Place, files: &Files<'_>, more: &[&str]) -> Result<Self> {
        let Files { folder, credentials, number } = files;
        let qmp = folder.join(format!("qemu-{number}.qmp"));
        let console = folder.join(format!("qemu-{number}.console"));
        let tls = |endpoint: &str, id: &str| {
            let folder = credentials.display();
            format!("tls-creds-x509,id={id},endpoint={endpoint},verify-peer=on,dir={folder}")
        };
        let child = place
            .within(Command::new("qemu-system-x86_64"))
            .args(["-name", "guest,debug-threads=on", "-accel", "kvm", "-cpu", "kvm64"])
            .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=off,acpi=off"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", &guest.cpus.to_string(), "-m", &guest.memory_mib.to_string()])
            .args(["-object", &tls("server", "arriving"), "-object", &tls("client", "leaving")])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .arg("-chardev")
            .arg(format!("socket,id=console,path={},server=on,wait=off", console.display()))
            .args(["-serial", "chardev:console", "-append", &guest.cmdline])
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initrd)
            .args(more)
            .stdin(Stdio::null())
            // QEMU complains about each CPU feature that this host lacks.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64: apt-get install qemu-system-x86")?;
        let mut child = Ended(Some(child));
        let qmp = Qmp::connect(&qmp)?;
        let stream = connect_unix(&console)?;
        let console = Console::new(stream.try_clone()?, stream);
        Ok(Self { child: child.0.take().context("QEMU has ended")?, qmp, console })
    }

    /// Sets what both sides of a migration are asked for. Guests that do not let it end are slowed
    /// down, as lighter does by default.
    fn configure(&mut self, course: &Course, more: &[String], credentials: &str) -> Result<()> {
        let is_postcopy = course.mode == Mode::Postcopy;
        let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
        let usual = [
            capability("events", true),
            capability("auto-converge", !is_postcopy),
            capability("postcopy-ram", is_postcopy),
        ];
        let more = more.iter().map(|name| capability(name, true));
        let capabilities: Vec<Value> = usual.into_iter().chain(more).collect();
        let capabilities = json!({ "capabilities": capabilities });
        self.qmp.execute("migrate-set-capabilities", &capabilities)?;
        let credentials = if course.variant == Variant::QemuTls { credentials } else { "" };
        let parameters = json!({
            "tls-creds": credentials,
            "tls-hostname": HOST_NAME,
            "max-bandwidth": BANDWIDTH_BYTES_PER_SECOND,
            "downtime-limit": course.downtime_limit_ms(),
        });
        self.qmp.execute("migrate-set-parameters", &parameters).map(drop)
    }

    fn cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds_without_vcpus(self.child.id(), VCPU_MARK)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process that is killed if the start fails after it.
struct Ended(Option<Child>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    // The process may have exited on its own, which is fine.
    let _ = child.kill();
    let _ = child.wait();
}
