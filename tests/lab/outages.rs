//! Power cuts and unplugged cables in each phase of a migration: afterwards exactly one copy of the
//! guest runs, or it is paused in doubt, or gone with its host, as the protocol says.
//!
//! A failpoint holds the migration at the end of a phase; the outage begins once the records of
//! both hosts show that phase.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use crate::fixtures::{Host, Lab, holds, until};
use support::WITHOUT_EARLY_COMMIT;
use support::state_folder::belongs;

/// A point in a migration at which a failpoint can hold it.
#[derive(Debug)]
pub(crate) struct Phase {
    /// The phase's name, which is also the guest's name.
    pub(crate) name: &'static str,
    /// How the guest is migrated.
    pub(crate) course: Course,
    /// The failpoint, prefixed with the side that it holds: `source` or `destination`.
    pub(crate) point: &'static str,
    /// The states in the records of source and destination at that point; [`NONE`] if there is no
    /// record.
    pub(crate) records: [&'static str; 2],
    /// Where the guest is after the source lost power.
    pub(crate) source_lost_power: Outcome,
    /// Where the guest is after the destination lost power.
    pub(crate) destination_lost_power: Outcome,
    /// Where the guest is after the hosts could not reach each other for a while.
    pub(crate) cable_was_out: Outcome,
}

/// What arrives first: memory, or the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Course {
    /// All memory.
    Precopy,
    /// The guest; most of its memory follows it.
    Postcopy {
        /// Further failpoints, of either side: what must not happen before the phase is reached,
        /// or not in it.
        held: &'static str,
    },
}

impl Course {
    /// The failpoints of one side, `source` or `destination`, besides that of the phase.
    fn held_at(self, side: &str) -> String {
        let held = match self {
            Self::Precopy => "",
            Self::Postcopy { held } => held,
        };
        let is_there =
            |point: &&str| point.strip_prefix(side).is_some_and(|it| it.starts_with('.'));
        held.split(',').filter(is_there).collect::<Vec<_>>().join(",")
    }
}

/// Record state of a host that has no record yet.
const NONE: &str = "";
/// What `lighter ls --all` says of a guest that was lost with its host.
const WENT_DOWN: &str = "was lost when the host went down";
/// A held destination continues when this file on its host is removed.
const HELD: &str = "/tmp/lab-held";

/// Where a guest is after the outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest runs at the source.
    Source,
    /// The guest runs at the destination.
    Destination,
    /// The guest is paused at the source until an operator resolves the doubt.
    InDoubt,
    /// The guest was lost with the host that ran it, as in any crash.
    Gone,
}

impl Phase {
    /// Whether it is the destination that is held.
    fn is_held_there(&self) -> bool {
        self.point.starts_with("destination.")
    }
}

const CONNECT: Phase = undecided("connect", "source.recv.welcome", NONE);
const PREPARE: Phase = undecided("prepare", "source.recv.prepared", "loading");
const PRECOPY: Phase = undecided("precopy", "source.data.pages", "loading");
/// The order to send the last pages is skipped, which a loss makes up for.
const SWITCHOVER: Phase = Phase {
    records: ["committed", "loading"],
    ..undecided("switchover", "source.act.sendfinalround", "loading")
};
/// The source waits for a destination of a release without early commits.
const READY: Phase = undecided("ready", "source.recv.ready", "ready");
/// The last step before an early commit: the destination needs nothing more to be ready.
const REMAINDER: Phase = Phase {
    records: ["committed", "loading"],
    ..undecided("remainder", "source.act.sendremainder", "loading")
};
/// The source, which does not wait for that, has committed.
const LOADING: Phase = Phase { name: "loading", point: "destination.act.loadstate", ..COMMIT };
pub(crate) const COMMIT: Phase = Phase {
    name: "commit",
    course: Course::Precopy,
    point: "source.send.commit",
    records: ["committed", "loading"],
    source_lost_power: Outcome::Destination,
    destination_lost_power: Outcome::Source,
    cable_was_out: Outcome::Destination,
};
pub(crate) const TAKING: Phase = Phase {
    name: "taking",
    course: Course::Precopy,
    point: "destination.act.resumeguest",
    records: ["committed", "taking"],
    source_lost_power: Outcome::Destination,
    destination_lost_power: Outcome::InDoubt,
    cable_was_out: Outcome::Destination,
};
const RESUME: Phase = Phase {
    name: "resume",
    course: Course::Precopy,
    point: "source.recv.running",
    records: ["committed", "running"],
    source_lost_power: Outcome::Destination,
    destination_lost_power: Outcome::Gone,
    cable_was_out: Outcome::Destination,
};

