//! What is measured, and how often.

use anyhow::{Context, Result, bail, ensure};

use super::contender::Contender;

/// How the pages of a clone lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Zeros, the image's pages and the guest's own in runs of 4 MiB, which begin anywhere in a chunk of 2 MiB.
    Clustered,
    /// Mixed page by page.
    Scattered,
}

impl Layout {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Clustered, Self::Scattered];

    /// As it is chosen, and as it stands above its table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Clustered => "clustered",
            Self::Scattered => "scattered",
        }
    }

    /// For `lighter run --run-length`.
    pub(crate) const fn run_length(self) -> &'static str {
        match self {
            Self::Clustered => "4M",
            Self::Scattered => "4K",
        }
    }
}

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Clones with the built-in workload.
    pub(crate) guests: usize,
    /// Guests with Linux.
    pub(crate) linux: usize,
    /// Memory of each clone, MiB.
    pub(crate) memory_mib: u64,
    /// Turns of each contender.
    pub(crate) runs: usize,
    /// How the clones' pages lie.
    pub(crate) layouts: Vec<Layout>,
    /// Who takes part.
    pub(crate) contenders: Vec<Contender>,
    /// What everybody may use where lighter does not take part.
    pub(crate) cpu_seconds: Option<f64>,
    /// CPU seconds that lighter's policy gives ksmd, where not what it gives it usually.
    pub(crate) ksmd_seconds: Option<u32>,
}

const OPTIONS: &str =
    "--guests, --linux, --memory-mib, --runs, --layout, --only, --cpu-seconds and --ksmd-seconds";

impl Settings {
    /// Reads the command line; `--bench`, which cargo adds, is ignored.
    ///
    /// # Errors
    /// An option is unknown, or its value makes no sense.
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut settings = Self {
            guests: 8,
            linux: 2,
            memory_mib: 256,
            runs: 1,
            layouts: Layout::ALL.to_vec(),
            contenders: Contender::ALL.to_vec(),
            cpu_seconds: None,
            ksmd_seconds: None,
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            settings.set(&option, &value).with_context(|| format!("{option} {value}"))?;
        }
        ensure!(settings.guests > 1, "clones are two at least");
        ensure!(settings.memory_mib >= 64, "a clone has 64 MiB at least");
        ensure!(settings.runs > 0, "--runs must be at least 1");
        let has_lighter = settings.contenders.contains(&Contender::Lighter);
        ensure!(
            has_lighter || settings.cpu_seconds.is_some(),
            "without lighter, --cpu-seconds says what ksmd may use"
        );
        Ok(settings)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--guests" => self.guests = value.parse()?,
            "--linux" => self.linux = value.parse()?,
            "--memory-mib" => self.memory_mib = value.parse()?,
            "--runs" => self.runs = value.parse()?,
            "--cpu-seconds" => self.cpu_seconds = Some(value.parse()?),
            "--ksmd-seconds" => self.ksmd_seconds = Some(value.parse()?),
            "--layout" => self.layouts = chosen(value, &Layout::ALL, |it| it.name())?,
            "--only" => self.contenders = chosen(value, &Contender::ALL, |it| it.option())?,
            _ => bail!("there are {OPTIONS}"),
        }
        Ok(())
    }

    /// Hot guests among the clones.
    pub(crate) fn hot(&self) -> usize {
        (self.guests / 4).max(1)
    }
}

/// Those of `all` that are named in `text`, in the order of `all`.
fn chosen<T: Copy>(text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<Vec<T>> {
    let names: Vec<&str> = text.split(',').collect();
    if let Some(other) = names.iter().find(|wanted| !all.iter().any(|it| name(*it) == **wanted)) {
        let known: Vec<_> = all.iter().map(|it| name(*it)).collect();
        bail!("there is no {other}, only {}", known.join(", "));
    }
    Ok(all.iter().copied().filter(|it| names.contains(&name(*it))).collect())
}
