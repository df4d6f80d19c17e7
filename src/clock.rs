//! Wall-clock time, time since boot, and which boot of the host this is.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Returns the current time in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the ID of this boot of the host: another one after each boot (proc(5)).
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = regular_file::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 1 << 10)?;
    Ok(text.trim().to_owned())
}

/// Returns the time since the host booted, including suspend. Unlike the time of day, this clock
/// cannot be set.
pub(crate) fn uptime() -> Duration {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Duration::from(time),
        // Every Linux has this clock.
        Err(_) => Duration::ZERO,
    }
}