/// The phases in which the source is held, but for [`REPAIRED`].
const EACH: [&Phase; 6] = [&CONNECT, &PREPARE, &REMAINDER, &READY, &COMMIT, &RESUME];
/// The phases in which a loss of the connection is repaired.
const REPAIRED: [&Phase; 2] = [&PRECOPY, &SWITCHOVER];

/// A phase before the commit: the guest still belongs to the source.
pub(crate) const fn undecided(
    name: &'static str,
    point: &'static str,
    destination: &'static str,
) -> Phase {
    Phase {
        name,
        course: Course::Precopy,
        point,
        records: ["undecided", destination],
        source_lost_power: Outcome::Gone,
        destination_lost_power: Outcome::Source,
        cable_was_out: Outcome::Source,
    }
}

/// Two hosts with nodes, and guests on the first whose migrations to the second are held.
pub(crate) struct Scenario {
    lab: Lab,
    /// Options of its guests' memory.
    memory: &'static str,
    expected: Vec<(&'static str, Outcome)>,
}

impl Scenario {
    /// Starts both nodes; the second one holds its guests at the failpoints of the destination in
    /// `phase`.
    pub(crate) fn set(phase: &Phase) -> Self {
        let scenario = Self { lab: Lab::of(2), memory: "--memory 16M", expected: Vec::new() };
        let mut points = phase.course.held_at("destination");
        if phase.is_held_there() {
            points.push_str(&format!(",{}:stall={HELD}", phase.point));
        }
        let [_, there] = scenario.hosts();
        there.sh(&format!("echo LIGHTER_FAILPOINT={points} > /run/lab/node.env")).ok();
        scenario.lab.nodes();
        scenario
    }

    /// Gives guests huge pages of the hosts' pools, which are made here.
    pub(crate) fn give_huge_pages(&mut self) {
        for host in self.hosts() {
            let pool = "/proc/sys/vm/nr_hugepages";
            host.sh(&format!("echo 16 > {pool} && [ $(cat {pool}) = 16 ]")).ok();
        }
        self.memory = "--memory 16M --hugepages 2M";
    }

    /// Starts a guest and its migration, and waits until a failpoint holds it in `phase`.
    pub(crate) fn hold(&mut self, phase: &Phase, outcome: Outcome) {
        self.start(phase, outcome);
        self.await_held(phase, "true");
    }

    /// Starts a guest and its migration, which a failpoint will hold in `phase`.
    fn start(&mut self, phase: &Phase, outcome: Outcome) {
        let [here, there] = self.hosts();
        let (name, memory) = (phase.name, self.memory);
        let options = match phase.course {
            Course::Precopy => "",
            // So slow that most of its memory is still here.
            Course::Postcopy { .. } => "--bandwidth 100KB/s",
        };
        let held = phase.course.held_at("source");
        let mut point = format!("LIGHTER_FAILPOINT={held},{}:freeze", phase.point);
        if phase.point.ends_with(".ready") {
            // Only sides without early commits reach it.
            let (variable, value) = WITHOUT_EARLY_COMMIT;
            point.push_str(&format!(" --setenv={variable}={value}"));
        }
        // The workload's vCPU never idles: a low dirty rate and a small working set keep it from
        // slowing down the other guests on an emulated host.
        here.sh(&format!(
            "systemd-run --quiet --unit lab-guest-{name} --setenv={point} lighter run --name {name} {memory} \
             --working-set 1M --dirty-rate 50 < /dev/null"
        ))
        .ok();
        until("the guest runs", || {
            let done = here.sh(&format!("lighter show {name} --json"));
            holds(done.code == Some(0), done)
        });
        here.sh(&format!(
            "for task in /proc/$(systemctl show -P MainPID lab-guest-{name})/task/*; do \
             if grep -q vcpu $task/comm; then chrt --idle --pid 0 ${{task##*/}}; fi; done"
        ))
        .ok();
        here.sh(&format!(
            "systemd-run --quiet --unit lab-migrate-{name} lighter migrate {name} {} --downtime 10s {options}",
            there.address()
        ))
        .ok();
        if let Course::Postcopy { .. } = phase.course {
            here.sh(&format!(
                "until lighter migrate {name} --postcopy-now; do [ $SECONDS -lt 900 ] || exit 1; sleep 0.1; done"
            ))
            .ok();
        }
        self.expected.push((name, outcome));
    }

