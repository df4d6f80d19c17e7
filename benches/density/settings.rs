//! What is measured, and how often.

use anyhow::{Context, Result, bail, ensure};

use super::contender::{Contender, Lot};
use super::knobs;

/// How the pages of a clone lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Zeros, the image's pages and the guest's own in runs of 4 MiB, which begin anywhere in a chunk of 2 MiB, at the same addresses in
    /// all clones.
    Clustered,
    /// Mixed page by page, at the same addresses in all clones.
    Scattered,
    /// Mixed in pieces of 64 KiB, at different addresses in each clone, as files in the page caches of Linux guests.
    Shuffled,
}

impl Layout {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Clustered, Self::Scattered, Self::Shuffled];

    /// As it is chosen, and as it stands above its table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Clustered => "clustered",
            Self::Scattered => "scattered",
            Self::Shuffled => "shuffled",
        }
    }

    /// Options of `lighter run`.
    pub(crate) const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Clustered => &["--run-length", "4M"],
            Self::Scattered => &["--run-length", "4K"],
            Self::Shuffled => &["--run-length", "4M", "--shuffle", "64K"],
        }
    }
}

/// The content of the clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// How pages lie.
    pub(crate) layout: Layout,
    /// Share of pages of zeros, percent.
    pub(crate) zero_percent: u64,
}

impl Case {
    /// In a few words, which also name its folder.
    pub(crate) fn name(self) -> String {
        format!("{}-{}", self.layout.name(), self.zero_percent)
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
    /// Shares of zeros in the clones' memory, percent.
    pub(crate) zero_percents: Vec<u64>,
    /// Who takes part.
    pub(crate) contenders: Vec<Contender>,
    /// Who was chosen, but cannot take part on this kernel.
    pub(crate) skipped: Vec<Contender>,
    /// Seed of the order of turns.
    pub(crate) seed: u64,
    /// What each may use where lighter does not take part.
    pub(crate) cpu_seconds: Option<f64>,
    /// CPU seconds that lighter's policy gives ksmd, where not what it gives it usually.
    pub(crate) ksmd_seconds: Option<u32>,
}

const OPTIONS: &str = "--guests, --linux, --memory-mib, --runs, --layout, --zeros, --only, --seed, --cpu-seconds and --ksmd-seconds";

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
            zero_percents: vec![25],
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
        ensure!(settings.guests != 1, "one clone has no equal: --guests must be 0, or at least 2");
        ensure!(settings.guests + settings.linux > 1, "there must be at least 2 guests");
        ensure!(settings.memory_mib >= 64, "--memory-mib must be at least 64");
        ensure!(settings.runs > 0, "--runs must be at least 1");
        ensure!(
            settings.zero_percents.iter().all(|percent| *percent <= 65),
            "--zeros must be at most 65 percent: 35 percent are the image's"
        );
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
            "--layout" => self.layouts = chosen(value, &Layout::ALL, |it| it.name())?,
            "--zeros" => {
                let percents = value.split(',').map(str::parse);
                self.zero_percents = percents.collect::<Result<_, _>>()?;
            }
            "--only" => self.contenders = chosen(value, &Contender::ALL, |it| it.option())?,
            _ => bail!("unknown; the options are {OPTIONS}"),
        }
        Ok(())
    }

    /// Each layout with each share of zeros; without clones, which alone have them, the first.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let of = |layout: &Layout| {
            let layout = *layout;
            self.zero_percents.iter().map(move |percent| Case { layout, zero_percent: *percent })
        };
        let cases = self.layouts.iter().flat_map(of);
        cases.take(if self.guests == 0 { 1 } else { usize::MAX }).collect()
    }

    /// Clones that write all over their memory: the first.
    pub(crate) fn hot(&self) -> usize {
        quarter(self.guests)
    }

    /// Clones that read all over their memory, and write nothing: those after the hot ones.
    pub(crate) fn read_hot(&self) -> usize {
        quarter(self.guests)
    }

    /// All guests that read, by their places among all, clones first.
    pub(crate) fn readers(&self) -> Vec<usize> {
        let clones = self.hot()..self.hot() + self.read_hot();
        clones.chain(self.guests..self.guests + self.linux_readers()).collect()
    }

    /// Guests of Linux that read their page cache: the first.
    pub(crate) fn linux_readers(&self) -> usize {
        quarter(self.linux)
    }
}

/// At least one, where there are any.
fn quarter(guests: usize) -> usize {
    if guests == 0 { 0 } else { (guests / 4).max(1) }
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
