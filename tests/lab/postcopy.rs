//! Guests that run at their destination before their memory is there: over a link that is slower
//! than the guest, and across power cuts and unplugged cables at each message of that course.
//! Afterwards exactly one copy of the guest runs, or both hosts say that it is lost.

use std::time::Duration;

use crate::fixtures::{Host, Lab, holds, until};
use crate::outages::{
    self, Course, Outcome, Phase, Scenario, await_point, cable_is_out_for, ended, in_each_phase,
    is_intact, states, undecided,
};

/// netem options of a link that takes eight seconds for the working set of a guest that writes all
/// of it each second.
const SLOW_LINK: &str = "rate 4mbit limit 30";

/// Keeps memory from following unless the guest waits for it. The next connection carries all.
const UNASKED: &str = "source.take.background:hold";

/// The destination is about to hear what is missing, while the guest runs at the source.
const MISSING: Phase = Phase {
    course: Course::Postcopy { held: "" },
    ..undecided("missing", "source.send.missing", "loading")
};
/// The destination has dropped that.
const CLEARED: Phase = Phase {
    course: Course::Postcopy { held: "" },
    ..undecided("cleared", "source.recv.cleared", "loading")
};
/// The destination has heard of the switchover, and the guest is paused.
const SWITCHOVER: Phase = Phase {
    course: Course::Postcopy { held: "" },
    records: ["serving", "loading"],
    ..undecided("switchover", "source.act.savestate", "loading")
};
/// The source has committed, and the destination has not heard the state.
const STATE: Phase = lacking("state", "destination.recv.state:hold");
/// The source has committed, and the destination has not heard which pages were written while it
/// dropped the others.
const LAST_MISSING: Phase =
    lacking("last-missing", "destination.recv.missing:pass,destination.recv.missing:hold");
/// The destination has all that it needs to run the guest but the commit. That is lost, as is its
/// repetition on new connections, until the guest has been paused for so long that the source wants
/// it back.
const WITHDRAW: Phase = Phase {
    course: Course::Postcopy {
        held: "source.send.commit:hold,source.send.resolve:hold,source.send.resolve:hold,source.send.resolve:hold",
    },
    records: ["serving", "loading"],
    ..undecided("withdraw", "destination.recv.withdraw", "loading")
};
/// The last step before an early commit: the destination needs nothing more to be ready.
const WRITTEN: Phase = Phase {
    course: Course::Postcopy { held: "" },
    records: ["serving", "loading"],
    ..undecided("written", "source.act.collectmissing", "loading")
};
/// The destination, of a release without early commits, has the state and knows all that is
/// missing.
const READY: Phase = Phase {
    course: Course::Postcopy { held: "" },
    ..undecided("ready", "source.recv.ready", "ready")
};
const COMMIT: Phase = Phase {
    course: Course::Postcopy { held: UNASKED },
    records: ["serving", "loading"],
    source_lost_power: Outcome::Gone,
    ..outages::COMMIT
};
const TAKING: Phase = Phase {
    course: Course::Postcopy { held: UNASKED },
    records: ["serving", "taking"],
    source_lost_power: Outcome::Gone,
    ..outages::TAKING
};
/// The guest runs and waits for a page, and the source has not heard that it runs.
const RESUME: Phase = Phase {
    name: "resume",
    course: Course::Postcopy { held: "source.take.background:hold,source.recv.running:freeze" },
    ..fetching()
};
/// The guest runs and waits for a page, as the source knows.
const SERVING: Phase = fetching();
/// All memory is there, and the destination's record does not say so.
const FETCHED: Phase = Phase {
    name: "fetched",
    course: Course::Postcopy { held: "" },
    point: "destination.act.recordrunning",
    source_lost_power: Outcome::Destination,
    ..fetching()
};
/// The source has dropped its copy, and the destination has not heard that it knows of the arrival.
const FINISH: Phase = Phase {
    name: "finish",
    course: Course::Postcopy { held: "" },
    point: "destination.recv.finish",
    records: ["done", "running"],
    source_lost_power: Outcome::Destination,
    ..fetching()
};
/// The guest has waited for a page when the link broke. The source has reached the destination
/// again, and has not heard what is missing there.
const RECONNECTED: Phase = Phase {
    course: Course::Postcopy { held: "source.take.background:hold,source.recv.missing:freeze" },
    ..fetching()
};
/// All memory is there, and the source has not heard so.
const COMPLETE: Phase = Phase {
    name: "complete",
    course: Course::Postcopy { held: "" },
    point: "source.recv.complete",
    records: ["serving", "running"],
    source_lost_power: Outcome::Destination,
    ..fetching()
};

/// A phase in which the source has committed. The destination has heard neither that nor what it is
/// `kept` from, so it can only discard its copy.
const fn lacking(name: &'static str, kept: &'static str) -> Phase {
    Phase {
        course: Course::Postcopy { held: kept },
        records: ["serving", "loading"],
        ..undecided(name, "source.send.commit", "loading")
    }
}

/// The phase in which the guest needs both hosts.
const fn fetching() -> Phase {
    Phase {
        name: "serving",
        course: Course::Postcopy { held: UNASKED },
        point: "source.data.requested",
        records: ["serving", "fetching"],
        source_lost_power: Outcome::Gone,
        destination_lost_power: Outcome::Gone,
        cable_was_out: Outcome::Destination,
    }
}