    /// Waits until a migration is held and the records show `phase`. The host that holds it runs
    /// the shell command `then` at once.
    fn await_held(&self, phase: &Phase, then: &str) {
        let ([here, there], name) = (self.hosts(), phase.name);
        await_point(if phase.is_held_there() { there } else { here }, name, phase.point, then);
        until("the records say where it is held", || {
            let seen = [here, there].map(|host| states(host).remove(name).unwrap_or_default());
            holds(seen == phase.records, (seen, phase.records))
        });
    }

    /// The first host, from which guests leave, and the second.
    pub(crate) fn hosts(&self) -> [Host<'_>; 2] {
        [self.lab.host(1), self.lab.host(2)]
    }

    /// Lets a held destination continue.
    fn release(&self) {
        let [_, there] = self.hosts();
        there.sh(&format!("rm -f {HELD}")).ok();
    }

    /// Unplugs the cable of the destination for 30 s, which continues if it is held.
    pub(crate) fn pull_cable(&self) {
        let [_, there] = self.hosts();
        there.cut_cable();
        self.release();
        sleep(Duration::from_secs(30));
        there.mend_cable();
    }

    /// Cuts and restores the power of host `number`, and waits until its node answers.
    pub(crate) fn lose_power(&self, number: usize) {
        self.lab.cut_power(number);
        self.lab.restore_power(number);
        self.lab.host(number).await_node();
    }

    /// Asserts that each guest ends where expected, and that nothing else is left on either host.
    #[track_caller]
    pub(crate) fn ends_as_expected(&self) {
        let hosts = self.hosts();
        let at = |place: Outcome, state: &'static str| {
            let those = self.expected.iter().filter(move |(_, outcome)| *outcome == place);
            those.map(move |(name, _)| ((*name).to_owned(), state.to_owned()))
        };
        let here = at(Outcome::Source, "running").chain(at(Outcome::InDoubt, "in-doubt")).collect();
        let wanted: [BTreeMap<String, String>; 2] =
            [here, at(Outcome::Destination, "running").collect()];
        until("each guest is where it should be, and nowhere else", || {
            let seen = hosts.map(guests);
            holds(seen == wanted, (seen, &wanted, hosts.map(states)))
        });
        for (host, guests) in hosts.iter().zip(&wanted) {
            self.nothing_is_left(*host, guests);
            for (guest, _) in guests.iter().filter(|(_, state)| *state == "running") {
                is_intact(*host, guest);
            }
        }
        self.records_agree();
        self.doubts_are_resolved();
    }

    /// Asserts that the records of both hosts say where each guest is.
    #[track_caller]
    fn records_agree(&self) {
        let recorded = self.hosts().map(states);
        for (name, outcome) in &self.expected {
            let [here, there] =
                recorded.each_ref().map(|states| states.get(*name).map_or(NONE, String::as_str));
            let agree = match outcome {
                Outcome::Source => here == "aborted" && [NONE, "discarded"].contains(&there),
                Outcome::Destination => here == "done" && there == "running",
                Outcome::InDoubt => here == "committed" || here == "serving",
                Outcome::Gone => ["done", "aborted"].contains(&here),
            };
            assert!(agree, "{name}, {outcome:?}: {here} and {there}");
        }
    }

    /// Asserts that the host of a guest in doubt names the way out, and that it is one: an operator
    /// has the guest run at the source.
    #[track_caller]
    fn doubts_are_resolved(&self) {
        let [here, there] = self.hosts();
        for (name, _) in self.expected.iter().filter(|(_, it)| *it == Outcome::InDoubt) {
            let detail = here.guest(name).map(|guest| guest["detail"].to_string());
            let detail = detail.unwrap_or_default();
            assert!(detail.contains("--resolve run"), "{detail}");
            here.lighter(&format!("migrate {name} --resolve run")).ok();
            until("the doubt is over", || {
                let recorded = [here, there].map(|host| states(host).remove(*name));
                let is_over = recorded == ["aborted", "discarded"].map(|it| Some(it.to_owned()));
                let state = here.state_of(name);
                holds(is_over && state.as_deref() == Some("running"), (state, recorded))
            });
            is_intact(here, name);
        }
    }

