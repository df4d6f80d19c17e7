//! The turns: everybody gets guests of the same kind, and the CPU time that lighter used.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::contender::Contender;
use super::drive::{self, Allowance, Spent};
use super::figures::Figures;
use super::fleet::Fleet;
use super::interruption;
use super::knobs::Knobs;
use super::lighter;
use super::linux::SavedGuests;
use super::settings::{Layout, Settings};

/// Between the last clone's filling its memory and the first look; and between ksmd's end and the last look, while the hot guests
/// write on.
const SETTLE: Duration = Duration::from_secs(5);

/// One turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Who.
    pub(crate) contender: Contender,
    /// What it used.
    pub(crate) spent: Spent,
    /// What guests cost before.
    pub(crate) before: Figures,
    /// What they cost afterwards.
    pub(crate) after: Figures,
}

impl Turn {
    /// By what PSS of all guests fell, in bytes.
    pub(crate) fn gross_bytes(&self) -> f64 {
        self.before.proportional as f64 - self.after.proportional as f64
    }

    /// The same less what ksmd's records of guests' pages take.
    pub(crate) fn net_bytes(&self) -> f64 {
        self.gross_bytes() - (self.after.records as f64 - self.before.records as f64)
    }

    /// Net bytes for each CPU second.
    pub(crate) fn bytes_per_cpu_second(&self) -> f64 {
        self.net_bytes() / self.spent.cpu_seconds()
    }
}

/// Has everybody take their turns. What comes back is by layout.
///
/// # Errors
/// Something does not run here, a guest's memory is damaged, or the user calls it off.
pub(crate) fn run(settings: &Settings, folder: &Path) -> Result<Vec<(Layout, Vec<Turn>)>> {
    let saved = SavedGuests::boot(settings.linux, folder)?;
    let mut outcome = Vec::new();
    for layout in &settings.layouts {
        let mut turns = Vec::new();
        for round in 1..=settings.runs {
            let name = format!("{}-{round}", layout.name());
            let scene = Scene { settings, saved: &saved, layout: *layout };
            turns.extend(scene.round(&folder.join(name))?);
        }
        outcome.push((*layout, turns));
    }
    Ok(outcome)
}

struct Scene<'a> {
    settings: &'a Settings,
    saved: &'a SavedGuests,
    layout: Layout,
}

impl Scene<'_> {
    /// Everybody's turn once, lighter's first: it says what the others may use.
    fn round(&self, folder: &Path) -> Result<Vec<Turn>> {
        let (cpu_share, pages_per_second) = lighter::usual_pace();
        let given = self.settings.cpu_seconds;
        let mut allowance =
            given.map(|cpu_seconds| Allowance { cpu_seconds, cpu_share, pages_per_second });
        let mut turns = Vec::new();
        for contender in &self.settings.contenders {
            let state = folder.join(contender.option());
            std::fs::create_dir_all(&state)?;
            let turn = self.turn(*contender, &state, &mut allowance)?;
            report(&turn);
            turns.push(turn);
        }
        Ok(turns)
    }

    fn turn(
        &self,
        contender: Contender,
        state: &Path,
        allowance: &mut Option<Allowance>,
    ) -> Result<Turn> {
        let knobs = Knobs::take()?;
        knobs.forget()?;
        let mut fleet = Fleet::start(state, self.layout, self.settings, self.saved)?;
        settle()?;
        let before = fleet.figures()?;
        let spent = match contender {
            Contender::Lighter => {
                let (spent, used) = lighter::optimize(&fleet, self.settings.ksmd_seconds)?;
                allowance.get_or_insert(used);
                spent
            }
            _ => {
                let allowance = allowance.as_ref().context("lighter did not go first")?;
                drive::drive(contender, &fleet, &knobs, allowance, state)?
            }
        };
        settle()?;
        let after = fleet.figures()?;
        fleet.check()?;
        Ok(Turn { contender, spent, before, after })
    }
}

fn settle() -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < SETTLE {
        interruption::check()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn report(turn: &Turn) {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let Turn { spent, before, after, .. } = turn;
    eprintln!(
        "{:<28} {:>5.0} s, CPU {:.2} + {:.2} + {:.2} s, {:>6.0} MiB gross, {:>6.0} net, {:>6.0} available, \
         profit {:.0}, {:>5.0} each CPU s, huge {:.0} of {:.0}, hot {:.0} of {:.0}",
        turn.contender.name(),
        spent.elapsed.as_secs_f64(),
        spent.ksmd,
        spent.looks,
        spent.node,
        mib(turn.gross_bytes()),
        mib(turn.net_bytes()),
        mib(after.available as f64 - before.available as f64),
        mib(after.profit as f64),
        mib(turn.bytes_per_cpu_second()),
        mib(after.huge as f64),
        mib(before.huge as f64),
        mib(after.hot_huge as f64),
        mib(before.hot_huge as f64),
    );
}
