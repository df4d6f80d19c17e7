//! The demo's guest as a witness: what it reports about its memory and its clock, before and after
//! it moved.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::stage::Host;
use crate::api::ApiClient;
use crate::api::types::{
    GuestInfo, GuestState, WorkloadControl, WorkloadControlled, WorkloadInfo, WorkloadPhase,
};
use crate::units::format_count;

/// Time between two requests to the guest.
const INTERVAL: Duration = Duration::from_millis(10);

/// What the guest reports after a migration.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Verdict {
    /// Longest stall: time for which a vCPU did not run, by the guest's own clock, seconds.
    pub(super) downtime_seconds: f64,
    /// Whether all of its memory is what it wrote, and its clock went forward.
    pub(super) intact: bool,
    /// Pages that the guest checked after it arrived.
    pub(super) pages_checked: u64,
    /// Pages that the guest found damaged.
    pub(super) bad_pages: u64,
    /// The first of those pages.
    pub(super) first_bad_page: Option<String>,
    /// Number of times that its clock went backwards.
    pub(super) clock_backwards: u64,
}

impl Verdict {
    /// Whether the guest found no fault.
    pub(super) fn is_good(&self) -> bool {
        self.intact && self.bad_pages == 0 && self.clock_backwards == 0
    }

    /// Describes the fault.
    pub(super) fn complaint(&self, host: &str) -> String {
        let page = self.first_bad_page.as_deref().unwrap_or("no page is named");
        match (self.bad_pages, self.clock_backwards) {
            (0, 0) => format!("the guest's workload panicked on host {host}"),
            (0, times) => format!("the guest's clock went backwards {times} times on host {host}"),
            (pages, _) => format!(
                "the guest found its memory CORRUPT on host {host}: {} bad pages; {page}",
                format_count(pages)
            ),
        }
    }
}

/// The guest on one host.
#[derive(Debug)]
pub(super) struct GuestProbe {
    client: ApiClient,
}

impl GuestProbe {
    /// Waits until the guest runs on `host`.
    ///
    /// # Errors
    /// If it does not run before the deadline.
    pub(super) async fn meet(host: &Host, deadline: Instant) -> Result<Self> {
        let client = host.guest_client();
        loop {
            match client.get::<GuestInfo>("/v1/guest").await {
                Ok(info) if info.state == GuestState::Running => return Ok(Self { client }),
                Ok(info) if Instant::now() > deadline => {
                    bail!(
                        "the guest on host {} is {} instead of running",
                        host.name(),
                        info.state.as_str()
                    )
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("there is no guest on host {}", host.name()));
                }
                Ok(_) | Err(_) => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    /// Waits until the guest has filled its memory and checked all of it once.
    ///
    /// # Errors
    /// If it does not do so before the deadline, or finds a bad page at once.
    pub(super) async fn wait_until_full(&self, deadline: Instant) -> Result<WorkloadInfo> {
        self.until(deadline, "fill its memory", |workload| {
            workload.phase == WorkloadPhase::Working
        })
        .await?;
        let full = self.check_all(deadline).await?;
        if !full.intact {
            bail!(
                "the guest found its memory damaged before it moved anywhere: {:?}",
                full.first_bad_page
            );
        }
        Ok(full)
    }

    /// Makes the guest reset its longest stall.
    ///
    /// # Errors
    /// If the guest does not do so within 10 s.
    pub(super) async fn forget_stalls(&self) -> Result<()> {
        let order = WorkloadControl { reset_stall: true, ..WorkloadControl::default() };
        let epoch = self.order(&order).await?.stall_epoch.unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(10);
        self.until(deadline, "reset its stall clock", |workload| workload.stall_epoch >= epoch)
            .await
            .map(drop)
    }

    /// Asks the guest after it arrived how long it was paused, and whether its memory is intact.
    ///
    /// # Errors
    /// If it does not run, or does not finish the check before the deadline.
    pub(super) async fn testify(&self, deadline: Instant) -> Result<Verdict> {
        let arrived = self.workload().await?;
        let ticking = |workload: &WorkloadInfo| {
            workload.ticks > arrived.ticks && workload.pages_checked > arrived.pages_checked
        };
        let running = self.until(deadline, "go on after it moved", ticking).await?;
        let checked = self.check_all(deadline).await?;
        Ok(Verdict {
            downtime_seconds: Duration::from_micros(running.longest_stall_us).as_secs_f64(),
            intact: checked.intact,
            pages_checked: checked.pages_checked.saturating_sub(arrived.pages_checked),
            bad_pages: checked.bad_pages,
            first_bad_page: checked.first_bad_page,
            clock_backwards: checked.clock_backwards,
        })
    }

    async fn check_all(&self, deadline: Instant) -> Result<WorkloadInfo> {
        let order = WorkloadControl { verify: true, ..WorkloadControl::default() };
        let epoch = self.order(&order).await?.verified_epoch.unwrap_or(0);
        self.until(deadline, "check its memory", |workload| workload.verified_epoch >= epoch).await
    }

    async fn until(
        &self,
        deadline: Instant,
        what: &str,
        done: impl Fn(&WorkloadInfo) -> bool,
    ) -> Result<WorkloadInfo> {
        loop {
            let workload = self.workload().await?;
            if done(&workload) {
                return Ok(workload);
            }
            if workload.phase == WorkloadPhase::Panicked {
                bail!("the guest's workload panicked: {workload:?}");
            }
            if Instant::now() > deadline {
                bail!("the guest did not {what} in time: {workload:?}");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn order(&self, order: &WorkloadControl) -> Result<WorkloadControlled> {
        self.client.put_json("/v1/guest/workload", order).await.context("cannot steer the guest")
    }

    async fn workload(&self) -> Result<WorkloadInfo> {
        self.client.get("/v1/guest/workload").await.context("cannot hear the guest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_the_deviations() {
        let good = Verdict {
            downtime_seconds: 0.03,
            intact: true,
            pages_checked: 1,
            bad_pages: 0,
            first_bad_page: None,
            clock_backwards: 0,
        };
        assert!(good.is_good());
        let torn = Verdict {
            intact: false,
            bad_pages: 2,
            first_bad_page: Some("page 7 is torn".to_owned()),
            ..good.clone()
        };
        assert!(
            !torn.is_good()
                && torn.complaint("b").contains("CORRUPT on host b: 2 bad pages; page 7 is torn")
        );
        let backwards = Verdict { clock_backwards: 3, ..good };
        assert!(!backwards.is_good() && backwards.complaint("b").contains("backwards"));
    }
}