    /// Asserts that the host has only the processes and folders of `guests`, its node, and settled
    /// records (except for guests in doubt).
    #[track_caller]
    fn nothing_is_left(&self, host: Host<'_>, guests: &BTreeMap<String, String>) {
        let is_open = |(guest, state): &(String, String)| {
            let is_settled =
                ["done", "aborted", "running", "discarded", "lost"].contains(&state.as_str());
            // Only an operator can decide which host owns this guest.
            let is_in_doubt = self.expected.contains(&(guest.as_str(), Outcome::InDoubt));
            !is_settled && !is_in_doubt
        };
        let names: BTreeSet<&str> = guests.keys().map(String::as_str).collect();
        let processes = format!("{}\n", guests.len() + 1);
        until("nothing is left behind", || {
            let open: Vec<_> = states(host).into_iter().filter(is_open).collect();
            let running = host.sh("pgrep -c -x lighter").stdout;
            let files = host.sh("cd /var/lib/lighter && find . \\( ! -type d -o -path './guests/*' -empty \\) -printf '%P\\n'").ok();
            let strays: Vec<String> =
                files.lines().filter(|file| !belongs(file, &names)).map(str::to_owned).collect();
            let is_clean = open.is_empty() && strays.is_empty() && running == processes;
            holds(is_clean, (open, strays, running, &processes))
        });
    }
}

/// Waits until the guest `name` reaches the failpoint `point` on `host`, which then runs the shell
/// command `then` at once.
pub(crate) fn await_point(host: Host<'_>, name: &str, point: &str, then: &str) {
    // Guests have units of their own. Other guests may be held at the same point.
    let units = format!("--unit lab-guest-{name} --unit 'lighter-guest-{name}-*'");
    let log = Host::log_of(&units);
    host.sh(&format!(
        "until {log} 2> /dev/null | grep --fixed-strings 'point=\"{point}\"'; \
         do [ $SECONDS -lt 900 ] || exit 1; sleep 0.1; done; {then}"
    ))
    .ok();
}

/// The states of the guests on a host, by name.
fn guests(host: Host<'_>) -> BTreeMap<String, String> {
    let text =
        |guest: &serde_json::Value, key: &str| guest[key].as_str().unwrap_or_default().to_owned();
    host.guests().iter().map(|it| (text(it, "name"), text(it, "state"))).collect()
}

/// The states of the migration records on a host, by the guest's name.
pub(crate) fn states(host: Host<'_>) -> BTreeMap<String, String> {
    let state = |record: &serde_json::Value| {
        record["side"]["state"].as_str().unwrap_or_default().to_owned()
    };
    host.records().into_iter().map(|(guest, record)| (guest, state(&record))).collect()
}

/// Asserts that a full check of the guest's memory finds it intact.
#[track_caller]
pub(crate) fn is_intact(host: Host<'_>, guest: &str) {
    let socket = format!("/var/lib/lighter/guests/{guest}/api.sock");
    let ask =
        "curl --silent --fail -X PUT -H 'content-type: application/json' -d '{\"verify\":true}'";
    let asked =
        host.sh(&format!("{ask} --unix-socket {socket} http://guest/v1/guest/workload")).json();
    let workload = until("its memory is checked", || {
        let seen = host.ask(guest, "/v1/guest/workload")?;
        let is_checked = seen["verified_epoch"].as_u64() >= asked["verified_epoch"].as_u64();
        if is_checked { Ok(seen) } else { Err(seen.to_string()) }
    });
    assert_eq!(
        (&workload["intact"], &workload["bad_pages"]),
        (&true.into(), &0.into()),
        "{workload:#}"
    );
}

/// Asserts that `lighter ls --all` says how the guest has ended on the host.
#[track_caller]
pub(crate) fn ended(host: Host<'_>, guest: &str, words: &[&str]) {
    let listed = host.lighter("ls --all --json").json();
    let listed = listed.as_array().expect("a list");
    let its: Vec<_> = listed.iter().filter(|it| it["name"] == guest).collect();
    let [it] = its[..] else { panic!("one entry is expected: {its:#?}") };
    assert_eq!(it["state"], "ended", "{it:#}");
    let reason = it["reason"].as_str().unwrap_or_default();
    assert!(words.iter().all(|word| reason.contains(word)), "{words:?} in: {reason}");
}

