//! The settings of the benchmark: what is measured, and how often.

use anyhow::{Context, Result, bail, ensure};

use super::contender::{Contender, Lot};
use super::knobs;

/// The layout of a clone's pages, or that there are no clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Runs of 4 MiB of zeros, of the image's pages and of the guest's own, which begin anywhere in
    /// a chunk of 2 MiB, at the same addresses in all clones.
    Clustered,
    /// A mix page by page, at the same addresses in all clones.
    Scattered,
    /// A mix of pieces of 64 KiB, at different addresses in each clone, like files in the page
    /// caches of Linux guests.
    Shuffled,
    /// No clones, only Linux guests.
    Linux,
}

impl Layout {
    const ALL: [Self; 4] = [Self::Clustered, Self::Scattered, Self::Shuffled, Self::Linux];

    /// The layout's name on the command line and above its table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Clustered => "clustered",
            Self::Scattered => "scattered",
            Self::Shuffled => "shuffled",
            Self::Linux => "linux",
        }
    }

    /// Options of `lighter run` for this layout.
    pub(crate) const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Clustered => &["--run-length", "4M"],
            Self::Scattered => &["--run-length", "4K"],
            Self::Shuffled => &["--run-length", "4M", "--shuffle", "64K"],
            Self::Linux => &[],
        }
    }
}

/// The kind of guests, and the content of the clones among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The layout of the clones' pages.
    pub(crate) layout: Layout,
    /// Share of zero pages, in percent.
    pub(crate) zero_percent: u64,
}

impl Case {
    /// The case's name on the command line, and of its folder: `clustered-25`, `linux`.
    pub(crate) fn name(self) -> String {
        match self.layout {
            Layout::Linux => self.layout.name().to_owned(),
            layout => format!("{}-{}", layout.name(), self.zero_percent),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let (name, percent) = text.split_once('-').unwrap_or((text, "0"));
        let layout = chosen(name, &Layout::ALL, |it| it.name())?[0];
        let zero_percent =
            percent.parse().with_context(|| format!("{percent:?} is no percentage"))?;
        ensure!(zero_percent <= 65, "zeros are at most 65 percent: 35 percent are the image's");
        Ok(Self { layout, zero_percent })
    }
}

/// The settings of the benchmark: what is measured, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Number of clones with the built-in workload.
    pub(crate) guests: usize,
    /// Number of Linux guests.
    pub(crate) linux: usize,
    /// Memory of each clone, in MiB.
    pub(crate) memory_mib: u64,
    /// Turns of each contender.
    pub(crate) runs: usize,
    /// The cases to measure.
    pub(crate) cases: Vec<Case>,
    /// The contenders that take part.
    pub(crate) contenders: Vec<Contender>,
    /// The contenders that were chosen but cannot run on this kernel.
    pub(crate) skipped: Vec<Contender>,
    /// Seed for the order of turns.
    pub(crate) seed: u64,
    /// CPU seconds that each contender may use if lighter does not take part.
    pub(crate) cpu_seconds: Option<f64>,
    /// CPU seconds that lighter's policy gives ksmd, if not the default.
    pub(crate) ksmd_seconds: Option<u32>,
}

const OPTIONS: &str = "--guests, --linux, --memory-mib, --runs, --cases, --only, --seed, --cpu-seconds and --ksmd-seconds";
const CASES: &str = "clustered-25,scattered-25,shuffled-25,shuffled-5,shuffled-0,linux";

impl Settings {
    /// Reads the command line; `--bench`, which cargo adds, is ignored.
    ///
    /// # Errors
    /// If an option is unknown, or its value is invalid.
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut settings = Self {
            guests: 8,
            linux: 2,
            memory_mib: 256,
            runs: 1,
            cases: CASES.split(',').map(Case::parse).collect::<Result<_>>()?,
            contenders: Contender::ALL.to_vec(),
            skipped: Vec::new(),
            seed: Lot::any_seed(),
            cpu_seconds: None,
            ksmd_seconds: None,
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            settings.set(&option, &value).with_context(|| format!("{option} {value}"))?;
        }
        ensure!(settings.guests > 1, "one clone has no equal: --guests must be at least 2");
        ensure!(settings.memory_mib >= 64, "--memory-mib must be at least 64");
        let is_linux = |case: &Case| case.layout == Layout::Linux;
        ensure!(
            settings.linux > 1 || !settings.cases.iter().any(is_linux),
            "without clones, --linux must be at least 2"
        );
        ensure!(settings.runs > 0, "--runs must be at least 1");
        let has_lighter = settings.contenders.contains(&Contender::Lighter);
        ensure!(
            has_lighter || settings.cpu_seconds.is_some(),
            "without lighter, --cpu-seconds must say what ksmd may use"
        );
        if !knobs::has_advisor() {
            settings.skipped = vec![Contender::Advisor];
            settings.skipped.retain(|contender| settings.contenders.contains(contender));
            settings.contenders.retain(|contender| *contender != Contender::Advisor);
        }
        Ok(settings)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--guests" => self.guests = value.parse()?,
            "--linux" => self.linux = value.parse()?,
            "--memory-mib" => self.memory_mib = value.parse()?,
            "--runs" => self.runs = value.parse()?,
            "--seed" => self.seed = value.parse()?,
            "--cpu-seconds" => self.cpu_seconds = Some(value.parse()?),
            "--ksmd-seconds" => self.ksmd_seconds = Some(value.parse()?),
            "--cases" => {
                self.cases = value.split(',').map(Case::parse).collect::<Result<_>>()?;
            }
            "--only" => self.contenders = chosen(value, &Contender::ALL, |it| it.option())?,
            _ => bail!("unknown; the options are {OPTIONS}"),
        }
        Ok(())
    }

    /// Number of clones in `case`.
    pub(crate) fn clones(&self, case: Case) -> usize {
        if case.layout == Layout::Linux { 0 } else { self.guests }
    }

    /// Number of clones that write all over their memory, which are the first ones. The same
    /// number, after them, reads all over theirs.
    pub(crate) fn hot(&self, case: Case) -> usize {
        quarter(self.clones(case))
    }

    /// Indices of the guests that read, clones first: as many clones as are hot, after those;
    /// without clones, Linux guests.
    pub(crate) fn readers(&self, case: Case) -> Vec<usize> {
        let hot = self.hot(case);
        if self.clones(case) > 0 {
            (hot..2 * hot).collect()
        } else {
            (0..quarter(self.linux)).collect()
        }
    }
}

/// A quarter of the guests, and at least one if there are any.
fn quarter(guests: usize) -> usize {
    if guests == 0 { 0 } else { (guests / 4).max(1) }
}

/// The elements of `all` that are named in `text`, in the order of `all`.
fn chosen<T: Copy>(text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<Vec<T>> {
    let names: Vec<&str> = text.split(',').collect();
    if let Some(other) = names.iter().find(|wanted| !all.iter().any(|it| name(*it) == **wanted)) {
        let known: Vec<_> = all.iter().map(|it| name(*it)).collect();
        bail!("there is no {other}, only {}", known.join(", "));
    }
    Ok(all.iter().copied().filter(|it| names.contains(&name(*it))).collect())
}
