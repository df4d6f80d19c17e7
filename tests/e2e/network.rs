//! A real network that fails: two hosts in two network namespaces, joined by a cable that is
//! unplugged and plugged in again.
//!
//! Needs root. Where namespaces cannot be created, set `LIGHTER_TEST_SKIP_NETWORK=1` to skip these
//! tests; otherwise they fail and say so.

pub(crate) mod cable;
mod lan;
mod links;
mod relay;
mod taps;

use std::time::{Duration, Instant};

use cable::Cable;

use support::checks::{exactly_one_copy_runs, one_intact_copy};
use support::{CRAWL, Guest, GuestPlan, Migration, Pair, wait};

/// A dead peer is detected within this time (docs/protocol.md).
const PROMISED: Duration = Duration::from_secs(10);

/// The same on a machine that may be busy; still far below a minute.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(3 * 10);

/// How often the cable is unplugged; the fastest detection must be within the promised time.
const PULLS: usize = 3;

/// Two hosts on a cable, and a guest at the first whose migration sends memory slowly.
fn crawling(cable: &Cable) -> (Pair, Guest, Migration) {
    let mut pair = cable.hosts();
    pair.a.start_node(&cable.node_plan(0));
    pair.b.start_node(&cable.node_plan(1));
    let plan = GuestPlan { namespace: cable.end_a(), ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    (pair, guest, migration)
}

/// Waits until the source says that its destination is out of reach, or that it is no longer.
pub(crate) fn await_reach(guest: &Guest, is_reached: bool) {
    wait::until(&format!("the destination is in reach: {is_reached}"), || {
        let status = guest.get("/v1/guest/migration")?;
        let progress = &status["progress"];
        wait::holds(progress["disconnected"].is_null() == is_reached, progress.clone())
    });
}

/// Lifts the limits with which a migration crawls.
pub(crate) fn hurry(pair: &Pair, guest: &Guest) {
    let limits = ["migrate", guest.name(), "--set", "bandwidth=none,downtime=3s"];
    pair.a.run(&limits).ok();
}

#[test]
fn a_cut_network_in_precopy_is_noticed_and_rounds_go_on_once_it_is_back() {
    let Some(cable) = Cable::lay() else { return };
    let (pair, guest, migration) = crawling(&cable);
    let arriving = pair.b.guest(guest.name()).pid();
    let mut noticed_after = Vec::new();
    for _ in 0..PULLS {
        cable.pull();
        let pulled = Instant::now();
        await_reach(&guest, false);
        let noticed = pulled.elapsed();
        assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");
        noticed_after.push(noticed);
        cable.put_back();
        await_reach(&guest, true);
        if noticed < PROMISED {
            break;
        }
    }
    assert!(noticed_after.iter().any(|noticed| *noticed < PROMISED), "{noticed_after:?}");

    hurry(&pair, &guest);
    let report = migration.finish().ok();
    assert_eq!(report["decision_counts"]["reconnected"], noticed_after.len(), "{report:#}");
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
    let arrived = exactly_one_copy_runs(&pair.hosts(), guest.name(), &pair.b);
    assert_eq!(arrived.pid(), arriving, "it was the same process all the time");
}

#[test]
fn a_migration_is_cancelled_while_its_destination_is_out_of_reach() {
    let Some(cable) = Cable::lay() else { return };
    let (pair, guest, migration) = crawling(&cable);
    let arriving = pair.b.guest(guest.name()).pid();
    cable.pull();
    await_reach(&guest, false);

    pair.a.run(&["cancel", guest.name()]).ok();
    migration.finish().cancelled();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);

    cable.put_back();
    wait::until("the destination has heard of it", || wait::holds(!arriving.is_alive(), arriving));
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}
