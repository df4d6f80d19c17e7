//! The settings of the benchmark: what is measured, and how often.

use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::link::Link;
use super::load::Load;

/// Guest memory for the kernel and in reserve, in MiB.
pub(crate) const FREE_MIB: u64 = 512;

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
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lighter => "lighter",
            Self::QemuTls => "QEMU TLS",
            Self::QemuTcp => "QEMU TCP",
        }
    }
}

/// The kind of migrations that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Memory first, then the guest.
    Precopy,
    /// After the first round the guest, then the rest of memory.
    Postcopy,
    /// lighter's, each after an estimate of it.
    Estimate,
}

/// What lighter does with a migration that stalls, as `lighter migrate --on-stall` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnStall {
    Throttle,
    Force,
    Postcopy,
}

impl OnStall {
    /// Its name on lighter's command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Force => "force",
            Self::Postcopy => "postcopy",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    Lighter,
    Qemu,
}

/// lighter compared with QEMU, in one run.
#[derive(Debug, Parser)]
pub(crate) struct Settings {
    /// Measured migrations of each system for each guest, link and load.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: u64,
    /// Measure this system alone.
    #[arg(long)]
    only: Option<System>,
    /// What the guests do meanwhile.
    #[arg(long, value_delimiter = ',', default_value = "idle,slow,fast")]
    loads: Vec<Load>,
    /// What connects the hosts: loopback, or rate/round trip/loss, as 100mbit or 1gbit/10ms/0.1%;
    /// 2x before it for two of them, which lighter uses both.
    #[arg(long, value_delimiter = ',', default_value = "loopback")]
    links: Vec<Link>,
    /// Guest memory that is filled, in MiB; guests have 512 MiB more.
    #[arg(long, value_delimiter = ',', default_value = "512")]
    memory_mib: Vec<u64>,
    /// Share of the filled pages that are zero, in percent; the others are random.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100))]
    zeros: u64,
    /// vCPUs of the guests; each has a thread that writes.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=8))]
    cpus: Vec<u64>,
    /// Further capabilities of QEMU's migration that are turned on, as postcopy-preempt.
    #[arg(long, value_delimiter = ',')]
    pub(crate) qemu_capabilities: Vec<String>,
    /// Seconds after which a migration is called off.
    #[arg(long, default_value_t = 600)]
    patience: u64,
    /// Guests whose program sleeps 10 ms at a time instead of spinning; their stalls include it.
    #[arg(long)]
    halt: bool,
    /// Share the link with a TCP connection that carries as much as it can.
    #[arg(long)]
    pub(crate) beside_tcp: bool,
    /// What lighter does with migrations that stall; QEMU slows their guests down.
    #[arg(long, default_value = "throttle")]
    pub(crate) on_stall: OnStall,
    /// Hand guests over after the first round, before the rest of their memory.
    #[arg(long, conflicts_with = "estimate")]
    postcopy: bool,
    /// Measure lighter alone, with an estimate before each migration.
    #[arg(long)]
    estimate: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A guest to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestPlan {
    /// Memory that is filled, in MiB.
    pub(crate) filled_mib: u64,
    /// Share of its pages that are zero, in percent.
    pub(crate) zero_percent: u64,
    /// Number of vCPUs, and of threads that write.
    pub(crate) cpus: u64,
    /// Whether its program sleeps, and does not spin.
    pub(crate) halts: bool,
    /// The first of its loads, like the others in [`Load::is_sparse`].
    pub(crate) first_load: Load,
}

impl GuestPlan {
    /// The guest's whole memory, in MiB.
    pub(crate) const fn memory_mib(&self) -> u64 {
        self.filled_mib + FREE_MIB
    }
}

/// A guest, and all that is measured with it before another one is booted.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The guest.
    pub(crate) guest: GuestPlan,
    /// The links, all of them loopback or none.
    pub(crate) links: Vec<Link>,
    /// The loads.
    pub(crate) loads: Vec<Load>,
}

impl Settings {
    /// The kind of migrations that are measured.
    pub(crate) const fn mode(&self) -> Mode {
        match (self.postcopy, self.estimate) {
            (true, _) => Mode::Postcopy,
            (_, true) => Mode::Estimate,
            _ => Mode::Precopy,
        }
    }

    /// Whether a migration went the way that is measured.
    pub(crate) fn is_meant(&self, was_postcopy: bool) -> bool {
        let may_follow = self.on_stall == OnStall::Postcopy;
        may_follow || was_postcopy == (self.mode() == Mode::Postcopy)
    }

    /// The variants, in the order of their turns.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        match (self.mode(), self.only) {
            (Mode::Estimate, _) | (_, Some(System::Lighter)) => vec![Variant::Lighter],
            (_, Some(System::Qemu)) => vec![Variant::QemuTls, Variant::QemuTcp],
            (_, None) => vec![Variant::QemuTls, Variant::Lighter, Variant::QemuTcp],
        }
    }

    /// The time after which a migration is called off.
    pub(crate) const fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// Sizes of the memory that is filled in guests, in MiB, the smallest first.
    pub(crate) fn sizes(&self) -> Vec<u64> {
        let mut sizes = self.memory_mib.clone();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The guests, and what is measured with each.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let mut sessions = Vec::new();
        for filled_mib in self.sizes() {
            for &cpus in &self.cpus {
                let (sparse, others): (Vec<Load>, Vec<Load>) =
                    self.loads.iter().copied().partition(|load| load.is_sparse());
                for loads in [others, sparse] {
                    let Some(&first_load) = loads.first() else { continue };
                    let (zero_percent, halts) = (self.zeros, self.halt);
                    let guest = GuestPlan { filled_mib, zero_percent, cpus, halts, first_load };
                    sessions.extend(self.link_groups().map(|links| Session {
                        guest,
                        links,
                        loads: loads.clone(),
                    }));
                }
            }
        }
        sessions
    }

    /// The links, those that need other places apart.
    fn link_groups(&self) -> impl Iterator<Item = Vec<Link>> {
        let (loopback, cables): (Vec<Link>, Vec<Link>) =
            self.links.iter().copied().partition(|link| *link == Link::Loopback);
        [loopback, cables].into_iter().filter(|links| !links.is_empty())
    }
}
