//! A guest that is paused for seconds at the switchover, because something is slow: afterwards its
//! clocks are right, and no timer is lost.

use std::time::{Duration, Instant};

use super::phase::{self, Side};
use super::scene::Stall;
use support::linux::image::Image;
use support::linux::witness::CheckConsole;
use support::{HELD, Migration, Pair, lighter, run, wait};

/// Much longer than the error of a clock reading and the interval of the guest's timer.
const STANDSTILL: Duration = Duration::from_secs(2);

#[test]
fn linux_paused_for_seconds_at_the_hand_over_loses_neither_time_nor_timers() {
    let (pair, image) = (Pair::new(), Image::halting());
    let (stall, phase) = (Stall::new(&pair), phase::switchover());
    let mut restore =
        lighter(pair.a.state_dir(), &["restore", image.file(), "--name", "linux", "--detach"]);
    restore.envs(stall.environment(&phase, Side::Source));
    run(restore).ok();
    let witness = CheckConsole::of(&pair.a, "linux", image.pages());
    let (before, clocks) = witness.read_clocks();

    let migration = Migration::start(&pair.a, "linux", &pair.b, &HELD);
    stall.await_reached();
    let began = Instant::now();
    wait::until("the guest has stood for long", || wait::holds(began.elapsed() > STANDSTILL, ()));
    stall.release();
    let report = migration.finish().ok();
    assert!(report["downtime_seconds"].as_f64() > Some(STANDSTILL.as_secs_f64()), "{report:#}");

    CheckConsole::of(&pair.b, "linux", image.pages()).keeps_time_since(clocks).follows(&before);
}
