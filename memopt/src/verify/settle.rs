//! How long a step takes until its effect can be measured.

use std::time::Duration;

use crate::policy::Policy;
use crate::step::{Action, ChunkRange, Step};
use crate::units::MIB;

/// Bytes that a balloon moves per second in a busy guest: a quarter of the 0.95 GiB/s measured for
/// an idle one.
const BALLOON_BYTES_PER_S: u64 = 256 * MIB;

/// Returns how long the effect of `step` may take to show, counted from its execution. A later
/// sample would include other changes.
#[must_use]
pub fn settles_after(step: &Step, policy: &Policy) -> Duration {
    match &step.action {
        Action::SetBalloon { from_bytes, to_bytes, .. } => {
            let moved = from_bytes.abs_diff(*to_bytes) / BALLOON_BYTES_PER_S;
            // At most two minutes, or the time after which a balloon counts as stuck if that is
            // longer.
            Duration::from_secs(10 + moved.min(110)).max(policy.balloon.timeout)
        }
        // Marking memory returns nothing on its own: ksmd has to scan it twice.
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

/// Returns `seconds` plus one millisecond per chunk.
fn by_chunk(chunks: &[ChunkRange], seconds: u64) -> Duration {
    let count: u64 = chunks.iter().map(|range| u64::from(range.count)).sum();
    Duration::from_secs(seconds) + Duration::from_millis(count.min(600_000))
}
