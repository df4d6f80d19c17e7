//! The turns: each contender gets guests of the same kind, and the CPU time that lighter used.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::contender::{Contender, Lot};
use super::drive::{self, Allowance, Spent};
use super::figures::Figures;
use super::fleet::Fleet;
use super::knobs::Knobs;
use super::lighter;
use super::linux::SavedGuests;
use super::reads::{paces, part};
use super::settings::{Case, Settings};
use support::bench::interruption;

/// Between the last clone's filling its memory and the first figures; and between ksmd's end and
/// the last figures, while the hot guests write on.
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
    /// Pages that read-hot guests read for each CPU second while the contender was at work, of what
    /// they read before.
    pub(crate) reads_during: f64,
    /// The same afterwards.
    pub(crate) reads_after: f64,
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

/// Has the contenders take their turns, and `show` what came of each case when it is over.
///
/// # Errors
/// Something does not run here, a guest's memory is damaged, or the user calls it off.
pub(crate) fn run(settings: &Settings, folder: &Path, show: impl Fn(Case, &[Turn])) -> Result<()> {
    let saved = {
        // Guests that may be merged keep lighter from merging others, in tests as well.
        let _turn = Knobs::take()?;
        SavedGuests::boot(settings, folder)?
    };
    let mut lot = Lot::new(settings.seed);
    eprintln!("the order of turns is drawn by lot: --seed {}", settings.seed);
    for case in settings.cases.iter().copied() {
        eprintln!("{}", case.name());
        let mut scene = Scene { settings, saved: &saved, case, used: Vec::new() };
        show(case, &scene.rounds(&mut lot, &folder.join(case.name()))?);
    }
    Ok(())
}

struct Scene<'a> {
    settings: &'a Settings,
    saved: &'a SavedGuests,
    case: Case,
    /// What lighter has used so far.
    used: Vec<Allowance>,
}

impl Scene<'_> {
    /// All rounds. Before them lighter takes a turn that does not count: it says what the others
    /// may use.
    fn rounds(&mut self, lot: &mut Lot, folder: &Path) -> Result<Vec<Turn>> {
        if self.settings.cpu_seconds.is_none() {
            report(&self.turn(Contender::Lighter, &folder.join("first"))?);
        }
        let mut turns = Vec::new();
        for round in 1..=self.settings.runs {
            let order = lot.order(&self.settings.contenders);
            let names: Vec<_> = order.iter().map(|contender| contender.option()).collect();
            eprintln!("round {round} of {}: {}", self.settings.runs, names.join(", "));
            for contender in order {
                let name = format!("{round}-{}", contender.option());
                let turn = self.turn(contender, &folder.join(name))?;
                report(&turn);
                turns.push(turn);
            }
        }
        Ok(turns)
    }

    fn turn(&mut self, contender: Contender, state: &Path) -> Result<Turn> {
        std::fs::create_dir_all(state)?;
        let knobs = Knobs::take()?;
        knobs.forget()?;
        let mut fleet = Fleet::start(state, self.case, self.settings, self.saved)?;
        let first = fleet.reads()?;
        settle()?;
        let before = fleet.figures()?;
        let begun = fleet.reads()?;
        let spent = match contender {
            Contender::Lighter => {
                let (spent, used) = lighter::optimize(&fleet, self.settings.ksmd_seconds)?;
                self.used.push(used);
                spent
            }
            _ => drive::drive(contender, &fleet, &knobs, &self.allowance()?, state)?,
        };
        let ended = fleet.reads()?;
        settle()?;
        let after = fleet.figures()?;
        let last = fleet.reads()?;
        fleet.check()?;
        let undisturbed = paces(&first, &begun);
        Ok(Turn {
            contender,
            spent,
            before,
            after,
            reads_during: part(&undisturbed, &paces(&begun, &ended)),
            reads_after: part(&undisturbed, &paces(&ended, &last)),
        })
    }

    /// The median of what lighter has used so far, or what the user says.
    fn allowance(&self) -> Result<Allowance> {
        if let Some(cpu_seconds) = self.settings.cpu_seconds {
            let (cpu_share, pages_per_second) = lighter::usual_pace();
            return Ok(Allowance { cpu_seconds, cpu_share, pages_per_second });
        }
        let mut used = self.used.clone();
        used.sort_by(|one, other| one.cpu_seconds.total_cmp(&other.cpu_seconds));
        let middle = used.get(used.len() / 2).copied();
        middle.context("lighter has not taken a turn")
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
         profit {:.0}, {:>5.0} each CPU s, huge {:.0} of {:.0}, hot {:.0} of {:.0}, read-hot {:.0} of {:.0}, \
         reads {:.2} and {:.2}",
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
        mib(after.reader_huge as f64),
        mib(before.reader_huge as f64),
        turn.reads_during,
        turn.reads_after,
    );
}
