//! The host's devices that a guest has: what they need of its process, and what they prevent.

use rustix::process::{Resource, Rlimit, setrlimit};

use super::machine::SharedMachine;
use crate::api::types::HostDeviceInfo;
use crate::api::{ApiError, Reason};
use crate::names::GuestName;
use crate::resource_limits::raise;

/// Lets this process lock all of its guest's memory, and open an event for each interrupt, as far
/// as it may raise its limits: a device of the host may come later, when it may not any more.
pub(super) fn raise_limits() {
    let unlimited = Rlimit { current: None, maximum: None };
    let memory = setrlimit(Resource::Memlock, unlimited).or_else(|_| raise(Resource::Memlock));
    if let Err(error) = memory.and(raise(Resource::Nofile)) {
        tracing::debug!(%error, "a limit of the guest's process stays");
    }
}

/// Returns the devices, as the API shows them.
pub(super) fn infos(machine: &SharedMachine) -> Vec<HostDeviceInfo> {
    let noticed = machine.vm().has_read_of_devices();
    let info = |(host, guest): (vmm_core::PciAddress, vmm_core::PciAddress)| HostDeviceInfo {
        host: host.to_string(),
        guest: guest.to_string(),
        noticed,
    };
    machine.vm().host_devices().into_iter().map(info).collect()
}

/// Refuses what a guest with devices of the host cannot do, such as to be `saved`.
///
/// # Errors
/// If it has some; the text names the ways out.
pub(super) fn expect_none(
    machine: &SharedMachine,
    name: &GuestName,
    saved: &str,
) -> Result<(), ApiError> {
    let all = machine.vm().all_host_devices();
    let Some(first) = all.first() else { return Ok(()) };
    let is_leaving = machine.vm().host_devices().is_empty();
    let way_out = match saved {
        _ if is_leaving => "it is being taken away: try again".to_owned(),
        "migrated" => format!(
            "`--detach-on-migrate` detaches it on the way, `lighter detach-device {name} vfio={first}` now"
        ),
        _ => format!("`lighter detach-device {name} vfio={first}` first"),
    };
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    let text = format!(
        "{name} has a device of this host ({}) and cannot be {saved} with it: {way_out}",
        all.join(", ")
    );
    Err(ApiError::new(Reason::WrongState, text))
}
