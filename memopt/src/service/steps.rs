//! Executes the steps of a plan, and records them in the ledger.

use std::fmt;

use super::core::Handle;
use crate::hypervisor::{Failure, GuestRef};
use crate::ksm::Budget;
use crate::step::{Action, Step};

/// The reason why a step was not executed.
#[derive(Debug)]
pub(super) enum StepError {
    /// The step takes memory, and its balloon target cannot be saved. The cause is the node and not
    /// the guest.
    Unremembered(String),
    /// The step failed.
    Failed(Failure),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unremembered(error) => write!(
                f,
                "no balloon is inflated while what the node remembers cannot be written: {error}"
            ),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl Handle {
    /// Executes a step, and records it in the ledger. A balloon target is saved first, so that if
    /// this node is killed meanwhile, the next node knows that it may give the memory back. If the
    /// target cannot be saved, no memory is taken, but memory is still given back.
    ///
    /// # Errors
    /// [`StepError`].
    pub(super) async fn perform(&self, step: &Step) -> Result<(), StepError> {
        if let Action::SetBalloon { .. } = &step.action {
            let step = step.clone();
            self.call(move |core| {
                match core.save(|ledger| ledger.intends(&step)) {
                    Err(error) if step.action.inflates_a_balloon() => {
                        core.ledger.desists(&step);
                        return Err(StepError::Unremembered(error));
                    }
                    Err(error) => tracing::warn!(step = %step.action, "{error}"),
                    Ok(()) => {}
                }
                Ok(())
            })
            .await?;
        }
        self.act(step).await.map_err(StepError::Failed)?;
        let step = step.clone();
        self.call(move |core| core.remember(|ledger| ledger.acted(&step))).await;
        Ok(())
    }

    async fn act(&self, step: &Step) -> Result<(), Failure> {
        match step.action {
            Action::DriveKsm { pages_per_s, cpu, cpu_time, window, .. } => {
                let budget = Budget {
                    cpu_share: cpu,
                    cpu_time,
                    pages_per_second: pages_per_s,
                    time: window,
                };
                self.call(move |core| core.host.drive_ksm(budget)).await
            }
            Action::StopKsm { .. } => {
                self.call(|core| core.host.end_window()).await;
                Ok(())
            }
            Action::ResizePool { page_bytes, to_pages, .. } => {
                self.call(move |core| core.host.resize_pool(page_bytes, to_pages)).await
            }
            _ => {
                let name = step.action.guest().unwrap_or_default().to_owned();
                let guest = GuestRef { name, pid: step.pid };
                self.shared.hypervisor_of(&guest)?.act(&guest, &step.action).await
            }
        }
    }
}
