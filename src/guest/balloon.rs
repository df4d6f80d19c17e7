//! The balloon of this process's guest, as the API shows it.

use std::time::{Duration, Instant};

use vmm_core::virtio::balloon::SetBy;
use vmm_core::{BalloonStatus, DeviceError, RunState, Vm};

use super::machine::SharedMachine;
use crate::api::memory::BalloonLevel;
use crate::api::types::{BalloonInfo, BalloonRequest, BalloonStatistics};
use crate::api::{ApiError, Reason};
use crate::names::GuestName;

/// Timeout for new statistics of the guest; after that, the last ones are returned.
const STATISTICS_PATIENCE: Duration = Duration::from_millis(500);

/// Interval at which new statistics are polled for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Returns the state of the balloon, with new statistics if the guest sends some in time.
///
/// # Errors
/// If the guest has no balloon.
pub(super) fn balloon_info(
    machine: &SharedMachine,
    name: &GuestName,
) -> Result<BalloonInfo, ApiError> {
    let refused = |error| refusal(error, name);
    let vm = machine.vm();
    let mut status = vm.balloon().map_err(refused)?;
    if status.sends_statistics && vm.run_state() == RunState::Running {
        status = with_new_statistics(vm).map_err(refused)?;
    }
    let cost = memopt::observe::process_cost(std::process::id()).ok();
    Ok(BalloonInfo {
        has_driver: status.has_driver,
        reporting: status.reporting,
        gives_hints: status.gives_hints,
        memory_bytes: status.memory_bytes,
        target_bytes: status.target_bytes,
        set_by: Some(status.set_by),
        actual_bytes: status.actual_bytes,
        inflated_bytes_total: status.discarded.inflated_bytes,
        reported_bytes_total: status.discarded.reported_bytes,
        resident_bytes: memopt::observe::resident_bytes(std::process::id()).ok(),
        proportional_bytes: cost.map(|cost| cost.total_bytes()),
        statistics: last_statistics(&status),
    })
}

/// Returns the state of the balloon with the last statistics, and requests new ones without waiting
/// for them. `None` without a balloon, or when its thread is gone, which ends the guest anyway.
pub(super) fn level(vm: &Vm) -> Option<BalloonLevel> {
    let status = vm.balloon().ok()?;
    if status.sends_statistics && vm.run_state() == RunState::Running {
        // The next call finds them.
        let _asked = vm.ask_balloon_statistics();
    }
    Some(BalloonLevel {
        has_driver: status.has_driver,
        reporting: status.reporting,
        target_bytes: status.target_bytes,
        set_by: Some(status.set_by),
        actual_bytes: status.actual_bytes,
        reported_bytes_total: status.discarded.reported_bytes,
        statistics: last_statistics(&status),
    })
}

fn last_statistics(status: &BalloonStatus) -> Option<BalloonStatistics> {
    status.statistics.map(|(values, age)| BalloonStatistics {
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        values,
    })
}

/// Gives the guest all of its memory back: the host has taken it for a device.
pub(super) fn empty(vm: &Vm) {
    match vm.set_balloon_target(vm.ram().bytes(), SetBy::Optimizer) {
        Ok(()) | Err(vmm_core::Error::Device(DeviceError::NoBalloon)) => {}
        Err(error) => {
            tracing::warn!(%error, "the guest keeps its balloon, which gives the host nothing");
        }
    }
}

/// Sets how much memory the guest should keep.
///
/// # Errors
/// If the guest has no balloon, cannot have that size, or has a device of the host.
pub(super) fn set_target(
    machine: &SharedMachine,
    name: &GuestName,
    request: &BalloonRequest,
) -> Result<(), ApiError> {
    let BalloonRequest { target_bytes, set_by } = *request;
    let devices = machine.vm().all_host_devices();
    if let Some(device) = devices.first()
        && target_bytes < machine.vm().ram().bytes()
    {
        let text = format!(
            "{name} has a device of this host ({device}), which reaches all of its memory: the host gets nothing of what the guest \
             gives up; detach it first: `lighter detach-device {name} vfio={device}`"
        );
        return Err(ApiError::new(Reason::WrongState, text));
    }
    machine
        .vm()
        .set_balloon_target(target_bytes, set_by.unwrap_or_default())
        .map_err(|error| refusal(error, name))
}

fn with_new_statistics(vm: &Vm) -> vmm_core::Result<BalloonStatus> {
    let asked = Instant::now();
    vm.ask_balloon_statistics()?;
    loop {
        let waited = asked.elapsed();
        let status = vm.balloon()?;
        let is_new = status.statistics.is_some_and(|(_, age)| age < waited);
        if is_new || waited > STATISTICS_PATIENCE {
            return Ok(status);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn refusal(error: vmm_core::Error, name: &GuestName) -> ApiError {
    match &error {
        vmm_core::Error::Device(DeviceError::NoBalloon) => ApiError::new(
            Reason::NotFound,
            format!(
                "{name} has no balloon: it is the built-in workload or was started with --balloon off"
            ),
        ),
        vmm_core::Error::Device(DeviceError::BalloonTarget { .. }) => {
            ApiError::new(Reason::BadRequest, error.to_string())
        }
        vmm_core::Error::WrongState { .. } => ApiError::new(Reason::WrongState, error.to_string()),
        _ => ApiError::failed(error),
    }
}
