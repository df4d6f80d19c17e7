//! A guest with a disk, run by one of the systems. Its serial console is its process's standard
//! input and output.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::bench::usage;

/// Limit for a guest to boot, or to answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Size of the disk in bytes; the program in the guest uses all of it.
const DISK_BYTES: usize = 64 << 20;

/// What the disks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    /// An image in qcow2.
    Image,
}

impl Format {
    /// The format's name in QEMU, and the ending of its files in lighter.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Image => "qcow2",
        }
    }

    /// Makes a disk at `path`, all of which has content.
    fn create(self, path: &Path) -> Result<()> {
        let (mut file, content) = (File::create_new(path)?, vec![0x5a; DISK_BYTES]);
        if self == Self::Raw {
            return Ok(file.write_all(&content)?);
        }
        let open = || File::options().read(true).write(true).open(path)?.try_into();
        Qcow2::<Storage>::create_builder(open()?).size(DISK_BYTES as u64).create()?;
        let image: Qcow2<Storage> = Qcow2::open_image(open()?, true)?;
        let image = FormatAccess::new(image);
        image.write(&content, 0)?;
        Ok(image.flush()?)
    }
}

/// The disks of all guests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disks {
    pub(crate) format: Format,
    /// The cache mode, as lighter and QEMU call it.
    pub(crate) cache: &'static str,
}

/// A VMM with a disk engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// QEMU with its default engine, a pool of threads.
    QemuThreads,
    /// QEMU with io_uring.
    QemuIoUring,
    /// lighter with io_uring.
    LighterIoUring,
    /// lighter with plain system calls.
    LighterSync,
}

impl System {
    /// All systems, in the order of the table.
    pub(crate) const ALL: [Self; 4] =
        [Self::QemuThreads, Self::QemuIoUring, Self::LighterIoUring, Self::LighterSync];

    /// The system's name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::QemuThreads => "QEMU, threads",
            Self::QemuIoUring => "QEMU, io_uring",
            Self::LighterIoUring => "lighter, io_uring",
            Self::LighterSync => "lighter, sync",
        }
    }

    /// Part of the name of the system's vCPU threads.
    fn vcpu_mark(self) -> &'static str {
        match self {
            Self::QemuThreads | Self::QemuIoUring => "/KVM",
            Self::LighterIoUring | Self::LighterSync => "vcpu",
        }
    }

    fn command(self, disk: &str, disks: Disks, folder: &Path) -> Command {
        let (format, cache) = (disks.format.name(), disks.cache);
        let (program, engine) = match self {
            Self::QemuThreads => ("qemu-system-x86_64", "threads"),
            Self::QemuIoUring => ("qemu-system-x86_64", "io_uring"),
            Self::LighterIoUring => (env!("CARGO_BIN_EXE_lighter"), "io_uring"),
            Self::LighterSync => (env!("CARGO_BIN_EXE_lighter"), "sync"),
        };
        let mut command = Command::new(program);
        match self {
            Self::QemuThreads | Self::QemuIoUring => command
                .args(["-name", "guest,debug-threads=on", "-accel", "kvm", "-cpu", "kvm64"])
                .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=off,acpi=off"])
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
                .args(["-smp", "1", "-m", "128", "-serial", "stdio", "-drive"])
                .arg(format!(
                    "file={disk},if=none,id=disk,format={format},cache={cache},aio={engine}"
                ))
                .args(["-device", "virtio-blk-device,drive=disk"]),
            Self::LighterIoUring | Self::LighterSync => command
                .arg("--state-dir")
                .arg(folder.join(engine))
                .args(["run", "--cpus", "1", "--memory", "128M", "--acpi", "off", "--disk"])
                .arg(format!("{disk},cache={cache},engine={engine}")),
        };
        command
    }

    fn kernel_options(self) -> [&'static str; 3] {
        match self {
            Self::QemuThreads | Self::QemuIoUring => ["-kernel", "-initrd", "-append"],
            Self::LighterIoUring | Self::LighterSync => ["--kernel", "--initrd", "--cmdline"],
        }
    }
}

/// A line of the guest's report about its disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskLine {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) microseconds: u64,
}

impl DiskLine {
    fn parse(line: &str) -> Option<Self> {
        let fields = line.trim().strip_prefix("disk ")?;
        let value = |name: &str| {
            let field = fields.split(' ').find_map(|field| field.strip_prefix(name));
            field?.strip_prefix('=')?.parse().ok()
        };
        let (count, bytes, errors) = (value("count")?, value("bytes")?, value("errors")?);
        Some(Self { count, bytes, errors, microseconds: value("us")? })
    }
}

/// A running guest; killed when dropped.
pub(crate) struct Guest {
    system: System,
    child: Child,
    keys: ChildStdin,
    lines: Receiver<String>,
}

impl Guest {
    /// Starts the guest, which then boots.
    ///
    /// # Errors
    /// If the system does not run here.
    pub(crate) fn start(
        system: System,
        disks: Disks,
        kernel: &Path,
        initrd: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let name = system.name().replace([' ', ','], "-");
        let disk = folder.join(name).with_extension(disks.format.name());
        disks.format.create(&disk)?;
        let options = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/cmdline");
        let options = std::fs::read_to_string(options)?;
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 {} mem=80M check.mib=1 check.rate=0 check.halt=1",
            options.trim()
        );
        let mut command = system.command(&disk.display().to_string(), disks, folder);
        let [kernel_option, initrd_option, cmdline_option] = system.kernel_options();
        command.arg(kernel_option).arg(kernel).arg(initrd_option).arg(initrd);
        command.arg(cmdline_option).arg(cmdline);
        let log = File::create(folder.join("log"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", system.name()))?;
        let keys = child.stdin.take().context("its console cannot be typed on")?;
        let output = child.stdout.take().context("its console cannot be read")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self { system, child, keys, lines })
    }

    /// Waits for the guest's first line, and asks it to be silent from then on.
    ///
    /// # Errors
    /// If the guest does not boot.
    pub(crate) fn await_boot(&mut self) -> Result<()> {
        self.wait_for(|line| line.trim().starts_with("check tick=").then_some(()))?;
        self.type_letter(b's')
    }

    /// The system's name in the table.
    pub(crate) fn name(&self) -> &'static str {
        self.system.name()
    }

    /// Continues the guest's process.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn wake(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops the guest's process, so that it uses no CPU time.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn sleep(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Types `letter` and waits for the guest's line about its disk.
    ///
    /// # Errors
    /// If the guest does not answer.
    pub(crate) fn ask(&mut self, letter: u8) -> Result<DiskLine> {
        self.type_letter(letter)?;
        self.wait_for(DiskLine::parse)
    }

    /// CPU seconds of the guest's process so far, without vCPU threads.
    ///
    /// # Errors
    /// If the process has ended.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        usage::cpu_seconds_without_vcpus(self.child.id(), self.system.vcpu_mark())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    fn type_letter(&mut self, letter: u8) -> Result<()> {
        self.keys.write_all(&[letter])?;
        Ok(self.keys.flush()?)
    }

    fn wait_for<T>(&self, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some(found) = found(&line) {
                        return Ok(found);
                    }
                }
                Err(error) => bail!("{} says nothing: {error}", self.name()),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The process may have exited on its own, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
