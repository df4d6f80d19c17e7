//! Attaches devices to the guest while it runs, and detaches them.
//!
//! The process opens no files for that: it is confined. The client opens them, and passes them
//! along with its request.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_core::vfio::HostDevice;
use vmm_core::virtio::block::{Access, BlockConfig};
use vmm_core::virtio::net::{NetConfig, NetLink};
use vmm_core::{DeviceConfig, DeviceError, Ejected, PciAddress, RunState, Vm};

use super::balloon;
use super::control::ProcessControl;
use super::machine::SharedMachine;
use super::process::{GuestProcess, Occupation};
use crate::api::devices::{
    AttachRequest, AttachedDevice, DetachRequest, DetachedDevice, DiskToAttach, NamedDevice,
    NetToAttach, SETTLE_PATIENCE,
};
use crate::api::events::What;
use crate::api::{ApiError, Reason};

/// How long to wait until a guest has noticed an attached device.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);
/// Longest time to wait until a guest has let go of a device.
const DETACH_PATIENCE_MAX: Duration = Duration::from_secs(600);
/// Interval between checks of what the guest has done.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Detachments whose outcome is kept for those who wait for it.
const OUTCOMES_MAX: usize = 32;

/// Devices that were detached from the guest, and the thread that takes them away.
#[derive(Debug, Default)]
pub(super) struct Detachments {
    /// Whether a thread takes some away at present.
    is_busy: AtomicBool,
    /// The last of them, each with the error by which its last writes may be lost.
    last: Mutex<VecDeque<(NamedDevice, Option<String>)>>,
}

impl Detachments {
    fn add(&self, device: NamedDevice, error: Option<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back((device, error));
        if last.len() > OUTCOMES_MAX {
            last.pop_front();
        }
    }

    /// Returns the error of the last detachment of this device, if there was one.
    fn error(&self, device: &NamedDevice) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().rfind(|(known, _)| known == device)?.1.clone()
    }
}

/// A process of which one thread takes devices away.
struct Busy(ProcessControl);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.process().detachments().is_busy.store(false, Ordering::Release);
    }
}

impl ProcessControl {
    /// Attaches a device with these open files, and waits until the guest has noticed it, or for
    /// some seconds.
    ///
    /// # Errors
    /// If the guest is being migrated or saved, can have no such device, or the files are not those
    /// of the device.
    pub(super) fn attach(
        &self,
        request: AttachRequest,
        files: Vec<File>,
    ) -> Result<AttachedDevice, ApiError> {
        let attachment = Attachment::new(request, files)?;
        let device = attachment.name();
        let machine = self.machine()?;
        if matches!(attachment, Attachment::Host(_)) {
            drop(self.expect_attachable(machine, &device)?);
            // Not while the process is locked: it takes long.
            machine.vm().prepare_for_host_device().map_err(refusal)?;
        }
        let occupation = self.expect_attachable(machine, &device)?;
        let address = attachment.insert(machine.vm()).map_err(refusal)?.to_string();
        drop(occupation);
        if matches!(device, NamedDevice::Host(_)) {
            balloon::empty(machine.vm());
        }
        tracing::info!(%device, %address, "a device was attached to the guest");
        let what = What::DeviceAttached { device: device.to_string(), address: address.clone() };
        self.process().events().once(what);
        let has_read = || machine.vm().has_read_of_devices();
        wait(NOTICE_PATIENCE, || has_read() || !self.may_eject(machine));
        let noticed = has_read();
        Ok(AttachedDevice { device, address, noticed })
    }

