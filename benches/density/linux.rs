//! The guests of Linux: booted once, which takes a minute where KVM emulates their kernel, and
//! restored from files after that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::settings::Settings;
use support::bench::console::Console;
use support::bench::lighter_console;
use support::bench::program::{Run, lighter};

/// Longest time for a boot to the check program, with its memory filled.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// Memory of a guest. The kernel has 80 MiB of it, of which its cache takes [`CACHED_MIB`]; the
/// check program fills 12 MiB with content of the guest's own.
const MEMORY: &str = "96M";
const FILLED: &str = "mem=80M check.mib=12 check.random=80 check.rate=0 check.halt=1";
/// The part of the disk that is read into the cache: the same disk in all, but in an order of each
/// guest's own.
const CACHED_MIB: usize = 24;

/// Files that guests are restored from.
#[derive(Debug)]
pub(crate) struct SavedGuests {
    files: Vec<PathBuf>,
    /// Sums over their caches.
    sums: Vec<u64>,
}

impl SavedGuests {
    /// Boots all guests at once, and saves them below `folder`.
    ///
    /// # Errors
    /// They do not boot.
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
            // Lines that nobody asked for would be work of their own.
            console.type_letter(b's')?;
            let file = folder.join(format!("{name}.lighter"));
            lighter(&state).args(["save", name]).arg(&file).run()?;
            saved.files.push(file);
        }
        Ok(saved)
    }

    /// Starts them all in the state folder `state`. Returns them with their names.
    ///
    /// # Errors
    /// lighter does not start them.
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

/// A running guest of Linux.
pub(crate) struct LinuxGuest {
    console: Console,
    name: String,
    sum: u64,
}

impl LinuxGuest {
    /// The guest with this name in the state folder `state`, whose cache has this sum.
    ///
    /// # Errors
    /// It has no console.
    fn attach(state: &Path, name: &str, sum: u64) -> Result<Self> {
        let console = lighter_console::of_guest(&state.join("guests").join(name))?;
        Ok(Self { console, name: name.to_owned(), sum })
    }

    /// Has it read its cache from now on.
    ///
    /// # Errors
    /// It has no console any more.
    pub(crate) fn read_for_ever(&mut self) -> Result<()> {
        self.console.type_letter(b'L')
    }

    /// Pages of its cache that it has read.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn pages_read(&mut self) -> Result<u64> {
        Ok(self.console.ask(b'i', |_| true)?.read)
    }

    /// Has it check all that its check program wrote, and its cache.
    ///
    /// # Errors
    /// It does not answer, or its memory is not as it wrote it.
    pub(crate) fn check(&mut self) -> Result<()> {
        // It was checked once before it was saved.
        let line = self.console.ask(b'v', |line| line.verified > 1)?;
        ensure!(line.sum == self.sum, "the cache of {} is damaged", self.name);
        ensure!(line.errors == 0, "{} pages of {} are damaged", line.errors, self.name);
        Ok(())
    }
}

/// Content of a disk: bytes that do not repeat (xorshift64).
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

/// Runs a script of the test guest's, which prints the path of what it found or made.
fn script(folder: &Path, name: &str) -> Result<String> {
    let script = folder.join(name);
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
