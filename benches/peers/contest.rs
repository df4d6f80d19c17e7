//! The rounds: which system migrates when, and what is recorded.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::LinuxGuest;
use super::lighter::Lighter;
use super::peer::{Peer, Transfer};
use super::preheat::preheat;
use super::qemu::Qemu;
use super::settings::{LOADS, Load, Settings, Variant};
use support::bench::interruption;

/// Limit of a boot until the check program has mapped and filled all its memory.
const BOOT_PATIENCE: Duration = Duration::from_secs(1200);

/// The measurements of one migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The system and its transport.
    pub(crate) variant: Variant,
    /// The guest's load during the migration.
    pub(crate) load: Load,
    /// The system's own figures, and the cost.
    pub(crate) transfer: Transfer,
    /// The longest time during which the guest did not run, according to the guest.
    pub(crate) gap: Duration,
}

/// The results of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Every migration, in order.
    pub(crate) runs: Vec<Run>,
    /// Resident bytes beyond guest memory of an idle guest's process after a migration, for each
    /// system.
    pub(crate) overhead_bytes: Vec<(&'static str, u64)>,
}

/// The systems that take part.
struct Systems {
    qemu: Option<Qemu>,
    lighter: Option<Lighter>,
}

impl Systems {
    fn boot(settings: &Settings, folder: &Path) -> Result<Self> {
        let guest = LinuxGuest::prepare(settings)?;
        eprintln!("booting {} MiB guests", guest.memory_mib);
        // The guests of both systems boot at the same time.
        let with_qemu = settings.has(&[Variant::QemuTls, Variant::QemuTcp]);
        let with_lighter = settings.has(&[Variant::Lighter]);
        let mut systems = Self {
            qemu: with_qemu.then(|| Qemu::boot(&guest, folder)).transpose()?,
            lighter: with_lighter.then(|| Lighter::boot(&guest, folder)).transpose()?,
        };
        for peer in systems.all() {
            peer.console().wait_for_boot(BOOT_PATIENCE)?;
        }
        for peer in systems.all() {
            // Regular output would cause gaps that are not part of the measurement.
            peer.console().type_letter(b's')?;
            peer.pause()?;
        }
        Ok(systems)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut dyn Peer> {
        let qemu = self.qemu.as_mut().map(|peer| peer as &mut dyn Peer);
        qemu.into_iter().chain(self.lighter.as_mut().map(|peer| peer as &mut dyn Peer))
    }

    fn of(&mut self, variant: Variant) -> Option<&mut dyn Peer> {
        match variant {
            Variant::Lighter => self.lighter.as_mut().map(|peer| peer as &mut dyn Peer),
            Variant::QemuTls | Variant::QemuTcp => {
                self.qemu.as_mut().map(|peer| peer as &mut dyn Peer)
            }
        }
    }
}

/// Boots the guests and runs all rounds.
///
/// # Errors
/// If a system cannot be run, a migration fails, or a guest's memory is damaged.
pub(crate) fn run(settings: &Settings, folder: &Path) -> Result<Outcome> {
    let mut systems = Systems::boot(settings, folder)?;
    let mut outcome = Outcome::default();
    // A migration that does not count: it warms everything up.
    for variant in &settings.variants {
        if let Some(peer) = systems.of(*variant) {
            migrate(peer, *variant, LOADS[0])?;
        }
    }
    for load in LOADS {
        for round in 1..=settings.runs {
            for variant in &settings.variants {
                let Some(peer) = systems.of(*variant) else { continue };
                let run = migrate(peer, *variant, load)?;
                report(round, &run);
                outcome.runs.push(run);
            }
        }
    }
    if let Some(qemu) = &systems.qemu {
        outcome.overhead_bytes.push(("QEMU", qemu.overhead_bytes()?));
    }
    if let Some(lighter) = &systems.lighter {
        outcome.overhead_bytes.push(("lighter", lighter.overhead_bytes()?));
    }
    Ok(outcome)
}

/// Resumes the guest, migrates it under `load`, checks it, and pauses it again.
fn migrate(peer: &mut dyn Peer, variant: Variant, load: Load) -> Result<Run> {
    interruption::check()?;
    peer.resume()?;
    peer.console().type_letter(load.command)?;
    peer.prepare(variant)?;
    preheat();
    let before = peer.console().ask(b'r', |line| line.gap_us == 0)?;
    let transfer = peer.migrate(variant)?;
    let after = peer.console().ask(b'i', |line| line.ticks > before.ticks)?;
    ensure!(
        after.epoch == before.epoch,
        "the guest forgot its longest gap in a migration by {}: {before:?}, {after:?}",
        variant.name()
    );
    let checked = peer.console().ask(b'v', |line| line.verified > after.verified)?;
    ensure!(
        checked.errors == 0,
        "{} pages are bad after a migration by {}",
        checked.errors,
        variant.name()
    );
    ensure!(
        checked.expected.saturating_sub(checked.timers) <= 1,
        "the guest lost timers in a migration by {}: {} of {}",
        variant.name(),
        checked.timers,
        checked.expected
    );
    peer.pause()?;
    Ok(Run { variant, load, transfer, gap: Duration::from_micros(after.gap_us) })
}

fn report(round: usize, run: &Run) {
    let transfer = &run.transfer;
    eprintln!(
        "{:<25} round {round} {:<8} {:.3} s, gap {:>5.1} ms, {:>6.1} MB, CPU {:.2} + {:.2} s",
        run.load.name,
        run.variant.name(),
        transfer.total.as_secs_f64(),
        run.gap.as_secs_f64() * 1e3,
        transfer.wire_bytes as f64 / 1e6,
        transfer.source_cpu_seconds,
        transfer.destination_cpu_seconds,
    );
}
