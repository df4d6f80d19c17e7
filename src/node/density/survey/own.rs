//! Looks at guests of lighter's, by their own processes.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use memopt::situation::{Chunk, Guest};
use memopt::survey::Digests;

use super::{BITS, Manner, empty};
use crate::api::ApiClient;
use crate::api::survey::{
    CAPACITY_MAX, SurveyDomain, SurveyRequest, SurveyState, SurveyStatus, SurveyedMemory,
};
use crate::names::GuestName;
use crate::state_dir::StateDir;
use crate::survey::CHUNK_BYTES;
use crate::units::PAGE_BYTES;

const PATH: &str = "/v1/guest/survey";

/// Between two looks at how far a guest's process is.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// How long a guest's process may take to answer.
const GUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How much coarser than its size asks for a guest's table may be: a coarse table makes those of its domain coarse.
const BITS_SLACK: u32 = 2;

/// A guest that is asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    name: String,
    memory_bytes: u64,
    client: ApiClient,
}

impl Asked {
    pub(super) fn new(state: &StateDir, guest: &Guest) -> Option<Self> {
        let name: GuestName = guest.name.parse().ok()?;
        let client = ApiClient::new(&state.guest(&name).socket()).with_patience(GUEST_PATIENCE);
        let Guest { name, memory_bytes, .. } = guest;
        Some(Self { name: name.clone(), memory_bytes: *memory_bytes, client })
    }

    /// Looks at its pages.
    pub(super) async fn look(&self, manner: Manner) -> Result<Digests> {
        let Manner { seed, cpu_share, activity } = manner;
        let request =
            SurveyRequest { seed, capacity: CAPACITY_MAX, bits: BITS, cpu_share, activity };
        let mut status: SurveyStatus = self.client.post(PATH, &request).await?;
        while status.state == SurveyState::Running {
            tokio::time::sleep(POLL_PAUSE).await;
            status = self.client.get(PATH).await?;
        }
        match (status.state, status.digests) {
            (SurveyState::Done, Some(digests)) => {
                check(&digests, seed, self.memory_bytes)?;
                tracing::debug!(
                    guest = self.name,
                    pages = status.pages,
                    cpu_ms = status.cpu_ms,
                    "looked at"
                );
                Ok(digests)
            }
            _ => bail!("{}", status.error.unwrap_or_else(|| "it has nothing to say".to_owned())),
        }
    }

    /// What it found, in the light of what its domain has.
    pub(super) async fn chunks(&self, domain: &SurveyDomain) -> Result<Vec<Chunk>> {
        let found: SurveyedMemory = self.client.put_json(PATH, domain).await?;
        let most = self.memory_bytes.div_ceil(CHUNK_BYTES);
        ensure!(found.chunks.len() as u64 <= most, "it tells of more chunks than it has");
        let chunks: Vec<Chunk> = found.chunks.into_iter().map(Chunk::from).collect();
        ensure!(chunks.is_sorted_by(|a, b| a.index < b.index), "its chunks are not in order");
        Ok(chunks)
    }
}

/// Whether a table can be what such a guest has: others are measured by it too.
fn check(digests: &Digests, seed: u64, memory_bytes: u64) -> Result<()> {
    let pages = memory_bytes / PAGE_BYTES;
    let full = pages.div_ceil(u64::from(CAPACITY_MAX)).next_power_of_two().ilog2();
    ensure!(digests.is_comparable(&empty(seed)), "its table is of another seed");
    ensure!(digests.pages() <= pages, "it tells of more pages than it has");
    ensure!(digests.bits() <= full.max(BITS) + BITS_SLACK, "its table is too coarse");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_no_such_guest_can_have_are_refused() {
        let table = |bits: u32, pages: u64| {
            let tag = serde_json::to_value(empty(5)).unwrap()["tag"].clone();
            let table = serde_json::json!({
                "tag": tag, "bits": bits, "pages": pages, "zero_pages": 0, "entries": [],
            });
            serde_json::from_value::<Digests>(table).unwrap()
        };
        check(&table(3, 16_384), 5, 64 << 20).unwrap();
        let error = |bits, pages, seed| check(&table(bits, pages), seed, 64 << 20).unwrap_err();
        assert!(error(6, 1, 5).to_string().contains("coarse"));
        assert!(error(3, 16_385, 5).to_string().contains("more pages"));
        assert!(error(3, 1, 6).to_string().contains("another seed"));
        // 16 GiB are 4 Mi pages, 64 times as many as a table holds.
        check(&table(8, 1), 5, 16 << 30).unwrap();
        check(&table(9, 1), 5, 16 << 30).unwrap_err();
    }
}
