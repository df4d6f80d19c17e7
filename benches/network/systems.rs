//! The two systems, each with a guest that echoes what it receives (`tests/guest/relay`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::lan::Lan;
use support::bench::usage;

/// Guest memory, in MiB.
const MEMORY_MIB: u64 = 128;
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The guest's console message once it listens.
const READY: &str = "relay: ready";

/// A system with one guest.
pub(crate) trait System {
    /// The system's name in the table.
    fn name(&self) -> &'static str;

    /// The guest's IP address.
    fn address(&self) -> &'static str;

    /// Everything that the guest has written to its console.
    fn console(&self) -> Result<String>;

    /// CPU seconds of the guest's process so far, without vCPUs.
    fn cpu_seconds(&self) -> Result<f64>;

    /// Waits until the guest listens.
    fn wait_for_boot(&self, patience: Duration) -> Result<()> {
        let began = Instant::now();
        while !self.console()?.contains(READY) {
            ensure!(began.elapsed() < patience, "{}: {}", self.name(), self.console()?);
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// What both systems boot.
struct Boot {
    kernel: String,
    initrd: String,
    cmdline: String,
}

impl Boot {
    fn of(address: &str) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let options = std::fs::read_to_string(folder.join("cmdline"))?;
        let relay = format!("rdinit=/relay relay_address={address}/24");
        Ok(Self {
            kernel: path_from(&folder.join("kernel.sh"))?,
            initrd: path_from(&folder.join("initramfs.sh"))?,
            cmdline: format!("console=ttyS0 quiet {} {relay}", options.trim()),
        })
    }
}

fn path_from(script: &Path) -> Result<String> {
    let output = Command::new(script).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// QEMU with one guest; killed when dropped.
pub(crate) struct Qemu {
    child: Child,
    console: PathBuf,
}

impl Qemu {
    /// Starts QEMU on a tap device of its own; the guest then boots.
    ///
    /// # Errors
    /// If there is no QEMU, or it does not run here.
    pub(crate) fn boot(lan: &Lan, folder: &Path) -> Result<Self> {
        lan.add_tap("tap-qemu")?;
        let (boot, console) = (Boot::of("198.51.100.2")?, folder.join("qemu.console"));
        let child = lan
            .command("qemu-system-x86_64")
            .args(["-name", "guest,debug-threads=on", "-accel", "kvm", "-cpu", "kvm64"])
            .args([
                "-M",
                "microvm,x-option-roms=off,isa-serial=on,rtc=off,acpi=off,auto-kernel-cmdline=on",
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", "1", "-m", &MEMORY_MIB.to_string()])
            .args(["-global", "virtio-mmio.force-legacy=off"])
            .args(["-netdev", "tap,id=net,ifname=tap-qemu,script=no,downscript=no,vhost=off"])
            .args(["-device", "virtio-net-device,netdev=net,mac=52:54:00:00:00:02"])
            .args(["-serial", &format!("file:{}", console.display()), "-append", &boot.cmdline])
            .args(["-kernel", &boot.kernel, "-initrd", &boot.initrd])
            .stdin(Stdio::null())
            // QEMU complains about each CPU feature that this host lacks.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64: apt-get install qemu-system-x86")?;
        Ok(Self { child, console })
    }
}

impl System for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn address(&self) -> &'static str {
        "198.51.100.2"
    }

    fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned())
    }

    fn cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds_without_vcpus(self.child.id(), "/KVM")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// lighter with one guest, which is ended when this is dropped.
pub(crate) struct Lighter {
    child: Child,
    console: PathBuf,
}

impl Lighter {
    /// Starts a guest on a tap device of its own; it then boots.
    ///
    /// # Errors
    /// If lighter does not run here.
    pub(crate) fn boot(lan: &Lan, folder: &Path) -> Result<Self> {
        lan.add_tap("tap-lighter")?;
        let (boot, console) = (Boot::of("198.51.100.3")?, folder.join("lighter.console"));
        let mut child = lan
            .command(env!("CARGO_BIN_EXE_lighter"))
            .arg("--state-dir")
            .arg(folder.join("host"))
            .args(["run", "--name", "bench", "--memory", &format!("{MEMORY_MIB}M")])
            .args(["--acpi", "off", "--balloon", "off", "--vhost-net", "off"])
            .args(["--net", "tap=tap-lighter,mac=52:54:00:00:00:03", "--cmdline", &boot.cmdline])
            .args(["--kernel", &boot.kernel, "--initrd", &boot.initrd])
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .stderr(Stdio::inherit())
            .spawn()?;
        if let Some(status) = child.try_wait()? {
            bail!("lighter ended with {status}");
        }
        Ok(Self { child, console })
    }
}

impl System for Lighter {
    fn name(&self) -> &'static str {
        "lighter"
    }

    fn address(&self) -> &'static str {
        "198.51.100.3"
    }

    fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.console)?).into_owned())
    }

    fn cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds_without_vcpus(self.child.id(), "vcpu")
    }
}

impl Drop for Lighter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
