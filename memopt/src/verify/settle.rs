//! How long a step takes to show what it brings.

use std::time::Duration;

use crate::policy::Policy;
use crate::step::{Action, ChunkRange, Step};
use crate::units::MIB;

/// Bytes that a balloon moves in a second in a busy guest: a quarter of the 0.95 GiB/s that an idle
/// one was measured at.
const BALLOON_BYTES_PER_S: u64 = 256 * MIB;

/// How long `step` may take to show what it brings, counted from when it was done. Whoever looks
/// later measures other things too.
#[must_use]
pub fn settles_after(step: &Step, policy: &Policy) -> Duration {
    match &step.action {
        Action::SetBalloon { from_bytes, to_bytes, .. } => {
            let moved = from_bytes.abs_diff(*to_bytes) / BALLOON_BYTES_PER_S;
            // No longer than it takes to be found stuck.
            Duration::from_secs(10 + moved.min(110)).max(policy.balloon.timeout)
        }
        // Marking brings nothing by itself: ksmd has to come by twice.
        Action::Merge { .. } => policy.merge.window,
        Action::DriveKsm { window, .. } => *window,
        Action::Unmerge { chunks, .. } => by_chunk(chunks.as_deref().unwrap_or_default(), 10),
        Action::MakeHuge { chunks, .. } => by_chunk(chunks, 5),
        Action::RemergeTemplate { chunks, .. } | Action::DropZeros { chunks, .. } => {
            by_chunk(chunks, 2)
        }
        Action::StopKsm { .. } | Action::ResizePool { .. } => Duration::from_secs(2),
    }
}

/// `seconds` and a millisecond for each chunk.
fn by_chunk(chunks: &[ChunkRange], seconds: u64) -> Duration {
    let count: u64 = chunks.iter().map(|range| u64::from(range.count)).sum();
    Duration::from_secs(seconds) + Duration::from_millis(count.min(600_000))
}
