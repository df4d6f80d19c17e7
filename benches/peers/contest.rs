//! The rounds: which system migrates when, and what is recorded.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::LinuxGuest;
use super::lighter::Lighter;
use super::link::Link;
use super::load::Load;
use super::peer::{Course, Peer, Transfer};
use super::place::{Place, Places};
use super::preheat::{KeptMemory, preheat};
use super::qemu::Qemu;
use super::settings::{GuestPlan, Mode, Session, Settings, Variant};
use super::statistics::milliseconds;
use super::tcp::Connection;
use support::bench::check_line::CheckLine;
use support::bench::console::Console;
use support::bench::interruption;

/// Limit of a boot until the check program has mapped and filled all its memory: some minutes, and
/// more for each MiB where the guest's kernel is emulated.
const BOOT_PATIENCE: Duration = Duration::from_secs(1200);
const BOOT_PATIENCE_EACH_MIB: Duration = Duration::from_secs(1);
/// How long the guest is watched at rest, before each migration.
const REST: Duration = Duration::from_secs(1);

/// What is the same in all runs that are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    /// The guest.
    pub(crate) guest: GuestPlan,
    /// What connects the hosts.
    pub(crate) link: Link,
    /// The guest's load during the migration.
    pub(crate) load: Load,
}

/// One migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The guest, the link and the load.
    pub(crate) case: Case,
    /// The system and its transport.
    pub(crate) variant: Variant,
    /// What was measured; none if the guest had not arrived in time.
    pub(crate) measured: Option<Measured>,
}

/// The measurements of one migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// The system's own figures, and the cost.
    pub(crate) transfer: Transfer,
    /// The longest time during which the guest did not run, according to the guest.
    pub(crate) gap: Duration,
    /// The longest of the other such times.
    pub(crate) next_gap: Duration,
    /// The sum of such times of a millisecond and more.
    pub(crate) stalled: Duration,
    /// The longest such time in the second before the migration.
    pub(crate) gap_at_rest: Duration,
    /// What a TCP connection carried meanwhile, if there was one.
    pub(crate) tcp_mbit_per_second: Option<f64>,
}

/// The results of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Every migration, in order.
    pub(crate) runs: Vec<Run>,
    /// Resident bytes beyond guest memory of an idle guest's process after a migration, for each
    /// guest and system.
    pub(crate) overhead_bytes: Vec<(GuestPlan, &'static str, u64)>,
}

