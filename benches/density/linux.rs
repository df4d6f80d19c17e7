//! The Linux guests: booted once, which takes a minute where KVM emulates their kernel, and then
//! restored from files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::settings::Settings;
use support::bench::console::Console;
use support::bench::lighter_console;
use support::bench::program::{Run, lighter};

/// Limit of a boot until the check program has filled its memory.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// Memory of a guest. The kernel has 80 MiB of it, of which its cache takes [`CACHED_MIB`]; the
/// check program fills 12 MiB with content that is unique to the guest.
const MEMORY: &str = "96M";
const FILLED: &str = "mem=80M check.mib=12 check.random=80 check.rate=0 check.halt=1";
/// The part of the disk that is read into the cache: the same disk in all guests, but each reads it
/// in an order of its own.
const CACHED_MIB: usize = 24;

/// The files from which guests are restored.
#[derive(Debug)]
pub(crate) struct SavedGuests {
    files: Vec<PathBuf>,
    /// The checksums of the guests' caches.
    sums: Vec<u64>,
}

impl SavedGuests {
    /// Boots all guests at once, and saves them below `folder`.
    ///
    /// # Errors
    /// If a guest does not boot.
    pub(crate) fn boot(settings: &Settings, folder: &Path) -> Result<Self> {
        let count = settings.linux;
        let mut saved = Self { files: Vec::new(), sums: Vec::new() };
        if count == 0 {
            return Ok(saved);
        }
        eprintln!("booting {count} guests of Linux");
        let state = folder.join("boot");
        let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let options = std::fs::read_to_string(guests.join("cmdline"))?;
        let options = format!("console=ttyS0 quiet panic=-1 {} {FILLED}", options.trim());
        let (kernel, initrd) = (script(&guests, "kernel.sh")?, script(&guests, "initramfs.sh")?);
        let names: Vec<_> = (1..=count).map(|number| format!("linux-{number}")).collect();
        let disk = folder.join("disk.raw");
        std::fs::write(&disk, noise(CACHED_MIB << 20))?;
        let disk = format!("{},ro", disk.display());
        for (number, name) in names.iter().enumerate() {
            let seed = number + 2;
            let cmdline =
                format!("{options} check.cache={CACHED_MIB} check.order={seed} check.own={seed}");
            lighter(&state)
                .args([
                    "run", "--detach", "--name", name, "--cpus", "1", "--memory", MEMORY, "--disk",
                    &disk,
                ])
                .args(["--acpi", "off", "--merge-domain", "clones", "--hugepages", "thp"])
                .args(["--cmdline", &cmdline, "--kernel", &kernel, "--initrd", &initrd])
                .run()?;
        }
        for name in &names {
            let mut console = lighter_console::of_guest(&state.join("guests").join(name))?;
            console.wait_for_boot(BOOT_PATIENCE)?;
            saved.sums.push(console.ask(b'v', |line| line.verified > 0)?.sum);
            // Regular output would cause work that is not part of the measurement.
            console.type_letter(b's')?;
            let file = folder.join(format!("{name}.lighter"));
            lighter(&state).args(["save", name]).arg(&file).run()?;
            saved.files.push(file);
        }
        Ok(saved)
    }

    /// Restores all guests in the state folder `state`. Returns them with their names.
    ///
    /// # Errors
    /// If lighter cannot start one.
    pub(crate) fn restore(&self, state: &Path) -> Result<Vec<(String, LinuxGuest)>> {
        let names = (1..=self.files.len()).map(|number| format!("linux-{number}"));
        let restore = |((name, file), sum): ((String, &PathBuf), &u64)| {
            lighter(state).args(["restore", "--detach", "--name", &name]).arg(file).run()?;
            let guest = LinuxGuest::attach(state, &name, *sum)?;
            Ok((name, guest))
        };
        names.zip(&self.files).zip(&self.sums).map(restore).collect()
    }
}

/// A running Linux guest.
pub(crate) struct LinuxGuest {
    console: Console,
    name: String,
    sum: u64,
}

impl LinuxGuest {
    /// Attaches to the guest `name` in the state folder `state`, whose cache has the checksum
    /// `sum`.
    ///
    /// # Errors
    /// If the guest has no console.
    fn attach(state: &Path, name: &str, sum: u64) -> Result<Self> {
        let console = lighter_console::of_guest(&state.join("guests").join(name))?;
        Ok(Self { console, name: name.to_owned(), sum })
    }

    /// Has the guest read its cache from now on.
    ///
    /// # Errors
    /// If the guest's console is closed.
    pub(crate) fn read_for_ever(&mut self) -> Result<()> {
        self.console.type_letter(b'L')
    }

    /// Number of pages of its cache that the guest has read.
    ///
    /// # Errors
    /// If the guest does not answer.
    pub(crate) fn pages_read(&mut self) -> Result<u64> {
        Ok(self.console.ask(b'i', |_| true)?.read)
    }

    /// Has the guest check everything that its check program wrote, and its cache.
    ///
    /// # Errors
    /// If the guest does not answer, or its memory or cache is damaged.
    pub(crate) fn check(&mut self) -> Result<()> {
        // The first check took place before the guest was saved.
        let line = self.console.ask(b'v', |line| line.verified > 1)?;
        ensure!(line.sum == self.sum, "the cache of {} is damaged", self.name);
        ensure!(line.errors == 0, "{} pages of {} are damaged", line.errors, self.name);
        Ok(())
    }
}

/// Content of a disk: pseudorandom bytes without repetition (xorshift64).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = (0..length / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// Runs a script of the test guest and returns the path that it prints, of what it found or made.
fn script(folder: &Path, name: &str) -> Result<String> {
    let script = folder.join(name);
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