#[test]
fn a_guest_that_writes_faster_than_the_link_arrives_before_its_memory() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    here.shape(SLOW_LINK);
    here.lighter("run --detach --name hot --memory 16M --working-set 4M --dirty-rate 1000").ok();
    let options = "--on-stall postcopy --downtime 2s --compress off --json";
    let report = here.lighter(&format!("migrate hot {} {options}", there.address())).json();
    assert_eq!(report["outcome"], "migrated", "{report:#}");
    assert_eq!(report["stall"]["postcopy"], true, "{report:#}");
    assert_eq!(here.state_of("hot"), None);
    assert_eq!(there.state_of("hot").as_deref(), Some("running"));
    is_intact(there, "hot");
}

in_each_phase!(source_loses_power: missing MISSING, cleared CLEARED, switchover SWITCHOVER, written WRITTEN, state STATE,
    last_missing LAST_MISSING, ready READY, commit COMMIT, withdraw WITHDRAW, taking TAKING, resume RESUME, fetched FETCHED,
    complete COMPLETE, finish FINISH);
in_each_phase!(destination_loses_power: missing MISSING, cleared CLEARED, switchover SWITCHOVER, written WRITTEN, state STATE,
    last_missing LAST_MISSING, ready READY, commit COMMIT, withdraw WITHDRAW, taking TAKING, resume RESUME, fetched FETCHED,
    complete COMPLETE, finish FINISH);
in_each_phase!(cable_is_out_at_the_destination: state STATE, last_missing LAST_MISSING, withdraw WITHDRAW, taking TAKING,
    fetched FETCHED, finish FINISH);

#[test]
fn the_cable_is_out_for_30_seconds() {
    let phases =
        [&MISSING, &CLEARED, &SWITCHOVER, &WRITTEN, &READY, &COMMIT, &RESUME, &SERVING, &COMPLETE];
    cable_is_out_for(Duration::from_secs(30), &phases);
}

#[test]
fn a_guest_of_huge_pages_waits_for_its_cable() {
    let mut scenario = Scenario::set(&SERVING);
    scenario.give_huge_pages();
    scenario.hold(&SERVING, SERVING.cable_was_out);
    scenario.pull_cable();
    scenario.ends_as_expected();
}

#[test]
fn the_cable_is_out_twice() {
    let scenario = held(&RECONNECTED, RECONNECTED.cable_was_out);
    reconnect(&scenario);
    scenario.pull_cable();
    scenario.ends_as_expected();
}

#[test]
fn a_guest_is_lost_with_the_power_of_its_source_and_the_destination_says_so() {
    lost_with_its_source(&held(&SERVING, SERVING.source_lost_power));
}

#[test]
fn a_guest_is_lost_with_the_power_of_its_source_after_a_reconnection_too() {
    let scenario = held(&RECONNECTED, RECONNECTED.source_lost_power);
    reconnect(&scenario);
    lost_with_its_source(&scenario);
}

#[test]
fn a_guest_is_lost_with_the_power_of_its_destination_and_the_source_is_told() {
    lost_with_its_destination(&held(&SERVING, SERVING.destination_lost_power));
}

#[test]
fn a_guest_is_lost_with_the_power_of_its_destination_after_a_reconnection_too() {
    let scenario = held(&RECONNECTED, RECONNECTED.destination_lost_power);
    reconnect(&scenario);
    lost_with_its_destination(&scenario);
}

#[test]
fn a_destination_that_is_reachable_at_another_address_only_is_recovered() {
    let scenario = held(&SERVING, Outcome::Destination);
    let [here, there] = scenario.hosts();
    there.sh("ip addr replace 10.77.0.12/24 dev br0").ok();
    let filter = "add table inet lab; add chain inet lab out { type filter hook output priority 0; }; \
                  add rule inet lab out ip daddr 10.77.0.2 drop";
    here.sh(&format!("nft '{filter}'")).ok();
    await_out_of_reach(here);
    here.lighter("migrate serving --recover 10.77.0.12").ok();
    scenario.ends_as_expected();
}

/// A guest that is held in `phase`.
fn held(phase: &Phase, outcome: Outcome) -> Scenario {
    let mut scenario = Scenario::set(phase);
    scenario.hold(phase, outcome);
    scenario
}

/// Unplugs the cable until the source has lost the destination, and waits until it has reached it
/// again, as in [`RECONNECTED`].
fn reconnect(scenario: &Scenario) {
    let [here, there] = scenario.hosts();
    there.cut_cable();
    await_out_of_reach(here);
    there.mend_cable();
    await_point(here, RECONNECTED.name, "source.recv.missing", "true");
}

/// Waits until the source has lost the destination, and says so.
fn await_out_of_reach(here: Host<'_>) {
    until("the source has lost the destination", || {
        let guest = here.guest(SERVING.name);
        holds(guest.as_ref().is_some_and(|guest| guest["detail"].is_string()), guest)
    });
}

fn lost_with_its_source(scenario: &Scenario) {
    scenario.lose_power(1);
    is_lost(scenario);
    let [_, there] = scenario.hosts();
    let words = ["lost its memory", "before all memory of the guest had arrived"];
    ended(there, SERVING.name, &words);
    // The records outlive the power of the other host, too.
    scenario.lose_power(2);
    is_lost(scenario);
    let [_, there] = scenario.hosts();
    ended(there, SERVING.name, &["lost its memory"]);
}

fn lost_with_its_destination(scenario: &Scenario) {
    scenario.lose_power(2);
    is_lost(scenario);
    let [here, _] = scenario.hosts();
    ended(here, SERVING.name, &["was given up", "before all of its memory was there"]);
}

/// Asserts that the guest is on neither host, and that the records say that it ran and is lost.
#[track_caller]
fn is_lost(scenario: &Scenario) {
    scenario.ends_as_expected();
    let recorded = scenario.hosts().map(|host| states(host).remove(SERVING.name));
    assert_eq!(recorded, [Some("done".to_owned()), Some("lost".to_owned())]);
}
