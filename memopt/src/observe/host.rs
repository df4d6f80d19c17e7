//! The host's memory and KSM, pressure and pool state.

use std::fmt;

use super::fields::Fields;
use super::{ObserveError, Sources};
use crate::situation;

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All memory that the kernel manages.
    pub total_bytes: u64,
    /// The kernel's estimate of the memory available to new work without swapping.
    pub available_bytes: u64,
}

/// A part of [`situation::Host`] that could not be read; the other parts are valid.
#[derive(Debug)]
pub struct Missing {
    /// The missing part.
    pub part: Part,
    /// Why it could not be read.
    pub cause: ObserveError,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be told: {}", self.part, self.cause)
    }
}

/// The parts of a host's state that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Swap in use.
    Swap,
    /// Pressure stall information.
    Pressure,
    /// The kernel's samepage merging.
    Ksm,
    /// The CPU time of ksmd.
    KsmdTime,
    /// The hugetlb pools.
    Pools,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Swap => "swap in use",
            Self::Pressure => "memory pressure (PSI)",
            Self::Ksm => "samepage merging (KSM)",
            Self::KsmdTime => "the CPU time of ksmd",
            Self::Pools => "pools of huge pages (hugetlb)",
        })
    }
}

/// Reads all host state that plans need, and which parts of it this kernel lacks or reports
/// incorrectly. A kernel built without one of them is not an error. The merge domain does not come
/// from the kernel, so it is left empty.
///
/// # Errors
/// [`ObserveError`] if the host's memory itself cannot be read: nothing can be decided without it.
pub fn host(sources: &Sources) -> Result<(situation::Host, Vec<Missing>), ObserveError> {
    let mut missing = Vec::new();
    let text = sources.read("proc/meminfo")?;
    let memory = parse_meminfo(&text)?;
    let mut ksm = present(&mut missing, Part::Ksm, super::ksm(sources)).map(|ksm| ksm.counters);
    if let Some(ksm) = &mut ksm {
        ksm.cpu = present(&mut missing, Part::KsmdTime, super::ksmd_time(sources));
    }
    let host = situation::Host {
        total_bytes: memory.total_bytes,
        available_bytes: memory.available_bytes,
        swap_used_bytes: present(&mut missing, Part::Swap, parse_swap_used(&text)).unwrap_or(0),
        pressure: present(&mut missing, Part::Pressure, super::pressure(sources)),
        ksm,
        pools: present(&mut missing, Part::Pools, super::pools(sources)).unwrap_or_default(),
        merged_domain: None,
        other_processes: Vec::new(),
    };
    Ok((host, missing))
}

fn present<T>(missing: &mut Vec<Missing>, part: Part, read: Result<T, ObserveError>) -> Option<T> {
    read.map_err(|cause| missing.push(Missing { part, cause })).ok()
}

/// Reads the host's memory from `/proc/meminfo`.
///
/// # Errors
/// [`ObserveError`] if the file cannot be read or is not what the kernel writes.
pub fn host_memory() -> Result<HostMemory, ObserveError> {
    parse_meminfo(&Sources::system().read("proc/meminfo")?)
}

/// Parses the text of `meminfo`.
///
/// # Errors
/// [`ObserveError::Missing`] or [`ObserveError::Amount`] if the text is not what the kernel writes.
pub fn parse_meminfo(text: &str) -> Result<HostMemory, ObserveError> {
    let fields = Fields { file: "meminfo", text };
    Ok(HostMemory {
        total_bytes: fields.required("MemTotal")?,
        available_bytes: fields.required("MemAvailable")?,
    })
}

/// Parses the swap in use from `meminfo`; 0 on a kernel without swap.
fn parse_swap_used(text: &str) -> Result<u64, ObserveError> {
    let fields = Fields { file: "meminfo", text };
    let total = fields.optional("SwapTotal")?.unwrap_or(0);
    Ok(total.saturating_sub(fields.optional("SwapFree")?.unwrap_or(total)))
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

    #[test]
    fn missing_parts_are_named_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("proc")).unwrap();
        let sources = Sources::at(folder.path());
        assert!(matches!(host(&sources).unwrap_err(), ObserveError::Absent { .. }));

        let text =
            "MemTotal: 24000 kB\nMemAvailable: 12000 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n";
        std::fs::write(folder.path().join("proc/meminfo"), text).unwrap();
        let (host, missing) = host(&sources).unwrap();
        assert_eq!((host.total_bytes, host.swap_used_bytes), (24_000 << 10, 40 << 10));
        assert!(host.pressure.is_none() && host.ksm.is_none() && host.pools.is_empty());
        let parts: Vec<Part> = missing.iter().map(|missing| missing.part).collect();
        assert_eq!(parts, [Part::Ksm, Part::Pressure, Part::Pools]);
        let said = missing[1].to_string();
        assert!(said.contains("(PSI)") && said.contains("proc/pressure/memory"), "{said}");
    }

    #[test]
    fn a_broken_part_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/pressure")).unwrap();
        let text = "MemTotal: 2 kB\nMemAvailable: 1 kB\nSwapTotal: lots\n";
        std::fs::write(folder.path().join("proc/meminfo"), text).unwrap();
        std::fs::write(folder.path().join("proc/pressure/memory"), "some avg10=nan\n").unwrap();
        let (host, missing) = host(&Sources::at(folder.path())).unwrap();
        assert_eq!(host.available_bytes, 1024);
        let parts: Vec<Part> = missing.iter().map(|missing| missing.part).collect();
        assert_eq!(parts, [Part::Ksm, Part::Swap, Part::Pressure, Part::Pools]);
    }
}
