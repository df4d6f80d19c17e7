//! The checks after each action, and at the end.

use serde_json::Value;

use super::stage::{LINUX, Member, Side, Stage};
use super::summary::{Runs, Summary};
use super::{actions, linux};
use support::checks::{await_life, memory_is_intact, nothing_left_behind};
use support::ksm::KsmTurn;
use support::wait;

/// Limit of the listed runs, more than a soak can have.
const RUNS_MAX: &str = "1000";

/// Asserts that the guest is alive with intact memory, that all guests are where they should be,
/// and that the nodes are alive.
pub(crate) fn after(stage: &mut Stage, guest: Option<&str>) {
    let guest = guest.and_then(|name| stage.members.iter().find(|member| member.name == name));
    if let Some(member) = guest.cloned() {
        is_sound(stage, &member);
    }
    all_are_there(stage);
    stage.check_nodes();
}

fn is_sound(stage: &mut Stage, member: &Member) {
    let guest = stage.host(member.at).guest(&member.name);
    if member.is_paused {
        guest.await_state("paused");
    } else if member.name == LINUX {
        let line = stage.witness().line();
        line.follows(&stage.last_line);
        stage.last_line = line;
    } else {
        await_life(&guest);
        memory_is_intact(&guest);
    }
}

/// Asserts that each guest is on its host, once, in the right state, and that there are no others.
fn all_are_there(stage: &Stage) {
    for side in Side::ALL {
        let here = stage.members.iter().filter(|member| member.at == side);
        let mut wanted: Vec<_> = here.map(|it| (it.name.as_str(), state(it))).collect();
        wanted.sort_unstable();
        wait::until(&format!("the guests {wanted:?} are on {side:?}"), || {
            let listed = stage.host(side).list();
            let field = |guest: &Value, name| guest[name].as_str().unwrap_or_default().to_owned();
            let mut seen: Vec<_> =
                listed.iter().map(|it| (field(it, "name"), field(it, "state"))).collect();
            seen.sort_unstable();
            let is_so = seen.iter().map(|(name, state)| (name.as_str(), state.as_str()));
            wait::holds(is_so.eq(wanted.iter().copied()), seen)
        });
    }
}

const fn state(member: &Member) -> &'static str {
    if member.is_paused { "paused" } else { "running" }
}

/// Repeats all checks at the end, each even if others have failed.
pub(crate) fn at_the_end(stage: &mut Stage, turn: &KsmTurn, summary: &mut Summary) {
    summary.guarded("at the end, runs", || stage.quiet());
    summary.guarded("at the end, paused guests", || actions::resume_all(stage));
    for member in stage.members.clone() {
        summary.guarded("at the end, guests", || is_sound(stage, &member));
    }
    summary.guarded("at the end, Linux", || {
        linux::await_check(&stage.witness(), stage.linux_pages(), &stage.last_line);
    });
    summary.guarded("at the end, guests", || all_are_there(stage));
    summary.guarded("at the end, the rest", || nothing_left_behind(&stage.hosts()));
    summary.guarded("at the end, ksmd", || {
        assert!(turn.is_as_before(), "ksmd's settings are not as before");
    });
    for side in Side::ALL {
        summary.guarded("at the end, logs", || {
            let logs = stage.host(side).logs();
            let panic = logs.lines().find(|line| line.contains("panicked"));
            assert_eq!(panic, None, "host {side:?}");
        });
        if let Some(runs) = summary.guarded("at the end, history", || runs_of(stage, side)) {
            let kills = if side == Side::A { summary.kills() } else { 0 };
            let time = summary.time;
            summary.guarded("at the end, history", || runs.are_enough(time, kills));
            summary.runs.push(runs);
        }
    }
    summary.nodes = summary.guarded("at the end, nodes", || stage.check_nodes());
}

fn runs_of(stage: &Stage, side: Side) -> Runs {
    let listed =
        stage.host(side).run(&["density", "history", "-n", RUNS_MAX, "--json"]).ok().json();
    let runs = listed["runs"].as_array().expect("a list");
    let mut sum = Runs::default();
    for run in runs.iter().filter(|run| run["trigger"] != "relief") {
        sum.add(run);
    }
    sum
}
