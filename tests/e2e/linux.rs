//! A real Linux guest, migrated while it runs: it continues with the right memory content and
//! clocks, and loses no timer.
//!
//! The guest is booted once and saved (see [`image`]); every test starts from that file, so each
//! also tests restoring. The guest reports its state on its serial console (see [`witness`]).

mod backings;
mod balloon;
mod copied;
mod disk;
mod foreign;
mod reporting;
mod vsock;

use support::linux::image::Image;
use support::linux::witness::CheckConsole;

use support::checks::nothing_left_behind;
use support::{Host, Migration, Pair};

/// Number of consecutive migrations, so that small clock errors add up to a visible one.
const MIGRATIONS: usize = 6;

#[test]
fn linux_with_one_halting_vcpu_continues_undisturbed() {
    goes_on(&Image::halting());
}

#[test]
fn linux_with_two_vcpus_continues_undisturbed() {
    goes_on(&Image::busy());
}

fn goes_on(image: &Image) {
    let pair = Pair::new();
    let mut hosts: [&Host; 2] = pair.hosts();
    hosts[0].run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    let mut witness = CheckConsole::of(hosts[0], "linux", image.pages());
    let (before, clocks) = witness.read_clocks();
    witness.has_checked_all_since(&before);

    let mut last = before;
    for _ in 0..MIGRATIONS {
        Migration::run(hosts[0], "linux", hosts[1]).ok();
        hosts.reverse();
        witness = CheckConsole::of(hosts[0], "linux", image.pages());
        let now = witness.line();
        now.follows(&last);
        last = now;
    }
    let after = witness.keeps_time_since(clocks);
    after.follows(&last);
    witness.has_checked_all_since(&after);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_paused_linux_continues_at_the_destination() {
    let pair = Pair::new();
    let image = Image::halting();
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    let before = CheckConsole::of(&pair.a, "linux", image.pages()).line();
    pair.a.run(&["pause", "linux"]).ok();
    Migration::run(&pair.a, "linux", &pair.b).ok();
    pair.b.guest("linux").await_state("paused");
    pair.b.run(&["resume", "linux"]).ok();
    let witness = CheckConsole::of(&pair.b, "linux", image.pages());
    let after = witness.line();
    after.follows(&before);
    witness.has_checked_all_since(&after);
    nothing_left_behind(&pair.hosts());
}
