//! The course of a soak: random actions, each with its checks, until the time is over.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::dice::Dice;
use super::stage::Stage;
use super::summary::Summary;
use super::{actions, checks, interruption};
use support::ksm::KsmTurn;
use support::linux::image::Image;

/// Limit on the number of clones.
const CLONES_MAX: usize = 8;
/// Pauses between two actions, in milliseconds.
const PAUSE_MS: [u64; 4] = [500, 1000, 2000, 4000];

/// The kinds of actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A clone is started.
    Come,
    /// A clone is ended.
    Go,
    /// A clone writes to another part of its memory, at another rate.
    Write,
    /// A guest migrates, running or paused.
    Move,
    /// A guest migrates, and is told to pause during the migration.
    MoveAndPause,
    /// A guest is paused.
    Pause,
    /// A paused guest is resumed.
    Resume,
    /// The balloon of the Linux guest is set by hand.
    Balloon,
    /// A node is killed, and another one is started.
    KillNode,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Come,
        Self::Go,
        Self::Write,
        Self::Move,
        Self::MoveAndPause,
        Self::Pause,
        Self::Resume,
        Self::Balloon,
        Self::KillNode,
    ];

    /// The relative frequency of this action; 0 if it is impossible.
    const fn weight(self, population: Population) -> u64 {
        let Population { clones, running, paused, is_late } = population;
        match self {
            Self::Come if clones < CLONES_MAX => 24 - 2 * clones as u64,
            Self::Go if clones > 2 => 2 * clones as u64,
            Self::Write if clones > 0 => 16,
            Self::Move => 16,
            Self::MoveAndPause if running > 0 => 5,
            Self::Pause if running > paused => 5,
            Self::Resume if paused > 0 => 5 * paused as u64,
            Self::Balloon => 6,
            Self::KillNode if !is_late => 3,
            _ => 0,
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Come => "come",
            Self::Go => "go",
            Self::Write => "write",
            Self::Move => "move",
            Self::MoveAndPause => "move, pause",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Balloon => "balloon",
            Self::KillNode => "kill node",
        })
    }
}

/// The state of the soak that decides which actions are possible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Population {
    /// Number of clones.
    pub(crate) clones: usize,
    /// Number of running guests.
    pub(crate) running: usize,
    /// Number of paused guests.
    pub(crate) paused: usize,
    /// Whether the last third has begun, in which nodes are not killed, so that their growth shows.
    pub(crate) is_late: bool,
}

fn next(dice: &mut Dice, population: Population) -> Kind {
    let all = Kind::ALL.map(|kind| (kind, kind.weight(population)));
    let mut drawn = dice.below(all.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in all {
        match drawn.checked_sub(weight) {
            Some(left) => drawn = left,
            None => return kind,
        }
    }
    Kind::Move
}

/// Runs a soak for `time`. Failures are in the summary, and on stderr with the end of the nodes'
/// logs.
///
/// # Errors
/// If the user interrupts.
pub(crate) fn play(time: Duration, seed: u64) -> Result<Summary> {
    // The image is booted, if need be, before this takes a turn that others wait for.
    let image = Image::halting();
    let turn = KsmTurn::take();
    let mut dice = Dice::new(seed);
    let mut summary = Summary::default();
    let mut stage = Stage::set(image, time);
    let begun = Instant::now();
    while begun.elapsed() < time && summary.failures.is_empty() {
        interruption::check()?;
        let kind = next(&mut dice, stage.population(begun.elapsed() > time * 2 / 3));
        step(kind, &mut stage, &mut dice, &mut summary, begun.elapsed());
        thread::sleep(Duration::from_millis(dice.one_of(&PAUSE_MS)));
    }
    summary.time = begun.elapsed();
    checks::at_the_end(&mut stage, &turn, &mut summary);
    if !summary.failures.is_empty() {
        stage.print_log_tails();
    }
    Ok(summary)
}

/// Carries out one action and its checks.
fn step(kind: Kind, stage: &mut Stage, dice: &mut Dice, summary: &mut Summary, at: Duration) {
    let at = at.as_secs();
    let act = || {
        let done = actions::act(kind, stage, dice);
        println!("{:>3}:{:02} {kind:<12} {}", at / 60, at % 60, done.what);
        checks::after(stage, done.guest.as_deref());
        done
    };
    if let Some(done) = summary.guarded(&format!("{}:{:02} {kind}", at / 60, at % 60), act) {
        summary.count(kind, &done);
    }
}

/// Returns the result of `act`, or its panic message: the tests' checks fail by panicking.
///
/// # Errors
/// If `act` panics.
pub(crate) fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without words".to_owned())
    })
}