macro_rules! in_each_phase {
    ($outage:ident: $($test:ident $phase:ident),*) => {
        mod $outage {
            $(#[test] fn $test() { crate::outages::$outage(&super::$phase); })*
        }
    };
}
pub(crate) use in_each_phase;

in_each_phase!(source_loses_power: connect CONNECT, prepare PREPARE, precopy PRECOPY, switchover SWITCHOVER,
    remainder REMAINDER, ready READY, loading LOADING, commit COMMIT, taking TAKING, resume RESUME);
in_each_phase!(destination_loses_power: connect CONNECT, prepare PREPARE, precopy PRECOPY, switchover SWITCHOVER,
    remainder REMAINDER, ready READY, loading LOADING, commit COMMIT, taking TAKING, resume RESUME);

pub(crate) fn source_loses_power(phase: &Phase) {
    let mut scenario = Scenario::set(phase);
    scenario.hold(phase, phase.source_lost_power);
    scenario.lose_power(1);
    scenario.release();
    scenario.ends_as_expected();
    if phase.source_lost_power == Outcome::Gone {
        ended(scenario.hosts()[0], phase.name, &[WENT_DOWN]);
    }
}

pub(crate) fn destination_loses_power(phase: &Phase) {
    let mut scenario = Scenario::set(phase);
    scenario.hold(phase, phase.destination_lost_power);
    scenario.lose_power(2);
    scenario.ends_as_expected();
    if phase.destination_lost_power == Outcome::Gone {
        ended(scenario.hosts()[1], phase.name, &[WENT_DOWN]);
    }
}

#[test]
fn the_cable_is_out_for_30_seconds() {
    cable_is_out_for(Duration::from_secs(30), &EACH);
}

#[test]
fn the_cable_is_out_for_10_minutes() {
    cable_is_out_for(Duration::from_secs(600), &[&EACH[..], &REPAIRED].concat());
}

/// It is out for less time than the hosts wait for each other.
#[test]
fn the_cable_is_out_for_a_minute_until_the_last_pages_are_on_their_way() {
    let phases = REPAIRED.map(|phase| Phase { cable_was_out: Outcome::Destination, ..*phase });
    cable_is_out_for(Duration::from_secs(60), &phases.each_ref());
}

#[test]
fn the_cable_is_out_while_the_destination_takes_the_guest() {
    cable_is_out_at_the_destination(&TAKING);
}

#[test]
fn the_cable_is_out_while_the_destination_loads_the_state() {
    cable_is_out_at_the_destination(&LOADING);
}

/// Unplugs the cable of the destination in `phase`, and lets it continue if it is held.
pub(crate) fn cable_is_out_at_the_destination(phase: &Phase) {
    let mut scenario = Scenario::set(phase);
    scenario.hold(phase, phase.cable_was_out);
    scenario.pull_cable();
    scenario.ends_as_expected();
}

/// Holds one guest in each of `phases`, at the source, unplugs the cable for `time`, and checks the
/// outcomes. Each guest's UDP traffic is dropped as soon as that guest is held, so that it loses
/// its connection in that phase while the others still need the cable.
pub(crate) fn cable_is_out_for(time: Duration, phases: &[&Phase]) {
    let mut scenario = Scenario::set(phases[0]);
    let filter = "nft 'add table inet lab; add chain inet lab in { type filter hook input priority 0; }; \
                  add chain inet lab out { type filter hook output priority 0; }'";
    scenario.hosts()[0].sh(filter).ok();
    for phase in phases {
        scenario.start(phase, phase.cable_was_out);
        let unit = format!("system.slice/lab-guest-{}.service", phase.name);
        let rules = ["in", "out"].map(|chain| {
            format!(
                "add rule inet lab {chain} socket cgroupv2 level 2 \"{unit}\" ip protocol udp drop;"
            )
        });
        scenario.await_held(phase, &format!("nft '{}'", rules.concat()));
    }
    scenario.hosts()[1].cut_cable();
    scenario.hosts()[0].sh("nft delete table inet lab").ok();
    sleep(time);
    scenario.hosts()[1].mend_cable();
    scenario.ends_as_expected();
}