    /// Checks that the guest may get this device; that stays so until what this returns is dropped.
    ///
    /// # Errors
    /// If it is being migrated or saved, or has the device.
    fn expect_attachable(
        &self,
        machine: &SharedMachine,
        device: &NamedDevice,
    ) -> Result<MutexGuard<'_, Occupation>, ApiError> {
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        if has(machine, device) {
            let text = format!("{} has the {device} already", self.process().name());
            return Err(ApiError::new(Reason::WrongState, text));
        }
        Ok(occupation)
    }

    /// Asks the guest to let go of a device, and waits until it has and what it has written is
    /// durable.
    ///
    /// # Errors
    /// If the guest is being migrated or saved, is paused, has no such device, or does not let go
    /// of it in time; or if its last writes could not be made durable.
    pub(super) fn detach(&self, request: DetachRequest) -> Result<DetachedDevice, ApiError> {
        let DetachRequest { device, timeout_ms } = request;
        let (machine, name) = (self.machine()?, self.process().name());
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        if machine.vm().run_state() == RunState::Paused {
            let text = format!("{name} is paused, and cannot let go of a device: resume it first");
            return Err(ApiError::new(Reason::WrongState, text));
        }
        let Some(address) = request_ejection(machine.vm(), &device).map_err(refusal)? else {
            let text = format!("{name} has no {device}: `lighter show {name}` lists its devices");
            return Err(ApiError::new(Reason::NotFound, text));
        };
        drop(occupation);
        let patience = Duration::from_millis(timeout_ms).min(DETACH_PATIENCE_MAX);
        let is_ejected = || machine.vm().has_ejected(address);
        if !wait(patience, || is_ejected() || !self.may_eject(machine)) || !is_ejected() {
            machine.vm().withdraw_ejection_request(address);
            return Err(self.still_has(machine, &device, patience));
        }
        let is_gone = || !has(machine, &device);
        if !wait(SETTLE_PATIENCE, || is_gone() || self.process().is_ending()) || !is_gone() {
            let text = format!(
                "{name} has let go of the {device}, and what it wrote is not durable yet: `lighter events` shows when it is"
            );
            return Err(ApiError::new(Reason::WrongState, text));
        }
        // The outcome is noted while this is locked.
        let occupation = self.process().occupation();
        let error = self.process().detachments().error(&device);
        drop(occupation);
        match error {
            None => Ok(DetachedDevice { device }),
            Some(error) => {
                let text = format!(
                    "the {device} is detached from {name}, and the last of what it wrote may be lost: {error}"
                );
                Err(ApiError::new(Reason::Failed, text))
            }
        }
    }

    /// Returns whether the guest runs, so that it may still let go of a device.
    fn may_eject(&self, machine: &SharedMachine) -> bool {
        machine.vm().run_state() == RunState::Running && !self.process().is_ending()
    }

    /// Says why the guest still has a device that it was to let go of.
    fn still_has(
        &self,
        machine: &SharedMachine,
        device: &NamedDevice,
        patience: Duration,
    ) -> ApiError {
        let name = self.process().name();
        let why = match machine.vm().run_state() {
            RunState::Running => format!("has not let go of it within {} s", patience.as_secs()),
            RunState::Paused => "was paused before it had let go of it".to_owned(),
            RunState::Stopped => "has ended".to_owned(),
        };
        let text = format!(
            "{name} still has the {device}: it {why}; the request is taken back, but a guest that has begun to let go goes on"
        );
        ApiError::new(Reason::WrongState, text)
    }
}

/// Waits until something has happened; returns false if it does not in time.
fn wait(patience: Duration, happened: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !happened() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
    true
}

impl GuestProcess {
    /// Does what has to be repeated: a guest that has the interrupt masked does not notice it, and
    /// what leaves during a migration is taken away some time after it.
    pub(super) fn attend_to_devices(self: &Arc<Self>) {
        let runs = self.machine().filter(|it| it.vm().run_state() == RunState::Running);
        if let Some(machine) = runs {
            for device in machine.vm().give_back_wanted() {
                tracing::warn!(%device, "the host wants a device back: the guest is asked to let go of it");
            }
            if !machine.vm().has_read_of_devices() {
                machine.vm().notify_of_devices();
            }
        }
        self.take_ejected();
    }

    /// Has a thread take away the devices that the guest has let go of, if there are any: to make
    /// durable what it has written may take long.
    pub(super) fn take_ejected(self: &Arc<Self>) {
        let has_some = self.machine().is_some_and(|machine| machine.vm().has_ejections());
        if !has_some || self.detachments().is_busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let busy = Busy(ProcessControl(Arc::clone(self)));
        let take = move || busy.0.take_ejected_now();
        let started = std::thread::Builder::new().name("ejections".to_owned()).spawn(take);
        if let Err(error) = started {
            tracing::warn!(%error, "cannot take a device away yet");
        }
    }
}

impl ProcessControl {
    /// Does nothing while the guest is being migrated or saved: its devices are a part of what its
    /// other host, or the file, expects.
    fn take_ejected_now(&self) {
        let (process, Ok(machine)) = (self.process(), self.machine()) else { return };
        if self.refuse_when_busy(&process.occupation()).is_err() {
            return;
        }
        machine.vm().settle_ejected();
        let occupation = process.occupation();
        if self.refuse_when_busy(&occupation).is_err() {
            return;
        }
        for ejected in machine.vm().take_ejected() {
            let (device, error) = match ejected {
                Ejected::Virtio { config, lost } => (name_of(&config), lost),
                Ejected::Host(address) => (Some(NamedDevice::Host(address.to_string())), None),
            };
            let Some(device) = device else { continue };
            let error = error.map(|error| error.to_string());
            match &error {
                None => tracing::info!(%device, "a device has left the guest"),
                Some(error) => {
                    tracing::error!(%device, %error, "a device has left the guest, and its last writes may be lost");
                }
            }
            process.detachments().add(device.clone(), error.clone());
            process.events().once(What::DeviceDetached { device: device.to_string(), error });
        }
    }
}

