//! What the host can provide: a guest that it cannot back is refused before anything is created.

use super::MemoryError;

/// Memory that must stay free for the host and the VMM's own process when a guest is started, in
/// bytes.
pub const HOST_RESERVE_BYTES: u64 = 64 << 20;

/// Returns the bytes that the host can provide without swapping: `MemAvailable` of `/proc/meminfo`
/// (proc(5)).
///
/// # Errors
/// [`MemoryError::Meminfo`] if the file cannot be read or lacks that line.
pub fn available_bytes() -> Result<u64, MemoryError> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|error| MemoryError::Meminfo(format!("/proc/meminfo: {error}")))?;
    parse_available(&text)
        .ok_or_else(|| MemoryError::Meminfo("/proc/meminfo has no MemAvailable line".into()))
}

/// Checks that the host can back `wanted` bytes and keep its reserve.
pub(crate) fn check_available(wanted: u64) -> Result<(), MemoryError> {
    let available = available_bytes()?;
    if wanted.saturating_add(HOST_RESERVE_BYTES) > available {
        return Err(MemoryError::NotEnough { wanted, available });
    }
    Ok(())
}

/// Checks that the kernel supports KSM; it need not be running.
pub(super) fn check_ksm() -> Result<(), MemoryError> {
    let is_there = std::path::Path::new("/sys/kernel/mm/ksm").is_dir();
    if is_there { Ok(()) } else { Err(MemoryError::NoKsm) }
}

fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(parse_available(text), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 100 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_guest_larger_than_the_host_is_refused_with_both_figures() {
        let error = check_available(1 << 50).unwrap_err().to_string();
        assert!(error.contains("guest of 1073741824 MiB"), "{error}");
        assert!(error.contains("MiB are available"), "{error}");
    }
}
