//! One thing to do, to a guest or to the host: plans consist of them, and everything else is about
//! them.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::Actuator;
use crate::units::{Share, Size, Span};

/// Chunks of 2 MiB that follow one another: `first` and the `count - 1` after it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct ChunkRange {
    /// Guest physical address over 2 MiB.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// What.
    pub action: Action,
    /// What the host is expected to get back. Signed: below zero it gives.
    pub expected_bytes: i64,
    /// The CPU time of the host that it is expected to cost.
    pub cpu: Duration,
    /// Why, in one sentence.
    pub reason: String,
    /// The process of the guest that it is done to, whatever other guest has the name by then;
    /// absent for what is done to the host, and in plans of versions that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// What can be done. All of it names what is to be, not a change to what is: doing it twice does no
/// harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// Have the guest keep so much memory.
    SetBalloon {
        /// The guest.
        guest: String,
        /// What it was asked to keep.
        from_bytes: u64,
        /// What it is to keep.
        to_bytes: u64,
    },
    /// Let the kernel merge these chunks of the guest, and no longer hold them in huge pages.
    Merge {
        /// The guest.
        guest: String,
        /// Which, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Take these chunks apart again, and merge them no more.
    Unmerge {
        /// The guest.
        guest: String,
        /// Which, in order of their address; all of its RAM when absent.
        chunks: Option<Vec<ChunkRange>>,
    },
    /// Collapse these chunks into huge pages (`MADV_COLLAPSE`).
    MakeHuge {
        /// The guest.
        guest: String,
        /// Which, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Open a window for ksmd.
    DriveKsm {
        /// The merge domain whose guests may be merged.
        domain: String,
        /// How fast it may look at pages.
        pages_per_s: u64,
        /// Its share of one core.
        cpu: f64,
        /// Its CPU time in all, at most.
        #[serde(default = "unlimited")]
        cpu_time: Duration,
        /// How long, at most.
        window: Duration,
        /// What the window is expected to bring in all, with the steps that only mark memory for
        /// it.
        window_bytes: i64,
    },
    /// Close the window, and give ksmd back the settings that it had.
    StopKsm {
        /// The merge domain that it was for.
        domain: String,
    },
    /// Drop private pages that equal the guest's template in the same place.
    RemergeTemplate {
        /// The guest.
        guest: String,
        /// Which chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Give pages of zeros back, and the huge pages up that they are in.
    DropZeros {
        /// The guest.
        guest: String,
        /// Which chunks, in order of their address.
        chunks: Vec<ChunkRange>,
    },
    /// Resize a hugetlb pool of the host.
    ResizePool {
        /// The size of its pages.
        page_bytes: u64,
        /// How many it has.
        from_pages: u64,
        /// How many it is to have.
        to_pages: u64,
    },
}

impl Action {
    /// The guest that it is done to; absent for what is done to the host.
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

    /// Whether it takes memory from a guest by its balloon: what a node that is killed may not
    /// forget.
    #[must_use]
    pub fn inflates_a_balloon(&self) -> bool {
        matches!(self, Self::SetBalloon { from_bytes, to_bytes, .. } if to_bytes < from_bytes)
    }

    /// The means by which it is done.
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

    /// In which order things are done: what guests need comes first, then what makes the rest safe,
    /// then what brings most for least.
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

/// In plans of versions that knew no such limit.
fn unlimited() -> Duration {
    Duration::MAX
}

/// The chunks `indices`, which are in order, as few ranges as possible.
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

/// `12 chunks`, of 2 MiB each.
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