fn has(machine: &SharedMachine, device: &NamedDevice) -> bool {
    if let NamedDevice::Host(address) = device {
        let address = address.parse().ok();
        return machine.vm().all_host_devices().into_iter().any(|own| Some(own) == address);
    }
    machine.shape().devices.iter().any(|config| name_of(config).as_ref() == Some(device))
}

fn request_ejection(vm: &Vm, device: &NamedDevice) -> vmm_core::Result<Option<PciAddress>> {
    match device {
        NamedDevice::Host(address) => {
            Ok(address.parse().ok().and_then(|address| vm.request_host_device_ejection(address)))
        }
        _ => vm.request_ejection(|config| name_of(config).as_ref() == Some(device)),
    }
}

/// A device to attach.
enum Attachment {
    Virtio(DeviceConfig, NamedDevice),
    Host(HostDevice),
}

impl Attachment {
    fn new(request: AttachRequest, files: Vec<File>) -> Result<Self, ApiError> {
        let config = match request {
            AttachRequest::Disk(disk) => DeviceConfig::Block(disk_of(&disk, files)?),
            AttachRequest::Net(net) => DeviceConfig::Net(net_of(net, files)?),
            AttachRequest::Host(device) => {
                let address = device.address.parse().map_err(bad)?;
                return HostDevice::handed(address, files).map(Self::Host).map_err(bad);
            }
        };
        let name = name_of(&config)
            .ok_or_else(|| ApiError::new(Reason::BadRequest, "no disk and no network device"))?;
        Ok(Self::Virtio(config, name))
    }

    fn name(&self) -> NamedDevice {
        match self {
            Self::Virtio(_, name) => name.clone(),
            Self::Host(device) => NamedDevice::Host(device.address().to_string()),
        }
    }

    /// Inserts it. Its files are not kept open here when it has left.
    fn insert(self, vm: &Vm) -> vmm_core::Result<PciAddress> {
        match self {
            Self::Virtio(config, _) => vm.insert(&config),
            Self::Host(device) => vm.insert_host_device(device),
        }
    }
}

fn name_of(config: &DeviceConfig) -> Option<NamedDevice> {
    match config {
        DeviceConfig::Block(disk) => Some(NamedDevice::Disk(disk.path().to_owned())),
        DeviceConfig::Net(net) => Some(NamedDevice::Net(net.mac().to_string())),
        _ => None,
    }
}

fn disk_of(disk: &DiskToAttach, files: Vec<File>) -> Result<BlockConfig, ApiError> {
    let access = if disk.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let config = BlockConfig::handed(files, access, &disk.serial);
    let config = config.map_err(bad)?.with_queues(disk.queues);
    Ok(config.with_cache(disk.cache).with_engine(disk.engine))
}

fn net_of(net: NetToAttach, files: Vec<File>) -> Result<NetConfig, ApiError> {
    let refused = |text: &str| ApiError::new(Reason::BadRequest, text);
    let link = NetLink::new(net.bridge, net.tap)
        .ok_or_else(|| refused("a network device needs a bridge or a tap"))?;
    let mac = net.mac.parse().map_err(bad)?;
    if files.len() != usize::from(net.queues) {
        let what = "as many files of a tap belong to a network device as it has pairs of queues";
        return Err(refused(what));
    }
    let config = NetConfig::handed(link, mac, net.mtu, files).map_err(bad)?;
    Ok(config.with_standby(net.standby))
}

fn bad(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::BadRequest, error.to_string())
}

fn refusal(error: vmm_core::Error) -> ApiError {
    match &error {
        vmm_core::Error::Device(DeviceError::Config(_)) => bad(error),
        vmm_core::Error::Device(
            DeviceError::NoHotPlug | DeviceError::DiskInUse { .. } | DeviceError::HostDevice(_),
        )
        | vmm_core::Error::Memory(_)
        | vmm_core::Error::WrongState { .. } => {
            ApiError::new(Reason::WrongState, error.to_string())
        }
        _ => ApiError::failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_outcome_of_a_device_is_known_and_not_all_are_kept() {
        let (detachments, disk) = (Detachments::default(), NamedDevice::Disk("/d".into()));
        detachments.add(disk.clone(), Some("lost".to_owned()));
        assert_eq!(detachments.error(&disk).as_deref(), Some("lost"));
        detachments.add(disk.clone(), None);
        assert_eq!(detachments.error(&disk), None);
        detachments.add(disk.clone(), Some("again".to_owned()));
        for index in 0..OUTCOMES_MAX {
            assert_eq!(detachments.error(&disk).as_deref(), Some("again"));
            detachments.add(NamedDevice::Net(index.to_string()), None);
        }
        assert_eq!(detachments.error(&disk), None);
    }
}
