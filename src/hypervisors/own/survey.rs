//! Surveys of lighter's guests, done by their own processes.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use memopt::hypervisor::{Answer, CAPACITY_MAX, Findings, SurveyRequest, Surveyed};
use memopt::situation::{Chunk, Guest};
use memopt::survey::Digests;

use crate::api::ApiClient;
use crate::api::survey::{SurveyDomain, SurveyState, SurveyStatus, SurveyedMemory};
use crate::survey::CHUNK_BYTES;
use crate::units::PAGE_BYTES;

const PATH: &str = "/v1/guest/survey";

/// Interval at which a guest's process is polled for the survey's progress.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// By how many bits a guest's table may be coarser than its size requires. The limit is there
/// because a coarse table makes all tables of its domain coarse.
const BITS_SLACK: u32 = 2;

/// A guest whose process has done a survey.
#[derive(Debug)]
struct Asked {
    memory_bytes: u64,
    client: ApiClient,
}

/// Surveys the pages of `guest` through its process, which `client` reaches.
pub(super) async fn survey(
    client: ApiClient,
    guest: &Guest,
    request: SurveyRequest,
) -> Result<Surveyed> {
    let mut status: SurveyStatus = client.post(PATH, &request).await?;
    while status.state == SurveyState::Running {
        tokio::time::sleep(POLL_PAUSE).await;
        status = client.get(PATH).await?;
    }
    let (SurveyState::Done, Some(digests)) = (status.state, status.digests) else {
        bail!("{}", status.error.unwrap_or_else(|| "it has nothing to say".to_owned()));
    };
    check(&digests, &request, guest.memory_bytes)?;
    tracing::debug!(guest = guest.name, pages = status.pages, cpu_ms = status.cpu_ms, "surveyed");
    let findings = Box::new(Asked { memory_bytes: guest.memory_bytes, client });
    Ok(Surveyed { digests, findings })
}

impl Findings for Asked {
    fn chunks<'a>(&'a self, domain: &'a Digests) -> Answer<'a, Vec<Chunk>> {
        Box::pin(async move { Ok(self.chunks(domain).await?) })
    }
}

impl Asked {
    async fn chunks(&self, domain: &Digests) -> Result<Vec<Chunk>> {
        let domain = SurveyDomain { domain: Cow::Borrowed(domain) };
        let found: SurveyedMemory = self.client.put_json(PATH, &domain).await?;
        let most = self.memory_bytes.div_ceil(CHUNK_BYTES);
        ensure!(found.chunks.len() as u64 <= most, "it tells of more chunks than it has");
        let chunks: Vec<Chunk> = found.chunks.into_iter().map(Chunk::from).collect();
        ensure!(chunks.is_sorted_by(|a, b| a.index < b.index), "its chunks are not in order");
        Ok(chunks)
    }
}

/// Checks that a guest of this size can have such a table: the other guests of its domain are
/// measured by it as well.
fn check(digests: &Digests, request: &SurveyRequest, memory_bytes: u64) -> Result<()> {
    let pages = memory_bytes / PAGE_BYTES;
    let full = pages.div_ceil(u64::from(CAPACITY_MAX)).next_power_of_two().ilog2();
    ensure!(digests.is_comparable(&request.empty()), "its table is of another seed");
    ensure!(digests.pages() <= pages, "it tells of more pages than it has");
    ensure!(digests.bits() <= full.max(request.bits) + BITS_SLACK, "its table is too coarse");
    Ok(())
}

#[cfg(test)]
mod tests {
    use memopt::policy::Activity;

    use super::*;

    #[test]
    fn tables_that_do_not_fit_the_guest_are_refused() {
        let of_seed = |seed| SurveyRequest {
            seed,
            capacity: CAPACITY_MAX,
            bits: 3,
            cpu_share: 1.0,
            activity: Activity::default(),
        };
        let table = |bits: u32, pages: u64| {
            let tag = serde_json::to_value(of_seed(5).empty()).unwrap()["tag"].clone();
            let table = serde_json::json!({
                "tag": tag, "bits": bits, "pages": pages, "zero_pages": 0, "entries": [],
            });
            serde_json::from_value::<Digests>(table).unwrap()
        };
        let check = |digests: &Digests, seed, bytes| super::check(digests, &of_seed(seed), bytes);
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
