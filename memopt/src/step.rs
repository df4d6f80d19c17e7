//! One action on a guest or on the host. Plans consist of steps; the rest of the crate deals with
//! them.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::Actuator;
use crate::units::{Share, Size, Span};

/// Consecutive chunks of 2 MiB: `first` and the `count - 1` after it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct ChunkRange {
    /// Guest physical address of the first chunk divided by 2 MiB.
    pub first: u32,
    /// Number of chunks.
    pub count: u32,
}

/// One action of a plan, with the effect expected of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// The action to execute.
    pub action: Action,
    /// Memory that the host is expected to get back. Signed: negative when the host gives memory.
    pub expected_bytes: i64,
    /// Host CPU time that the step is expected to cost.
    pub cpu: Duration,
    /// The reason for the step, in one sentence.
    pub reason: String,
    /// The process of the guest that is acted on, even if another guest has the name by then;
    /// absent for steps on the host, and in plans of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// The possible actions. Each names the state to reach rather than a change, so executing it twice
/// does no harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// Set the balloon so that the guest keeps `to_bytes`.
    SetBalloon {
        /// Name of the guest.
        guest: String,
        /// Memory that it was asked to keep so far.
        from_bytes: u64,
        /// Memory that it is to keep.
        to_bytes: u64,
    },
    /// Let the kernel merge these chunks of the guest, and stop holding them in huge pages.
    Merge {
        /// Name of the guest.
        guest: String,
        /// The chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Unmerge these chunks, so that each page has its own memory again, and stop merging them.
    Unmerge {
        /// Name of the guest.
        guest: String,
        /// The chunks, in order of their address; all of its RAM when absent.
        chunks: Option<Vec<ChunkRange>>,
    },
    /// Collapse these chunks into huge pages (`MADV_COLLAPSE`).
    MakeHuge {
        /// Name of the guest.
        guest: String,
        /// The chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Open a window for ksmd.
    DriveKsm {
        /// The merge domain whose guests may be merged.
        domain: String,
        /// Maximum scan rate.
        pages_per_s: u64,
        /// Share of one core that ksmd may use.
        cpu: f64,
        /// Maximum CPU time over the whole window.
        #[serde(default = "unlimited")]
        cpu_time: Duration,
        /// Maximum duration of the window.
        window: Duration,
        /// What the window is expected to return in total, including the effect of the steps that
        /// only mark memory for it.
        window_bytes: i64,
    },
    /// Close the window, and restore ksmd's previous settings.
    StopKsm {
        /// The merge domain that the window was for.
        domain: String,
    },
    /// Drop private pages that equal the guest's template in the same place.
    RemergeTemplate {
        /// Name of the guest.
        guest: String,
        /// The chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Return pages of zeros to the host, and split the huge pages that contain them.
    DropZeros {
        /// Name of the guest.
        guest: String,
        /// The chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Resize a hugetlb pool of the host.
    ResizePool {
        /// Size of the pool's pages.
        page_bytes: u64,
        /// Pages in the pool so far.
        from_pages: u64,
        /// Pages that the pool is to have.
        to_pages: u64,
    },
}

impl Action {
    /// Returns the guest that the action applies to; `None` for actions on the host.
    #[must_use]
    pub fn guest(&self) -> Option<&str> {
        match self {
            Self::SetBalloon { guest, .. }
            | Self::Merge { guest, .. }
            | Self::Unmerge { guest, .. }
            | Self::MakeHuge { guest, .. }
            | Self::RemergeTemplate { guest, .. }
            | Self::DropZeros { guest, .. } => Some(guest),
            Self::DriveKsm { .. } | Self::StopKsm { .. } | Self::ResizePool { .. } => None,
        }
    }

    /// Whether it takes memory from a guest by its balloon. A node must not lose track of such a
    /// step when it is killed.
    #[must_use]
    pub fn inflates_a_balloon(&self) -> bool {
        matches!(self, Self::SetBalloon { from_bytes, to_bytes, .. } if to_bytes < from_bytes)
    }

    /// Returns the actuator that executes it.
    #[must_use]
    pub fn actuator(&self) -> Actuator {
        match self {
            Self::SetBalloon { .. } => Actuator::Balloon,
            Self::Merge { .. }
            | Self::Unmerge { .. }
            | Self::DriveKsm { .. }
            | Self::StopKsm { .. } => Actuator::Merge,
            Self::MakeHuge { .. } => Actuator::Huge,
            Self::RemergeTemplate { .. } => Actuator::Template,
            Self::DropZeros { .. } => Actuator::Zeros,
            Self::ResizePool { .. } => Actuator::Pool,
        }
    }

    /// Rank in the order of execution: what guests need comes first, then what makes the rest safe,
    /// then what returns most for least.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::SetBalloon { from_bytes, to_bytes, .. } if to_bytes > from_bytes => 0,
            Self::StopKsm { .. } => 1,
            Self::Unmerge { .. } => 2,
            Self::RemergeTemplate { .. } => 3,
            Self::DropZeros { .. } => 4,
            Self::Merge { .. } => 5,
            Self::DriveKsm { .. } => 6,
            Self::ResizePool { .. } => 7,
            Self::SetBalloon { .. } => 8,
            Self::MakeHuge { .. } => 9,
        }
    }
}

/// The default in plans of versions without such a limit.
fn unlimited() -> Duration {
    Duration::MAX
}

/// Groups the chunks `indices`, which are in order, into as few ranges as possible.
pub(crate) fn ranges(indices: impl IntoIterator<Item = u32>) -> Vec<ChunkRange> {
    let mut found: Vec<ChunkRange> = Vec::new();
    for index in indices {
        match found.last_mut() {
            Some(last) if last.first.checked_add(last.count) == Some(index) => last.count += 1,
            _ => found.push(ChunkRange { first: index, count: 1 }),
        }
    }
    found
}

/// Formats the number of chunks, of 2 MiB each, e.g. `12 chunks`.
fn chunk_count(chunks: &[ChunkRange]) -> String {
    match chunks.iter().map(|range| u64::from(range.count)).sum::<u64>() {
        1 => "1 chunk".to_owned(),
        count => format!("{count} chunks"),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.action, Size(self.expected_bytes), self.reason)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetBalloon { guest, from_bytes, to_bytes } => {
                let (from, to) = (Size::of(*from_bytes), Size::of(*to_bytes));
                write!(f, "{guest}: balloon from {from} to {to}")
            }
            Self::Merge { guest, chunks } => write!(f, "{guest}: merge {}", chunk_count(chunks)),
            Self::Unmerge { guest, chunks: None } => write!(f, "{guest}: unmerge all"),
            Self::Unmerge { guest, chunks: Some(chunks) } => {
                write!(f, "{guest}: unmerge {}", chunk_count(chunks))
            }
            Self::MakeHuge { guest, chunks } => {
                write!(f, "{guest}: huge pages for {}", chunk_count(chunks))
            }
            Self::DriveKsm { domain, pages_per_s, cpu, cpu_time, window, .. } => {
                let (share, time) = (Share(*cpu), Span(*window));
                write!(
                    f,
                    "ksmd: merge domain {domain}, {pages_per_s} pages/s, {share} of a core, for {time}"
                )?;
                match *cpu_time < window.mul_f64(*cpu) {
                    true => write!(f, " or {} of CPU time", Span(*cpu_time)),
                    false => Ok(()),
                }
            }
            Self::StopKsm { domain } => write!(f, "ksmd: stop merging domain {domain}"),
            Self::RemergeTemplate { guest, chunks } => {
                write!(f, "{guest}: share {} with the template again", chunk_count(chunks))
            }
            Self::DropZeros { guest, chunks } => {
                write!(f, "{guest}: give back the zeros of {}", chunk_count(chunks))
            }
            Self::ResizePool { page_bytes, from_pages, to_pages } => {
                let page = Size::of(*page_bytes);
                write!(f, "pool of {page} pages: from {from_pages} to {to_pages}")
            }
        }
    }
}
