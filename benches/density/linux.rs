//! The guests of Linux: booted once, which takes a minute where KVM emulates their kernel, and restored from files after that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::console::Console;
use super::lighter_console;
use super::program::{Run, lighter};

/// Longest time for a boot to the check program, with its memory filled.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
/// Memory that the check program fills, of 128 MiB, of which the kernel has 80.
const FILLED: &str = "check.mib=40 check.random=40 check.text=20 check.rate=0 check.halt=1";

/// Files that guests are restored from.
#[derive(Debug)]
pub(crate) struct SavedGuests {
    files: Vec<PathBuf>,
}

impl SavedGuests {
    /// Boots `count` guests at once, and saves them below `folder`.
    ///
    /// # Errors
    /// They do not boot.
    pub(crate) fn boot(count: usize, folder: &Path) -> Result<Self> {
        if count == 0 {
            return Ok(Self { files: Vec::new() });
        }
        eprintln!("booting {count} guests of Linux");
        let state = folder.join("boot");
        let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let options = std::fs::read_to_string(guests.join("cmdline"))?;
        let cmdline = format!("console=ttyS0 quiet panic=-1 {} mem=80M {FILLED}", options.trim());
        let (kernel, initrd) = (script(&guests, "kernel.sh")?, script(&guests, "initramfs.sh")?);
        let names: Vec<_> = (1..=count).map(|number| format!("linux-{number}")).collect();
        for name in &names {
            lighter(&state)
                .args(["run", "--detach", "--name", name, "--cpus", "1", "--memory", "128M"])
                .args(["--acpi", "off", "--merge-domain", "clones", "--hugepages", "thp"])
                .args(["--cmdline", &cmdline, "--kernel", &kernel, "--initrd", &initrd])
                .run()?;
        }
        let mut files = Vec::new();
        for name in &names {
            let mut console = lighter_console::of_guest(&state.join("guests").join(name))?;
            console.wait_for_boot(BOOT_PATIENCE)?;
            // Lines that nobody asked for would be work of their own.
            console.type_letter(b's')?;
            let file = folder.join(format!("{name}.lighter"));
            lighter(&state).args(["save", name]).arg(&file).run()?;
            files.push(file);
        }
        Ok(Self { files })
    }

    /// Starts them all in the state folder `state`. Returns their names.
    ///
    /// # Errors
    /// lighter does not start them.
    pub(crate) fn restore(&self, state: &Path) -> Result<Vec<String>> {
        let names = (1..=self.files.len()).map(|number| format!("linux-{number}"));
        let restore = |(name, file): (String, &PathBuf)| {
            lighter(state).args(["restore", "--detach", "--name", &name]).arg(file).run()?;
            Ok(name)
        };
        names.zip(&self.files).map(restore).collect()
    }
}

/// A running guest of Linux.
pub(crate) struct LinuxGuest {
    console: Console,
    name: String,
}

impl LinuxGuest {
    /// The guest with this name in the state folder `state`.
    ///
    /// # Errors
    /// It has no console.
    pub(crate) fn attach(state: &Path, name: &str) -> Result<Self> {
        let console = lighter_console::of_guest(&state.join("guests").join(name))?;
        Ok(Self { console, name: name.to_owned() })
    }

    /// Has it check all that its check program wrote.
    ///
    /// # Errors
    /// It does not answer, or its memory is not as it wrote it.
    pub(crate) fn check(&mut self) -> Result<()> {
        let line = self.console.ask(b'v', |line| line.verified > 0)?;
        ensure!(line.errors == 0, "{} pages of {} are damaged", line.errors, self.name);
        Ok(())
    }
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
