//! The turns: each contender gets the same kind of guests and the CPU time that lighter has used.

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

/// Time between the last clone's fill and the first figures, and between the end of ksmd's work and
/// the last figures, during which the hot guests keep writing.
const SETTLE: Duration = Duration::from_secs(5);

/// The measurements of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The contender whose turn it was.
    pub(crate) contender: Contender,
    /// The CPU time that the contender used.
    pub(crate) spent: Spent,
    /// The guests' cost before.
    pub(crate) before: Figures,
    /// The guests' cost afterwards.
    pub(crate) after: Figures,
    /// Pages per CPU second that the read-hot guests read while the contender was at work, relative
    /// to the rate before.
    pub(crate) reads_during: f64,
    /// The same ratio afterwards.
    pub(crate) reads_after: f64,
}

impl Turn {
    /// The decrease of the PSS of all guests, in bytes.
    pub(crate) fn gross_bytes(&self) -> f64 {
        self.before.proportional as f64 - self.after.proportional as f64
    }

    /// The gross bytes less the growth of ksmd's records of guests' pages.
    pub(crate) fn net_bytes(&self) -> f64 {
        self.gross_bytes() - (self.after.records as f64 - self.before.records as f64)
    }

    /// Net bytes per CPU second.
    pub(crate) fn bytes_per_cpu_second(&self) -> f64 {
        self.net_bytes() / self.spent.cpu_seconds()
    }
}

/// Lets the contenders take their turns, and calls `show` with the results of each case.
///
/// # Errors
/// If something does not run here, a guest's memory is damaged, or the user interrupts.
pub(crate) fn run(settings: &Settings, folder: &Path, show: impl Fn(Case, &[Turn])) -> Result<()> {
    let saved = {
        // While other mergeable guests exist, also those of tests, lighter merges nothing.
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
    /// The CPU time that lighter has used in each of its turns so far.
    used: Vec<Allowance>,
}

impl Scene<'_> {
    /// Runs all rounds. Before them lighter takes a turn that does not count, which determines what
    /// the others may use.
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

    /// The median of what lighter has used so far, or the user's figure.
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
        spent.sampling,
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
