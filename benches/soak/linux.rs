//! The guest of Linux, as the tests have it.

use std::time::Duration;

use support::linux::witness::{Line, Witness};
use support::wait;

/// How long the check program may take where its kernel is emulated and the machine is busy.
const CHECK_PATIENCE: Duration = Duration::from_secs(600);

/// Waits until each of its `pages` has been checked and rewritten since `earlier`, and none was
/// bad.
pub(crate) fn await_check(witness: &Witness, pages: u64, earlier: &Line) {
    let enough = earlier.get("written") + pages as i64;
    wait::within(CHECK_PATIENCE, "linux has checked all its pages", || {
        let line = witness.last_line().ok_or("no line")?;
        line.follows(earlier);
        wait::holds(line.get("written") >= enough, "not yet")
    });
}
