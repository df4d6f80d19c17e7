//! The actions, carried out as a user would.

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::dice::Dice;
use super::stage::{LINUX, Member, Side, Stage};
use super::story::Kind;
use support::{Done, Exit, Guest, Migration};

/// Memory sizes of clones, in MiB.
const CLONE_MIB: [u64; 3] = [64, 96, 128];
/// Sizes of the clones' working sets, in MiB; and numbers of pages that they write per second.
const WORKING_SETS_MIB: [u64; 4] = [4, 16, 32, 48];
const DIRTY_RATES: [u32; 5] = [0, 100, 500, 2000, 5000];
/// Balloon targets of the Linux guest, which has 128 MiB, in MiB.
const BALLOONS_MIB: [u64; 4] = [100, 108, 118, 128];
/// Approximate duration of a clone's migration, in milliseconds.
const MIGRATION_MS: u64 = 500;

/// The outcome of an action.
#[derive(Debug)]
pub(crate) struct Performed {
    /// The action in words.
    pub(crate) what: String,
    /// The guest that should be sound now.
    pub(crate) guest: Option<String>,
    /// Whether the action was refused, by design.
    pub(crate) is_refused: bool,
}

impl Performed {
    fn to(guest: &str, what: String) -> Self {
        Self { what, guest: Some(guest.to_owned()), is_refused: false }
    }
}

/// Carries out one action of this kind.
///
/// # Panics
/// If the action fails.
pub(crate) fn act(kind: Kind, stage: &mut Stage, dice: &mut Dice) -> Performed {
    match kind {
        Kind::Come => come(stage, dice),
        Kind::Go => go(stage, dice),
        Kind::Write => write(stage, dice),
        Kind::Move => {
            let index = any(stage, dice, |_| true);
            migrate(stage, index)
        }
        Kind::MoveAndPause => {
            let index = any(stage, dice, |member| !member.is_paused);
            migrate_and_pause(stage, index, dice.below(MIGRATION_MS))
        }
        Kind::Pause => {
            let index = any(stage, dice, |member| !member.is_paused);
            order_verb(stage, index, "pause")
        }
        Kind::Resume => {
            let index = any(stage, dice, |member| member.is_paused);
            order_verb(stage, index, "resume")
        }
        Kind::Balloon => balloon(stage, dice),
        Kind::KillNode => {
            let what = format!("of A, which had {}", stage.replace_node());
            Performed { what, guest: None, is_refused: false }
        }
    }
}

/// The index of a random guest for which `holds` is true; there must be one.
fn any(stage: &Stage, dice: &mut Dice, holds: impl Fn(&Member) -> bool) -> usize {
    let all = stage.members.iter().enumerate().filter(|(_, member)| holds(member));
    let all: Vec<usize> = all.map(|(index, _)| index).collect();
    dice.one_of(&all)
}

fn come(stage: &mut Stage, dice: &mut Dice) -> Performed {
    let (memory_mib, at) = (dice.one_of(&CLONE_MIB), dice.one_of(&Side::ALL));
    let plan = stage.next_clone(memory_mib, dice.one_of(&DIRTY_RATES));
    Guest::start(stage.host(at), &plan);
    let name = plan.name;
    stage.members.push(Member { name: name.clone(), at, is_paused: false });
    Performed::to(&name, format!("{name}, {memory_mib} MiB, on {at:?}"))
}

fn go(stage: &mut Stage, dice: &mut Dice) -> Performed {
    let index = any(stage, dice, |member| member.name != LINUX);
    let Member { name, at, .. } = stage.members.remove(index);
    stage.host(at).run(&["destroy", &name]).ok();
    Performed { what: format!("{name} from {at:?}"), guest: None, is_refused: false }
}

fn write(stage: &Stage, dice: &mut Dice) -> Performed {
    let index = any(stage, dice, |member| member.name != LINUX);
    let Member { name, at, .. } = &stage.members[index];
    let (mib, rate) = (dice.one_of(&WORKING_SETS_MIB), dice.one_of(&DIRTY_RATES));
    let order = json!({ "working_set_bytes": mib << 20, "dirty_rate_pages_per_s": rate });
    let answer = stage.host(*at).guest(name).request("PUT", "/v1/guest/workload", Some(&order));
    answer.success().expect("the workload can be steered");
    Performed::to(name, format!("{name}: {rate} pages/s to {mib} MiB"))
}

fn migrate(stage: &mut Stage, index: usize) -> Performed {
    let Member { name, at, .. } = stage.members[index].clone();
    let to = at.other();
    let report = Migration::run(stage.host(at), &name, stage.host(to)).ok();
    stage.members[index].at = to;
    let seconds = report["total_seconds"].as_f64().expect("a time");
    Performed::to(&name, format!("{name} to {to:?} in {seconds:.1} s"))
}

fn migrate_and_pause(stage: &mut Stage, index: usize, after_ms: u64) -> Performed {
    let Member { name, at, .. } = stage.members[index].clone();
    let to = at.other();
    let migration = Migration::start(stage.host(at), &name, stage.host(to), &[]);
    thread::sleep(Duration::from_millis(after_ms));
    let paused = stage.host(at).run(&["pause", &name]);
    migration.finish().ok();
    stage.members[index].at = to;
    let is_refused = is_refused(&paused);
    stage.members[index].is_paused = !is_refused;
    let what = if is_refused { "the pause was refused" } else { "it was paused first" };
    Performed { is_refused, ..Performed::to(&name, format!("{name} to {to:?}: {what}")) }
}

/// Whether a pause was refused by design, because the guest is migrating or has just left.
fn is_refused(done: &Done) -> bool {
    if done.exit == Exit::Done {
        return false;
    }
    let by_design = ["is being migrated to", "no guest", "no process answers on", "broke off"];
    assert!(by_design.iter().any(|word| done.stderr.contains(word)), "{done:#?}");
    true
}

fn order_verb(stage: &mut Stage, index: usize, verb: &str) -> Performed {
    let Member { name, at, .. } = stage.members[index].clone();
    stage.host(at).run(&[verb, &name]).ok();
    stage.members[index].is_paused = verb == "pause";
    Performed::to(&name, format!("{name} on {at:?}"))
}

fn balloon(stage: &Stage, dice: &mut Dice) -> Performed {
    let mib = dice.one_of(&BALLOONS_MIB);
    stage.host(stage.members[0].at).run(&["balloon", LINUX, &format!("{mib}M")]).ok();
    Performed::to(LINUX, format!("{LINUX} to {mib} MiB"))
}

/// Resumes all paused guests.
pub(crate) fn resume_all(stage: &mut Stage) {
    for index in 0..stage.members.len() {
        if stage.members[index].is_paused {
            order_verb(stage, index, "resume");
        }
    }
}
