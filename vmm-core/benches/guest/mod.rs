//! The guest of the benchmarks: the built-in workload.

use std::io::Error;
use std::time::Duration;

use vmm_core::workload::{Doorbell, WorkloadParams};
use vmm_core::{BootSource, Vm, VmEvent};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Starts the workload in `vm` and waits until it has filled its memory.
///
/// # Errors
/// If it does not boot or does not fill its memory in time.
pub(crate) fn fill(vm: &Vm, params: WorkloadParams) -> Outcome<()> {
    vm.boot(&BootSource::Workload(params))?;
    vm.resume()?;
    loop {
        match vm.events().take(PATIENCE) {
            Some(VmEvent::Doorbell { value, .. }) => {
                if matches!(Doorbell::decode(value), Some(Doorbell::Filled { .. })) {
                    return Ok(());
                }
            }
            other => return Err(Error::other(format!("instead of a doorbell: {other:?}")).into()),
        }
    }
}
