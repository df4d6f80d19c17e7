//! The built-in workload behind the API: its report and its controls, read and written in guest
//! RAM.

use vmm_core::workload::{Control, Doorbell, Fault, FaultKind, Phase, Report, WorkloadError};

use super::machine::Machine;
use crate::api::types::{WorkloadControl, WorkloadControlled, WorkloadInfo, WorkloadPhase};
use crate::api::{ApiError, Reason};
use crate::names::GuestName;

/// Returns the report of the workload.
///
/// # Errors
/// If the guest is not the workload, or its report is damaged.
pub(crate) fn report(machine: &Machine) -> Result<WorkloadInfo, ApiError> {
    let report = Report::read(machine.vm().ram().memory()).map_err(refusal)?;
    Ok(WorkloadInfo {
        phase: phase(report.phase()),
        ticks: report.ticks(),
        pages_written: report.pages_written(),
        pages_checked: report.pages_checked(),
        pages_read: report.pages_read(),
        longest_stall_us: u64::try_from(report.longest_stall().as_micros()).unwrap_or(u64::MAX),
        stall_epoch: report.stall_epoch(),
        clock_backwards: report.vcpus.iter().map(|vcpu| vcpu.tsc_backwards).sum(),
        verified_epoch: report.verified_epoch(),
        bad_pages: report.faults(),
        first_bad_page: report.first_fault().map(describe),
        intact: report.is_intact(),
    })
}

/// Steers the workload.
///
/// # Errors
/// As for [`report`].
pub(crate) fn control(
    machine: &Machine,
    order: &WorkloadControl,
) -> Result<WorkloadControlled, ApiError> {
    let control = Control::new(machine.vm().ram().memory()).map_err(refusal)?;
    let steer = || {
        if let Some(rate) = order.dirty_rate_pages_per_s {
            control.set_dirty_rate(rate)?;
        }
        if let Some(bytes) = order.working_set_bytes {
            control.set_working_set(bytes)?;
        }
        Ok(WorkloadControlled {
            stall_epoch: order.reset_stall.then(|| control.reset_stall()).transpose()?,
            verified_epoch: order.verify.then(|| control.request_verification()).transpose()?,
        })
    };
    steer().map_err(refusal)
}

/// Resets the stall clock of a workload, so that its longest stall shows the effect of the
/// migration that begins. Other guests have none.
pub(crate) fn begin_migration(machine: &Machine) {
    let order = WorkloadControl { reset_stall: true, ..WorkloadControl::default() };
    match control(machine, &order) {
        Ok(_) => {}
        Err(error) if error.reason == Reason::NoWorkload => {}
        Err(error) => {
            tracing::warn!(%error, "the workload cannot be told to reset its stall clock");
        }
    }
}

/// Problems that a workload has reported by its doorbell. Each kind is logged once: the log is on
/// the host's disk, and a guest may ring and write into its report what it likes.
#[derive(Debug, Default)]
pub(crate) struct ReportedFaults {
    is_damaged: bool,
    is_broken: bool,
}

impl ReportedFaults {
    /// Logs a problem that a workload reports by its doorbell.
    pub(crate) fn handle(&mut self, name: &GuestName, machine: &Machine, value: u32) {
        if let Some(doorbell) = Doorbell::decode(value)
            && let Ok(workload) = report(machine)
            && self.is_new(doorbell)
        {
            log_doorbell(name, doorbell, workload);
        }
    }

    /// Whether this is a problem that was not reported before.
    fn is_new(&mut self, doorbell: Doorbell) -> bool {
        let known = match doorbell {
            Doorbell::Fault { .. } => &mut self.is_damaged,
            Doorbell::Panic { .. } => &mut self.is_broken,
            Doorbell::Filled { .. } | Doorbell::Verified { .. } | Doorbell::Stopped { .. } => {
                return false;
            }
        };
        !std::mem::replace(known, true)
    }
}

fn log_doorbell(name: &GuestName, doorbell: Doorbell, workload: WorkloadInfo) {
    match doorbell {
        Doorbell::Fault { .. } => {
            let page = workload.first_bad_page.unwrap_or_else(|| "no page is named".to_owned());
            tracing::error!(guest = %name, "the workload found its memory damaged: {page}");
        }
        Doorbell::Panic { vcpu } => {
            tracing::error!(guest = %name, vcpu, "the workload panicked in the guest");
        }
        Doorbell::Filled { .. } | Doorbell::Verified { .. } | Doorbell::Stopped { .. } => {}
    }
}

/// Describes a bad page.
fn describe(fault: Fault) -> String {
    let Fault { page, expected_sequence, found_sequence, found_page, .. } = fault;
    match fault.kind {
        FaultKind::Misplaced => format!("page {page} holds the content of page {found_page}"),
        FaultKind::Stale => {
            format!("page {page} holds version {found_sequence} instead of {expected_sequence}")
        }
        FaultKind::Corrupt => {
            format!("page {page} is torn or damaged (version {expected_sequence} was expected)")
        }
        FaultKind::NotCleared => format!("page {page} should be zero and is not"),
        FaultKind::Lost => format!("page {page} is zero and should not be"),
    }
}

// Passed to `map_err`, which passes the error by value.
#[allow(clippy::needless_pass_by_value)]
fn refusal(error: WorkloadError) -> ApiError {
    let reason = match error {
        WorkloadError::NotAWorkload { .. } => Reason::NoWorkload,
        _ => Reason::Failed,
    };
    ApiError::new(reason, error.to_string())
}

fn phase(phase: Phase) -> WorkloadPhase {
    match phase {
        Phase::Starting => WorkloadPhase::Starting,
        Phase::Filling => WorkloadPhase::Filling,
        Phase::Working => WorkloadPhase::Working,
        Phase::Stopped => WorkloadPhase::Stopped,
        Phase::Panicked => WorkloadPhase::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_doorbells_are_reported_once_per_kind() {
        let mut news = ReportedFaults::default();
        let heard: Vec<bool> = (0..4)
            .flat_map(|vcpu| {
                [Doorbell::Fault { vcpu }, Doorbell::Panic { vcpu }, Doorbell::Filled { vcpu }]
            })
            .map(|doorbell| news.is_new(doorbell))
            .collect();
        assert_eq!(heard[..3], [true, true, false]);
        assert!(heard[3..].iter().all(|is_new| !is_new), "{heard:?}");
    }

    #[test]
    fn a_bad_page_is_named_with_what_is_wrong() {
        let fault = Fault {
            kind: FaultKind::Stale,
            page: 77,
            expected_sequence: 9,
            found_sequence: 8,
            found_page: 77,
        };
        assert_eq!(describe(fault), "page 77 holds version 8 instead of 9");
    }
}
