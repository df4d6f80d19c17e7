//! The Linux guest, which is that of the tests.

use std::time::Duration;

use support::linux::witness::{CheckConsole, Line};
use support::wait;

/// Limit of the check, where the guest's kernel is emulated and the machine is busy.
const CHECK_PATIENCE: Duration = Duration::from_secs(600);

/// Waits until each of the guest's `pages` has been checked and rewritten since `earlier`; asserts
/// that none was bad.
pub(crate) fn await_check(witness: &CheckConsole, pages: u64, earlier: &Line) {
    let enough = earlier.get("written") + pages as i64;
    wait::within(CHECK_PATIENCE, "linux has checked all its pages", || {
        let line = witness.last_line().ok_or("no line")?;
        line.follows(earlier);
        wait::holds(line.get("written") >= enough, "not yet")
    });
}
