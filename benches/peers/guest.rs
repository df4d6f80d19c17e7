//! The Linux guest that both systems run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::settings::GuestPlan;

/// The files and options with which the guest boots.
#[derive(Clone, Debug)]
pub(crate) struct LinuxGuest {
    /// An ELF vmlinux.
    pub(crate) kernel: PathBuf,
    /// The initramfs with the check program.
    pub(crate) initrd: PathBuf,
    /// The kernel's command line.
    pub(crate) cmdline: String,
    /// Guest memory, MiB.
    pub(crate) memory_mib: u64,
    /// Number of vCPUs.
    pub(crate) cpus: u64,
}

impl LinuxGuest {
    /// Finds or makes kernel and initramfs with the scripts in `tests/guest/`.
    ///
    /// # Errors
    /// If a script fails; its messages are on stderr.
    pub(crate) fn prepare(plan: &GuestPlan) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let host = std::fs::read_to_string(folder.join("cmdline"))?;
        let GuestPlan { filled_mib, zero_percent, cpus, halts, first_load } = plan;
        let (random, load, halt) = (100 - zero_percent, first_load.options(), u8::from(*halts));
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 {} mem=256M check.mib={filled_mib} check.random={random} \
             check.threads={cpus} check.halt={halt} {load}",
            host.trim()
        );
        Ok(Self {
            kernel: path_from(&folder.join("kernel.sh"))?,
            initrd: path_from(&folder.join("initramfs.sh"))?,
            cmdline,
            memory_mib: plan.memory_mib(),
            cpus: *cpus,
        })
    }
}

fn path_from(script: &Path) -> Result<PathBuf> {
    let output = Command::new(script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} ended with {}", script.display(), output.status);
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
