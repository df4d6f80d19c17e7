//! Treats parts of a guest's memory: merges them, splits them, collapses them into huge pages,
//! shares them with the template again, or frees zero pages.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use vmm_core::Vm;
use vmm_core::memory::{PageMap, RamRegion, Treatment};

use crate::api::memory::{MemoryTreatment, TreatedMemory, TreatmentRequest};
use crate::api::{ApiError, Reason};

/// Bytes of a chunk: the size of a huge page.
const CHUNK_BYTES: u64 = 2 << 20;

/// Most runs of chunks in one request: each may add two mappings, and a process can have 65,530
/// (`vm.max_map_count`).
const RUNS_MAX: usize = 12_000;

/// Bytes that are treated at once. Meanwhile, requests that migrate the guest or ask for its state
/// have to wait, and the guest is paused if pages are dropped that are zero or equal its
/// template's.
const PIECE_BYTES: u64 = 8 << 20;

/// Pause between two pieces, so that other threads get the lock: std's mutex is not fair, and would
/// let the thread that has just released it take it again.
pub(super) const YIELD_PAUSE: Duration = Duration::from_micros(50);

/// Treats the requested memory, until there is an error. What `hold` returns is held for one piece
/// at a time: no migration starts meanwhile.
///
/// # Errors
/// If the request is invalid, or `hold` refuses at the start; then nothing is done.
pub(super) fn treat<H>(
    vm: &Vm,
    request: &TreatmentRequest,
    hold: impl Fn() -> Result<H, ApiError>,
) -> Result<TreatedMemory, ApiError> {
    let ranges = ranges(vm.ram().layout().regions(), request)?;
    drop(hold()?);
    let mut treated = TreatedMemory { chunks: 0, error: None };
    for piece in ranges.into_iter().flat_map(pieces) {
        let done = hold().map_err(|refusal| refusal.to_string()).and_then(|_held| {
            one(vm, &piece, request.treatment).map_err(|error| error.to_string())
        });
        if let Err(error) = done {
            treated.error = Some(error);
            break;
        }
        treated.chunks += (piece.end - piece.start).div_ceil(CHUNK_BYTES);
        thread::sleep(YIELD_PAUSE);
    }
    Ok(treated)
}

/// Returns the addresses of all requested memory.
fn ranges(regions: &[RamRegion], request: &TreatmentRequest) -> Result<Vec<Range<u64>>, ApiError> {
    match &request.chunks {
        None => Ok(regions.iter().map(|region| region.gpa..region.gpa + region.bytes).collect()),
        Some(runs) if runs.len() > RUNS_MAX => Err(ApiError::new(
            Reason::BadRequest,
            format!("{} runs of chunks are too many: give {RUNS_MAX} at most", runs.len()),
        )),
        Some(runs) => runs.iter().map(|run| range(regions, *run)).collect(),
    }
}

/// Splits a range into pieces.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(PIECE_BYTES as usize).map(move |start| start..end.min(start + PIECE_BYTES))
}

/// Returns the addresses of a run of chunks. The last chunk of a region may be shorter.
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
        MemoryTreatment::Share => return vm.share_with_template(range, &mut PageMap::open()?),
        MemoryTreatment::DropZeros => return vm.drop_zeros(range, &mut PageMap::open()?),
    };
    Ok(vm.ram().treat(range, treatment)?)
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

    #[test]
    fn pieces_cover_a_range_once() {
        let range = (2 << 20)..(19 << 20);
        let found: Vec<_> =
            pieces(range).map(|piece| (piece.start >> 20, piece.end >> 20)).collect();
        assert_eq!(found, [(2, 10), (10, 18), (18, 19)]);
        assert_eq!(pieces(5..5).count(), 0);
    }
}
