//! Has parts of a guest's memory merged, taken apart, made of huge pages, or shared with its template again.

use std::ops::Range;

use vmm_core::Vm;
use vmm_core::memory::{RamRegion, Treatment};

use crate::api::memory::{MemoryTreatment, TreatedMemory, TreatmentRequest};
use crate::api::{ApiError, Reason};

/// Bytes of a chunk: what a huge page holds.
const CHUNK_BYTES: u64 = 2 << 20;

/// Most runs of chunks in one request: each may be two mappings more, and a process has 65,530 (`vm.max_map_count`).
const RUNS_MAX: usize = 12_000;

/// What is compared with a template while the guest stands still, bytes.
const SHARED_AT_ONCE_BYTES: u64 = 8 << 20;

/// Treats what is asked for, until something goes wrong.
///
/// # Errors
/// The request is no sensible one; then nothing is done.
pub(super) fn treat(vm: &Vm, request: &TreatmentRequest) -> Result<TreatedMemory, ApiError> {
    let regions = vm.ram().layout().regions();
    let ranges = match &request.chunks {
        None => regions.iter().map(|region| region.gpa..region.gpa + region.bytes).collect(),
        Some(runs) if runs.len() > RUNS_MAX => {
            return Err(ApiError::new(
                Reason::BadRequest,
                format!("{} runs of chunks are too many: give {RUNS_MAX} at most", runs.len()),
            ));
        }
        Some(runs) => runs.iter().map(|run| range(regions, *run)).collect::<Result<Vec<_>, _>>()?,
    };
    let mut treated = TreatedMemory { chunks: 0, error: None };
    for range in ranges {
        if let Err(error) = one(vm, &range, request.treatment) {
            treated.error = Some(error.to_string());
            break;
        }
        treated.chunks += (range.end - range.start).div_ceil(CHUNK_BYTES);
    }
    Ok(treated)
}

/// The addresses of a run of chunks. The last chunk of a region may be shorter.
fn range(regions: &[RamRegion], (first, count): (u32, u32)) -> Result<Range<u64>, ApiError> {
    let start = u64::from(first) * CHUNK_BYTES;
    let end = start + u64::from(count) * CHUNK_BYTES;
    let region =
        regions.iter().find(|region| (region.gpa..region.gpa + region.bytes).contains(&start));
    let last = region.map(|region| region.gpa + region.bytes);
    match last {
        Some(last) if count > 0 && end < last + CHUNK_BYTES => Ok(start..end.min(last)),
        _ => Err(ApiError::new(
            Reason::BadRequest,
            format!("the guest has no memory in {count} chunks of 2 MiB from chunk {first} on"),
        )),
    }
}

fn one(vm: &Vm, range: &Range<u64>, treatment: MemoryTreatment) -> vmm_core::Result<()> {
    let treatment = match treatment {
        MemoryTreatment::Merge => Treatment::Merge,
        MemoryTreatment::Unmerge => Treatment::Unmerge,
        MemoryTreatment::Collapse => Treatment::Collapse,
        MemoryTreatment::Share => return share(vm, range),
    };
    Ok(vm.ram().treat(range, treatment)?)
}

/// A little at a time: the guest stands still for each.
fn share(vm: &Vm, range: &Range<u64>) -> vmm_core::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + SHARED_AT_ONCE_BYTES);
        vm.share_with_template(&(start..end))?;
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_addresses_and_the_last_one_may_be_short() {
        let low = RamRegion { gpa: 0, bytes: (4 << 20) + (256 << 10), first_chunk: 0 };
        let high = RamRegion { gpa: 4 << 30, bytes: 4 << 20, first_chunk: 17 };
        let regions = [low, high];
        assert_eq!(range(&regions, (1, 2)).unwrap(), 2 << 20..low.bytes);
        assert_eq!(range(&regions, (2048, 2)).unwrap(), 4 << 30..(4 << 30) + (4 << 20));
        for nowhere in [(0, 0), (1, 3), (3, 1), (2047, 1), (2049, 2), (u32::MAX, u32::MAX)] {
            let error = range(&regions, nowhere).unwrap_err().to_string();
            assert!(error.contains("no memory"), "{nowhere:?}: {error}");
        }
    }
}
