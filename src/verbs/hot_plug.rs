//! Devices that come and go while their guest runs: `lighter attach-device` and `detach-device`,
//! and what the verbs for disks and networks do likewise.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::sync::mpsc::UnboundedReceiver;
use vmm_core::PciAddress;

use super::session::{block_on, guest_client};
use crate::api::devices::{
    self, AttachRequest, AttachedDevice, DetachRequest, DetachedDevice, NamedDevice, PIN_PATIENCE,
    SETTLE_PATIENCE, opened,
};
use crate::api::types::GuestInfo;
use crate::api::{ApiClient, AskError};
use crate::cli::devices::{AttachDeviceArgs, DetachDeviceArgs, DetachWait};
use crate::cli::{JsonFlag, Output};
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

/// How long an attachment may take: a disk's lock and a guest's attention are waited for.
pub(crate) const ATTACH_PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest may take to let go of a device that it cannot take along.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);

/// Attaches a device of this host to a running guest.
///
/// # Errors
/// If there is no such guest or device, the host does not give it away, or the guest cannot have
/// it.
pub(crate) fn attach_device(state: &StateDir, args: &AttachDeviceArgs) -> Result<Exit> {
    let name = &args.name;
    let client = guest_client(state, name)?.with_patience(PIN_PATIENCE);
    let cannot = || format!("cannot attach {} to {name}", args.device);
    let guest: GuestInfo = block_on(async { Ok(client.get("/v1/guest").await?) })?;
    let (request, files) = opened(args.device.address, &guest).with_context(cannot)?;
    attach(name, &client, (&request, files), args.json).with_context(cannot)
}

/// Detaches a device of this host from a running guest.
///
/// # Errors
/// If there is no such guest or device, or the guest does not let go of it in time.
pub(crate) fn detach_device(state: &StateDir, args: &DetachDeviceArgs) -> Result<Exit> {
    detach(state, &args.name, NamedDevice::Host(args.device.address.to_string()), &args.wait)
}

/// The host's devices that a guest had before it began to move.
pub(super) struct LeftBehind {
    name: GuestName,
    devices: Vec<PciAddress>,
}

impl LeftBehind {
    /// Has the guest let go of all of the host's devices. After an error it has those again that it
    /// had let go of, but for one that it may let go of later.
    ///
    /// # Errors
    /// If it does not let go of one in time, or the user `interrupts`.
    pub(super) async fn detach_all(
        client: &ApiClient,
        name: &GuestName,
        interrupts: &mut UnboundedReceiver<()>,
    ) -> Result<Self> {
        let info: GuestInfo = client.get("/v1/guest").await?;
        let mut left = Self { name: name.clone(), devices: Vec::new() };
        for device in info.host_devices {
            let named = NamedDevice::Host(device.host.clone());
            let detached = tokio::select! {
                answer = ask_to_detach(client, named, LEAVE_PATIENCE) => answer
                    .map(drop)
                    .with_context(|| format!("cannot detach {} from {name}", device.host)),
                Some(()) = interrupts.recv() => Err(anyhow!(
                    "interrupted: {name} stays, and may still let go of the host's device {0}: `lighter show {name}` \
                     tells, `lighter attach-device {name} vfio={0}` gives it back",
                    device.host
                )),
            };
            if let Err(error) = detached {
                left.attach_again(client, interrupts).await;
                return Err(error);
            }
            output::note(format_args!("the host's device {} is detached from {name}", device.host));
            left.devices.extend(device.host.parse::<PciAddress>());
        }
        Ok(left)
    }

    /// Attaches them again to a guest that has stayed, until the user interrupts that. Notes those
    /// that it did not get.
    pub(super) async fn attach_again(
        &mut self,
        client: &ApiClient,
        interrupts: &mut UnboundedReceiver<()>,
    ) {
        let client = client.clone().with_patience(PIN_PATIENCE);
        let name = self.name.clone();
        while let Some(&address) = self.devices.first() {
            let attach = async {
                let guest: GuestInfo = client.get("/v1/guest").await?;
                let (request, files) = opened(address, &guest)?;
                devices::attach(&client, &request, files).await?;
                anyhow::Ok(())
            };
            let attached = tokio::select! {
                attached = attach => attached,
                Some(()) = interrupts.recv() => return,
            };
            self.devices.remove(0);
            match attached {
                Ok(()) => {
                    output::note(format_args!("{name} has the host's device {address} again"));
                }
                Err(error) => output::note(format_args!(
                    "warning: {name} has not got the host's device {address} back: {error:#}; `lighter attach-device {name} \
                     vfio={address}` tries again"
                )),
            }
        }
    }

    /// Returns how many the guest lacks where it has moved to.
    pub(super) fn into_count(mut self) -> usize {
        std::mem::take(&mut self.devices).len()
    }
}

/// When it is not known where the guest is.
impl Drop for LeftBehind {
    fn drop(&mut self) {
        for address in &self.devices {
            output::note(format_args!(
                "warning: the host's device {address} is detached from {0}; if {0} stays here, `lighter attach-device {0} \
                 vfio={address}` gives it back",
                self.name
            ));
        }
    }
}

/// Sends a device with its open files to the guest's process, and prints where the guest has it.
///
/// # Errors
/// If the process refuses it.
pub(crate) fn attach(
    name: &GuestName,
    client: &ApiClient,
    (request, files): (&AttachRequest, Vec<File>),
    json: JsonFlag,
) -> Result<Exit> {
    let attached = block_on(async { Ok(devices::attach(client, request, files).await?) })?;
    match json.output() {
        Output::Json => output::print_json(&attached)?,
        Output::Text => {
            let AttachedDevice { device, address, .. } = &attached;
            output::print_line(format_args!("{device} is attached to {name} at {address}"))?;
        }
    }
    if !attached.noticed {
        warn_of_unnoticed(name);
    }
    Ok(Exit::Done)
}

/// Warns that a guest has not noticed a device that it has got.
pub(super) fn warn_of_unnoticed(name: &GuestName) {
    output::note(format_args!(
        "warning: {name} has not noticed it yet: it is paused or still booting, or its kernel has no hot-plug by ACPI; it \
         finds the device when it boots"
    ));
}

async fn ask_to_detach(
    client: &ApiClient,
    device: NamedDevice,
    timeout: Duration,
) -> Result<DetachedDevice, AskError> {
    let client =
        client.clone().with_patience(timeout.saturating_add(SETTLE_PATIENCE + ATTACH_PATIENCE));
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    client.put_json("/v1/guest/devices/detach", &DetachRequest { device, timeout_ms }).await
}

/// Has the guest let go of a device, and prints that it has.
///
/// # Errors
/// If there is no such guest or device, or the guest does not let go of it in time.
pub(crate) fn detach(
    state: &StateDir,
    name: &GuestName,
    device: NamedDevice,
    wait: &DetachWait,
) -> Result<Exit> {
    let client = guest_client(state, name)?;
    let what = device.to_string();
    let detached = block_on(async {
        let answer = ask_to_detach(&client, device, wait.timeout).await;
        answer.with_context(|| format!("cannot detach the {what} from {name}"))
    })?;
    match wait.json.output() {
        Output::Json => output::print_json(&detached)?,
        Output::Text => {
            output::print_line(format_args!("{} is detached from {name}", detached.device))?;
        }
    }
    Ok(Exit::Done)
}
