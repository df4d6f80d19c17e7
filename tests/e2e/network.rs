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
use support::{CRAWL, Guest, GuestPlan, Migration, wait};

/// A dead peer is detected within this time (docs/protocol.md).
const PROMISED: Duration = Duration::from_secs(10);

/// The same on a machine that may be busy; still far below a minute.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(3 * 10);

/// How often the cable is unplugged; the fastest detection must be within the promised time.
const PULLS: usize = 3;

#[test]
fn a_cut_network_in_precopy_is_noticed_and_the_guest_keeps_running() {
    let Some(cable) = Cable::lay() else { return };
    let mut pair = cable.hosts();
    pair.a.start_node(&cable.node_plan(0));
    pair.b.start_node(&cable.node_plan(1));
    let guest =
        Guest::start(&pair.a, &GuestPlan { namespace: cable.end_a(), ..GuestPlan::default() });
    let mut noticed_after = Vec::new();
    for _ in 0..PULLS {
        let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
        migration.await_phase("precopy");
        let arriving = pair.b.guest(guest.name()).pid();

        cable.pull();
        let pulled = Instant::now();
        migration.finish().stayed(&["connection"]);
        let noticed = pulled.elapsed();
        assert!(noticed < NOTICED_WITHIN, "noticed after {noticed:?}");
        noticed_after.push(noticed);

        one_intact_copy(&pair.hosts(), guest.name(), &pair.a);
        wait::until("the destination has noticed too", || {
            wait::holds(!arriving.is_alive(), arriving)
        });
        cable.put_back();
        if noticed < PROMISED {
            break;
        }
    }
    assert!(noticed_after.iter().any(|noticed| *noticed < PROMISED), "{noticed_after:?}");

    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
    assert!(exactly_one_copy_runs(&pair.hosts(), guest.name(), &pair.b).pid().is_alive());
}
