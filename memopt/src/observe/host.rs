//! What the host has.

use super::ObserveError;
use super::fields::{self, Fields};

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All memory that the kernel manages.
    pub total_bytes: u64,
    /// What the kernel reckons it can give to new work without swapping.
    pub available_bytes: u64,
}

/// Reads the host's memory from `/proc/meminfo`.
///
/// # Errors
/// [`ObserveError`] when the file cannot be read or is not what the kernel writes.
pub fn host_memory() -> Result<HostMemory, ObserveError> {
    parse_meminfo(&fields::read("/proc/meminfo", None)?)
}

/// The numbers in the text of `meminfo`.
///
/// # Errors
/// [`ObserveError::Missing`] or [`ObserveError::Amount`] for text that no kernel writes.
pub fn parse_meminfo(text: &str) -> Result<HostMemory, ObserveError> {
    let fields = Fields { file: "meminfo", text };
    Ok(HostMemory {
        total_bytes: fields.required("MemTotal")?,
        available_bytes: fields.required("MemAvailable")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_total_and_available() {
        let text = "MemTotal:  24000 kB\nMemFree:  1 kB\nMemAvailable:  12000 kB\n";
        let memory = parse_meminfo(text).expect("a kernel's text");
        assert_eq!(memory.total_bytes, 24_000 << 10);
        assert_eq!(memory.available_bytes, 12_000 << 10);
    }

    #[test]
    fn this_host_has_memory() {
        let memory = host_memory().expect("meminfo");
        assert!(memory.total_bytes >= memory.available_bytes && memory.available_bytes > 0);
    }
}