impl Outcome {
    /// The cases as `seen`, each once, in order.
    pub(crate) fn cases(&self, seen: impl Fn(&Case) -> Case) -> Vec<Case> {
        let mut cases = Vec::new();
        for case in self.runs.iter().map(|run| seen(&run.case)) {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }
}

/// The systems that take part.
struct Systems {
    qemu: Option<Qemu>,
    lighter: Option<Lighter>,
    /// Dropped last: the systems are in them.
    places: Places,
}

impl Systems {
    fn boot(session: &Session, settings: &Settings, folder: &Path) -> Result<Self> {
        let variants = settings.variants();
        let plan = &session.guest;
        let guest = LinuxGuest::prepare(plan)?;
        eprintln!("booting {} MiB guests", guest.memory_mib);
        let places = Places::make(session.links[0])?;
        // The guests of both systems boot at the same time.
        let with_lighter = variants.contains(&Variant::Lighter);
        let with_qemu = variants.iter().any(|variant| *variant != Variant::Lighter);
        let mut systems = Self {
            qemu: with_qemu
                .then(|| Qemu::boot(&guest, places.both(), &settings.qemu_capabilities, folder))
                .transpose()?,
            lighter: with_lighter
                .then(|| Lighter::boot(&guest, places.both(), folder))
                .transpose()?,
            places,
        };
        let patience = BOOT_PATIENCE + BOOT_PATIENCE_EACH_MIB * plan.filled_mib as u32;
        for peer in systems.all() {
            peer.console().wait_for_boot(patience)?;
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
pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let _kept = KeptMemory::begin()?;
    for session in settings.sessions() {
        let folder = tempfile::tempdir()?;
        play(settings, &session, folder.path(), &mut outcome)?;
    }
    Ok(outcome)
}

/// Boots the guests of one session and runs its rounds.
fn play(
    settings: &Settings,
    session: &Session,
    folder: &Path,
    outcome: &mut Outcome,
) -> Result<()> {
    let variants = settings.variants();
    let guest = session.guest;
    let course = |variant, mode, ways| Course {
        variant,
        mode,
        on_stall: settings.on_stall,
        patience: settings.patience(),
        ways,
    };
    let mut systems = Systems::boot(session, settings, folder)?;
    // A migration that does not count: it warms everything up.
    for &variant in &variants {
        if let Some(peer) = systems.of(variant) {
            migrate(peer, &course(variant, Mode::Precopy, 1), guest, Load::Idle, None)?;
        }
    }
    let places = systems.places.both();
    let shared = settings.beside_tcp.then_some(&places);
    for &link in &session.links {
        if let Link::Cable(cable) = &link {
            systems.places.connect(cable)?;
        }
        for &load in &session.loads {
            let case = Case { guest, link, load };
            for round in 1..=settings.runs {
                for &variant in &variants {
                    let Some(peer) = systems.of(variant) else { continue };
                    let course = course(variant, settings.mode(), link.count());
                    let measured = migrate(peer, &course, guest, load, shared)?;
                    let run = Run { case, variant, measured };
                    report(round, &run);
                    outcome.runs.push(run);
                }
            }
        }
    }
    if let Some(qemu) = &systems.qemu {
        outcome.overhead_bytes.push((guest, "QEMU", qemu.overhead_bytes()?));
    }
    if let Some(lighter) = &systems.lighter {
        outcome.overhead_bytes.push((guest, "lighter", lighter.overhead_bytes()?));
    }
    Ok(())
}

/// Resumes the guest, migrates it under `load`, checks it, and pauses it again. Meanwhile a TCP
/// connection goes the same way, if the places are `shared`.
fn migrate(
    peer: &mut dyn Peer,
    course: &Course,
    guest: GuestPlan,
    load: Load,
    shared: Option<&[Place; 2]>,
) -> Result<Option<Measured>> {
    interruption::check()?;
    let system = course.variant.name();
    peer.resume()?;
    peer.console().type_letter(load.command())?;
    peer.prepare(course)?;
    let gap_at_rest = gap_at_rest(peer.console())?;
    preheat(guest.memory_mib())?;
    let before = forget_gaps(peer.console())?;
    let here = peer.here();
    let tcp =
        shared.map(|places| Connection::open(&places[here], &places[1 - here])).transpose()?;
    let transfer = peer.migrate(course)?;
    let tcp_mbit_per_second = tcp.as_ref().map(Connection::mbit_per_second);
    drop(tcp);
    let after = peer.console().ask(b'i', |line| line.ticks > before.ticks)?;
    ensure!(
        after.epoch == before.epoch,
        "the guest forgot its longest gap in a migration by {system}: {before:?}, {after:?}"
    );
    let checked = peer.console().ask(b'v', |line| line.verified > after.verified)?;
    ensure!(checked.errors == 0, "{} pages are bad after a migration by {system}", checked.errors);
    ensure!(
        checked.expected.saturating_sub(checked.timers) <= 1,
        "the guest lost timers in a migration by {system}: {} of {}",
        checked.timers,
        checked.expected
    );
    peer.pause()?;
    Ok(transfer.map(|transfer| Measured {
        transfer,
        gap: Duration::from_micros(after.gap_us),
        next_gap: Duration::from_micros(after.next_gap_us),
        stalled: Duration::from_micros(after.stalled_us),
        gap_at_rest,
        tcp_mbit_per_second,
    }))
}

/// Watches the guest for a second in which it is not migrated; returns its longest gap.
fn gap_at_rest(console: &mut Console) -> Result<Duration> {
    let before = forget_gaps(console)?;
    thread::sleep(REST);
    let after = console.ask(b'i', |line| line.ticks > before.ticks)?;
    Ok(Duration::from_micros(after.gap_us))
}

/// Has the guest forget its gaps.
fn forget_gaps(console: &mut Console) -> Result<CheckLine> {
    let before = console.ask(b'i', |_| true)?;
    console.ask(b'r', |line| line.epoch > before.epoch)
}

fn report(round: u64, run: &Run) {
    let name = run.case.load.name(run.case.guest.filled_mib);
    let head = format!("{}, {name:<25} round {round} {:<8}", run.case.link, run.variant.name());
    let Some(measured) = &run.measured else {
        return eprintln!("{head} had not arrived in time");
    };
    let transfer = &measured.transfer;
    eprintln!(
        "{head} {:.3} s, gap {:>5.1} ms, {:>6.1} MB, CPU {:.2} + {:.2} s{}",
        transfer.total.as_secs_f64(),
        milliseconds(measured.gap),
        transfer.wire_bytes as f64 / 1e6,
        transfer.source_cpu_seconds,
        transfer.destination_cpu_seconds,
        if transfer.is_postcopy { ", memory last" } else { "" },
    );
}
