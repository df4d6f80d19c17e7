//! Reads `/proc/PID/stat`: when a process started, and for how long it has run.

use std::time::Duration;

use super::ObserveError;
use super::sources::{Sources, unsigned};

/// `USER_HZ`: the ticks per second in the file, fixed in the kernel's ABI on x86-64.
const TICKS_PER_SECOND: u64 = 100;

/// The CPU time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime {
    /// When the process started, in kernel ticks since boot: a PID may be used again.
    pub started: u64,
    /// Time that its threads have run.
    pub used: Duration,
}

/// Reads the CPU time of process `pid`.
///
/// # Errors
/// [`ObserveError`], also if the process is gone.
pub fn cpu_time(pid: u32) -> Result<CpuTime, ObserveError> {
    let sources = Sources::system();
    let stat = sources.read_of(pid, "stat")?;
    parse(&stat).ok_or_else(|| sources.unexpected(&format!("proc/{pid}/stat"), &stat))
}

/// Reads the start time of a process, in kernel ticks since boot. Together with the pid it
/// identifies the process.
pub(crate) fn started_of(sources: &Sources, pid: u32) -> Result<u64, ObserveError> {
    let stat = sources.read_of(pid, "stat")?;
    started(&stat).ok_or_else(|| sources.unexpected(&format!("proc/{pid}/stat"), &stat))
}

/// Returns the time that `ticks` kernel ticks take: since boot, the host's uptime.
pub(crate) const fn time_of(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND))
}

fn parse(stat: &str) -> Option<CpuTime> {
    Some(CpuTime { started: started(stat)?, used: used(stat)? })
}

/// Parses `starttime` in the text of the file (proc(5): field 22).
fn started(stat: &str) -> Option<u64> {
    unsigned(fields(stat)?.nth(19)?)
}

/// Parses `utime` and `stime` in the text of the file (proc(5): fields 14 and 15).
pub(super) fn used(stat: &str) -> Option<Duration> {
    let mut fields = fields(stat)?.skip(11);
    let (user, system) = (unsigned(fields.next()?)?, unsigned(fields.next()?)?);
    user.checked_add(system).map(time_of)
}

/// Returns the fields behind the name, which may contain spaces and brackets; field 3 is the first.
fn fields(stat: &str) -> Option<std::str::Split<'_, char>> {
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.split(' '))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From Linux 6.18, with a name that a process may give itself.
    const STAT: &str = "4711 (a) R (b) S 1 4711 4711 0 -1 1077936384 9 0 0 0 250 50 7 7 20 0 5 0 \
                        123456 600000 140000 18446744073709551615";

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let expected = CpuTime { started: 123_456, used: Duration::from_secs(3) };
        assert_eq!(parse(STAT), Some(expected));
        assert_eq!(parse("4711 (a) S 1 2"), None);
        assert_eq!(parse(""), None);
        let own = cpu_time(std::process::id()).unwrap();
        assert!(own.started > 0, "{own:?}");
    }

    proptest! {
        #[test]
        fn any_text_gives_times_or_nothing(text in "(?s).{0,200}") {
            let _ = parse(&text);
        }
    }
}
