//! QEMU with one guest: one process for each place that the guest has been in.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::credentials::{self, HOST_NAME};
use super::guest::LinuxGuest;
use super::peer::{Peer, Transfer};
use super::qmp::{Qmp, connect_unix};
use super::settings::Variant;
use support::bench::console::Console;
use support::bench::usage;

/// QEMU names its vCPU threads `CPU 0/KVM` with `debug-threads=on`.
const VCPU_MARK: &str = "/KVM";
/// Far above what loopback carries; QEMU's default would limit the migration.
const BANDWIDTH_BYTES_PER_SECOND: u64 = 1 << 40;
/// The default of both QEMU and lighter.
const DOWNTIME_LIMIT_MS: u64 = 300;
const REPORT_ATTEMPTS_MAX: u32 = 1000;
const REPORT_INTERVAL: Duration = Duration::from_millis(5);

/// QEMU with one guest, and the process that it migrates to next.
pub(crate) struct Qemu {
    folder: PathBuf,
    credentials: PathBuf,
    guest: LinuxGuest,
    started: u32,
    here: Process,
    next: Option<(Process, u16)>,
}

impl Qemu {
    /// Starts QEMU; the guest then boots.
    ///
    /// # Errors
    /// If there is no QEMU, or it does not run here.
    pub(crate) fn boot(guest: &LinuxGuest, folder: &Path) -> Result<Self> {
        let credentials = credentials::make(folder)?;
        let here = Process::start(guest, folder, &credentials, 0, &[])?;
        let (folder, guest) = (folder.to_owned(), guest.clone());
        Ok(Self { folder, credentials, guest, started: 1, here, next: None })
    }
}

impl Qemu {
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
}

impl Peer for Qemu {
    fn console(&mut self) -> &mut Console {
        &mut self.here.console
    }

    fn pause(&mut self) -> Result<()> {
        self.here.qmp.execute("stop", &json!({})).map(drop)
    }

    fn resume(&mut self) -> Result<()> {
        self.here.qmp.execute("cont", &json!({})).map(drop)
    }

    fn prepare(&mut self, variant: Variant) -> Result<()> {
        let number = self.started;
        self.started += 1;
        let incoming = ["-incoming", "defer"];
        let mut next =
            Process::start(&self.guest, &self.folder, &self.credentials, number, &incoming)?;
        next.configure(variant, "arriving")?;
        // The port is free now, and no other process on this host wants it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        next.qmp.execute("migrate-incoming", &json!({ "uri": format!("tcp:127.0.0.1:{port}") }))?;
        self.next = Some((next, port));
        Ok(())
    }

    fn migrate(&mut self, variant: Variant) -> Result<Transfer> {
        let (mut next, port) = self.next.take().context("no destination was prepared")?;
        self.here.configure(variant, "leaving")?;
        let before = (self.here.cpu_seconds()?, next.cpu_seconds()?);
        let uri = json!({ "uri": format!("tcp:127.0.0.1:{port}") });
        self.here.qmp.execute("migrate", &uri)?;
        self.here.qmp.wait_for_migration()?;
        next.qmp.wait_for_migration()?;
        let after = (self.here.cpu_seconds()?, next.cpu_seconds()?);
        let report = self.report()?;
        let number = |value: &Value| value.as_u64().context("query-migrate lacks a figure");
        let transfer = Transfer {
            total: Duration::from_millis(number(&report["total-time"])?),
            wire_bytes: number(&report["ram"]["transferred"])?,
            source_cpu_seconds: after.0 - before.0,
            destination_cpu_seconds: after.1 - before.1,
        };
        self.here = next;
        Ok(transfer)
    }

    fn overhead_bytes(&self) -> Result<u64> {
        usage::overhead_bytes(self.here.child.id(), self.guest.memory_mib << 20)
    }
}

/// A QEMU process, killed when dropped.
struct Process {
    child: Child,
    qmp: Qmp,
    console: Console,
}

impl Process {
    fn start(
        guest: &LinuxGuest,
        folder: &Path,
        credentials: &Path,
        number: u32,
        more: &[&str],
    ) -> Result<Self> {
        let qmp = folder.join(format!("qemu-{number}.qmp"));
        let console = folder.join(format!("qemu-{number}.console"));
        let tls = |endpoint: &str, id: &str| {
            let folder = credentials.display();
            format!("tls-creds-x509,id={id},endpoint={endpoint},verify-peer=on,dir={folder}")
        };
        let child = Command::new("qemu-system-x86_64")
            .args(["-name", "guest,debug-threads=on", "-accel", "kvm", "-cpu", "kvm64"])
            .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=off,acpi=off"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", "1", "-m", &guest.memory_mib.to_string()])
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

    fn configure(&mut self, variant: Variant, credentials: &str) -> Result<()> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.qmp.execute("migrate-set-capabilities", &events)?;
        let credentials = if variant == Variant::QemuTls { credentials } else { "" };
        let parameters = json!({
            "tls-creds": credentials,
            "tls-hostname": HOST_NAME,
            "max-bandwidth": BANDWIDTH_BYTES_PER_SECOND,
            "downtime-limit": DOWNTIME_LIMIT_MS,
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
