//! A booted Linux guest, saved to a file. The file is made once, and again only when one of its
//! inputs has changed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::witness::CheckConsole;
use crate::paths::target_folder;
use crate::{Pair, repository, scratch_folder, wait};

/// Limit of a boot, which takes a minute where KVM emulates the guest's kernel; the machine may
/// also be busy.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(600);

/// Only one thread makes an image at a time.
static MAKING: Mutex<()> = Mutex::new(());

/// A guest that was booted and then saved.
#[derive(Debug)]
pub struct Image {
    file: String,
    pages: u64,
}

/// The inputs of an image: what the guest is booted with.
#[derive(Debug, Hash)]
struct Recipe {
    name: &'static str,
    /// Format of the kernel, as `kernel.sh` names it.
    kernel: &'static str,
    /// More arguments of `lighter run`.
    arguments: &'static [&'static str],
    cpus: u8,
    options: &'static str,
    mib: u64,
}

impl Image {
    /// A guest with one vCPU, which halts between two iterations of the check program, a hundred
    /// times a second. It was booted with ACPI tables, and listens to its power button and to port
    /// 1024 of its vsock device.
    pub fn halting() -> Self {
        Self::of(&Recipe {
            name: "halting",
            kernel: "vmlinux",
            arguments: &["--machine", "pci", "--vsock", "3"],
            cpus: 1,
            options: "check.halt=1 check.button=1 check.vsock=1024 check.rate=1000",
            mib: 8,
        })
    }

    /// A guest with two vCPUs, one of which is never idle. It was booted from a bzImage, without
    /// ACPI tables, and stops when it resets.
    pub fn busy() -> Self {
        Self::of(&Recipe {
            name: "busy",
            kernel: "bzImage",
            arguments: &["--acpi", "off", "--on-reboot", "stop"],
            cpus: 2,
            options: "check.rate=2000",
            mib: 24,
        })
    }

    /// The image file, for `lighter restore`.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Number of pages that the check program checks.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    fn of(recipe: &Recipe) -> Self {
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let [kernel, initrd] = [script("kernel.sh", &[recipe.kernel]), script("initramfs.sh", &[])];
        let cmdline = cmdline(&format!("mem=80M check.mib={} {}", recipe.mib, recipe.options));
        let folder = scratch_folder().join("linux-guest");
        let file = folder.join(format!(
            "{}-{:016x}",
            recipe.name,
            digest(recipe, &cmdline, &[&kernel, &initrd])
        ));
        if !file.exists() {
            fs::create_dir_all(&folder).expect("a folder");
            forget_older(&folder, recipe.name);
            boot_and_save(recipe, &[&kernel, &initrd, &cmdline], &file);
        }
        Self { file: file.display().to_string(), pages: recipe.mib * 256 }
    }
}

fn boot_and_save(recipe: &Recipe, [kernel, initrd, cmdline]: &[&str; 3], file: &Path) {
    let pair = Pair::without_nodes();
    let cpus = recipe.cpus.to_string();
    let arguments = [
        "run",
        "--detach",
        "--name",
        "linux",
        "--memory",
        "128M",
        "--cpus",
        &cpus,
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        cmdline,
    ];
    pair.a.run(&[&arguments, recipe.arguments].concat()).ok();
    let witness = CheckConsole::of(&pair.a, "linux", recipe.mib * 256);
    wait::within(BOOT_PATIENCE, "linux boots and checks itself", || {
        witness.last_line().ok_or_else(|| witness.console())
    });
    pair.a.run(&["save", "linux", &file.display().to_string()]).ok();
}

/// The folder with the scripts that make a guest's kernel and initramfs.
fn guest_folder() -> PathBuf {
    repository().join("tests/guest")
}

/// The kernel command line of a guest: what every guest needs here, and `task`.
pub fn cmdline(task: &str) -> String {
    let options = fs::read_to_string(guest_folder().join("cmdline")).expect("a command line");
    format!("console=ttyS0 quiet {} {task}", options.trim())
}

/// Runs a script of the guest folder and returns the path that it prints, of what it made or found.
pub fn script(name: &str, arguments: &[&str]) -> String {
    // One script at a time: the next test finds what this one has built.
    static RUNNING: Mutex<()> = Mutex::new(());
    let _one = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(guest_folder().join(name))
        .args(arguments)
        .env("CARGO_TARGET_DIR", target_folder())
        .output()
        .expect("a script");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}

/// Hashes everything that a saved guest depends on: what was booted, and the machine that booted
/// and saved it.
fn digest(recipe: &Recipe, cmdline: &str, files: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (recipe, cmdline).hash(&mut hasher);
    let mut files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
    collect(&repository().join("vmm-core/src"), &mut files);
    files.sort();
    for file in files {
        let content = fs::read(&file);
        content.unwrap_or_else(|error| panic!("{}: {error}", file.display())).hash(&mut hasher);
    }
    hasher.finish()
}

/// Collects every file below `folder`.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, into) } else { into.push(path) }
    }
}

fn forget_older(folder: &Path, name: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(name) {
            fs::remove_file(entry.path()).expect("an older image is removed");
        }
    }
}
