//! The settings of the benchmark: what is measured, and how often.

use anyhow::{Context, Result, bail};

/// Guest memory for the kernel and in reserve, in MiB.
const FREE_MIB: u64 = 512;

/// What the guest does during a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// The load's name in the table.
    pub(crate) name: &'static str,
    /// The command of the check program that sets this load.
    pub(crate) command: u8,
}

/// All loads that are measured.
pub(crate) const LOADS: [Load; 3] = [
    Load { name: "idle", command: b'0' },
    Load { name: "64 MiB at 2,000 pages/s", command: b'2' },
    Load { name: "64 MiB at 20,000 pages/s", command: b'h' },
];

/// A system under measurement, with its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// lighter: QUIC, TLS 1.3.
    Lighter,
    /// QEMU over TLS on TCP.
    QemuTls,
    /// QEMU over TCP without encryption.
    QemuTcp,
}

impl Variant {
    /// The variant's name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::QemuTls => "QEMU TLS",
            Self::QemuTcp => "QEMU TCP",
        }
    }
}

/// The settings of the benchmark: what is measured, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Measured migrations of each system under each load.
    pub(crate) runs: usize,
    /// The variants, in the order of their turns.
    pub(crate) variants: Vec<Variant>,
    /// Guest memory with random content, in MiB.
    pub(crate) filled_mib: u64,
    /// Total guest memory, in MiB.
    pub(crate) memory_mib: u64,
}

impl Settings {
    /// Reads the command line; `--bench`, which cargo adds, is ignored.
    ///
    /// # Errors
    /// If an option is unknown, or its value is not a number.
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut settings = Self {
            runs: 5,
            variants: vec![Variant::QemuTls, Variant::Lighter, Variant::QemuTcp],
            filled_mib: 512,
            memory_mib: 512 + FREE_MIB,
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--runs" => settings.runs = value.parse().context("--runs needs a number")?,
                "--memory-mib" => {
                    settings.filled_mib = value.parse().context("--memory-mib needs a number")?;
                    settings.memory_mib = settings.filled_mib + FREE_MIB;
                }
                "--only" => settings.keep_only(&value)?,
                _ => bail!("unknown option {option}: there are --runs, --memory-mib and --only"),
            }
        }
        if settings.runs == 0 {
            bail!("--runs must be at least 1");
        }
        Ok(settings)
    }

    fn keep_only(&mut self, system: &str) -> Result<()> {
        match system {
            "lighter" => self.variants = vec![Variant::Lighter],
            "qemu" => self.variants = vec![Variant::QemuTls, Variant::QemuTcp],
            _ => bail!("--only takes lighter or qemu, not {system}"),
        }
        Ok(())
    }

    /// Whether any of `variants` takes part.
    pub(crate) fn has(&self, variants: &[Variant]) -> bool {
        self.variants.iter().any(|variant| variants.contains(variant))
    }
}
