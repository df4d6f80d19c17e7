//! Attaches devices to the guest while it runs, and detaches them.
//!
//! The process opens no files for that: it is confined. The client opens them, and passes them
//! along with its request.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_core::virtio::block::{Access, BlockConfig, EngineChoice};
use vmm_core::virtio::net::{NetConfig, NetLink};
use vmm_core::{DeviceConfig, DeviceError, Ejected, RunState};

use super::control::ProcessControl;
use super::machine::SharedMachine;
use super::process::{GuestProcess, Occupation};
use crate::api::devices::{
    AttachRequest, AttachedDevice, DetachRequest, DetachedDevice, DiskToAttach, NamedDevice,
    NetToAttach,
};
use crate::api::events::What;
use crate::api::{ApiError, Reason};

/// How long to wait until a guest has noticed an attached device.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);
/// Longest time to wait until a guest has let go of a device.
const DETACH_PATIENCE_MAX: Duration = Duration::from_secs(600);
/// How long it may take after that to make durable what the guest has written.
const SETTLE_PATIENCE: Duration = Duration::from_secs(600);
/// How often a guest is notified that has not read what changes: it may have masked the interrupt
/// the last time.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between checks of what the guest has done.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Detachments whose outcome is kept for those who wait for it.
const OUTCOMES_MAX: usize = 32;

/// Devices that have left the guest.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// Whether a thread takes some away at present.
    is_busy: AtomicBool,
    /// The last of them, each with the error by which its last writes may be lost.
    last: Mutex<VecDeque<(NamedDevice, Option<String>)>>,
}

impl Departures {
    fn add(&self, device: NamedDevice, error: Option<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back((device, error));
        if last.len() > OUTCOMES_MAX {
            last.pop_front();
        }
    }

    /// Removes the last outcome of this device; `None` if there is none.
    fn take(&self, device: &NamedDevice) -> Option<Option<String>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = last.iter().rposition(|(known, _)| known == device)?;
        last.remove(at).map(|(_, error)| error)
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
        let config = config_of(request, files)?;
        let device = name_of(&config)
            .ok_or_else(|| ApiError::new(Reason::BadRequest, "no disk and no network device"))?;
        let (machine, name) = (self.machine()?, self.process().name());
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        if has(machine, &device) {
            let text = format!("{name} has the {device} already");
            return Err(ApiError::new(Reason::WrongState, text));
        }
        let address = machine.vm().insert(&config).map_err(refusal)?.to_string();
        drop(occupation);
        // It would keep the files open when the device has left.
        drop(config);
        tracing::info!(%device, %address, "a device was attached to the guest");
        let what = What::DeviceAttached { device: device.to_string(), address: address.clone() };
        self.process().events().device(what);
        let noticed = self.wait(machine, NOTICE_PATIENCE, || machine.vm().has_read_of_devices());
        Ok(AttachedDevice { device, address, noticed })
    }

    /// Asks the guest to let go of a device, and waits until it has and what it has written is
    /// durable.
    ///
    /// # Errors
    /// If the guest is being migrated or saved, is paused, has no such device, or does not let go
    /// of it in time; or if its last writes could not be made durable.
    pub(super) fn detach(&self, request: DetachRequest) -> Result<DetachedDevice, ApiError> {
        let DetachRequest { device, wait_ms } = request;
        let (machine, name) = (self.machine()?, self.process().name());
        let is_it = |config: &DeviceConfig| name_of(config).as_ref() == Some(&device);
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        if machine.vm().run_state() == RunState::Paused {
            let text = format!("{name} is paused, and cannot let go of a device: resume it first");
            return Err(ApiError::new(Reason::WrongState, text));
        }
        // An earlier device of that name.
        let _before = self.process().departures().take(&device);
        if !machine.vm().request_ejection(is_it).map_err(refusal)? {
            let text = format!("{name} has no {device}: `lighter show {name}` lists its devices");
            return Err(ApiError::new(Reason::NotFound, text));
        }
        drop(occupation);
        let patience = Duration::from_millis(wait_ms).min(DETACH_PATIENCE_MAX);
        let is_ejected = || machine.vm().has_ejections() || !has(machine, &device);
        if self.wait(machine, patience, is_ejected) {
            self.wait(machine, SETTLE_PATIENCE, || !has(machine, &device));
        }
        if has(machine, &device) {
            machine.vm().withdraw_ejection_request(is_it);
            return Err(self.still_has(machine, &device, patience));
        }
        match self.process().departures().take(&device).flatten() {
            None => Ok(DetachedDevice { device }),
            Some(error) => {
                let text = format!(
                    "the {device} is detached from {name}, and the last of what it wrote may be lost: {error}"
                );
                Err(ApiError::new(Reason::Failed, text))
            }
        }
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
        let text = format!("{name} still has the {device}: it {why}, and is no longer asked to");
        ApiError::new(Reason::WrongState, text)
    }

    /// Waits until the running guest has done something; notifies it meanwhile as long as it has
    /// not read of it. Returns whether it has done it.
    fn wait(&self, machine: &SharedMachine, patience: Duration, done: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut next = Instant::now() + NOTIFY_INTERVAL;
        while !done() {
            let now = Instant::now();
            let is_over = self.process().is_ending() || now >= deadline;
            if is_over || machine.vm().run_state() != RunState::Running {
                return false;
            }
            if now >= next {
                next = now + NOTIFY_INTERVAL;
                if !machine.vm().has_read_of_devices() {
                    machine.vm().notify_of_devices();
                }
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
        true
    }
}

impl GuestProcess {
    /// Has a thread take away the devices that the guest has let go of, if there are any: to make
    /// durable what it has written may take long.
    pub(super) fn take_ejected(self: &Arc<Self>) {
        let has_some = self.machine().is_some_and(|machine| machine.vm().has_ejections());
        if !has_some || self.departures().is_busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let process = Arc::clone(self);
        let take = move || {
            process.take_ejected_now();
            process.departures().is_busy.store(false, Ordering::Release);
        };
        let started = std::thread::Builder::new().name("ejections".to_owned()).spawn(take);
        if let Err(error) = started {
            self.departures().is_busy.store(false, Ordering::Release);
            tracing::warn!(%error, "cannot take a device away yet");
        }
    }

    /// Does nothing while the guest is being migrated or saved: its devices are a part of what its
    /// other host, or the file, expects.
    fn take_ejected_now(&self) {
        let Some(machine) = self.machine() else { return };
        machine.vm().settle_ejected();
        let occupation = self.occupation();
        let is_own = match &*occupation {
            Occupation::None => true,
            Occupation::Arriving(arrival) => arrival.has_arrived(),
            _ => false,
        };
        if !is_own {
            return;
        }
        for Ejected { config, lost } in machine.vm().take_ejected() {
            let Some(device) = name_of(&config) else { continue };
            let error = lost.map(|error| error.to_string());
            match &error {
                None => tracing::info!(%device, "a device has left the guest"),
                Some(error) => {
                    tracing::error!(%device, %error, "a device has left the guest, and its last writes may be lost");
                }
            }
            self.departures().add(device.clone(), error.clone());
            self.events().device(What::DeviceDetached { device: device.to_string(), error });
        }
    }
}

fn has(machine: &SharedMachine, device: &NamedDevice) -> bool {
    machine.shape().devices.iter().any(|config| name_of(config).as_ref() == Some(device))
}

fn name_of(config: &DeviceConfig) -> Option<NamedDevice> {
    match config {
        DeviceConfig::Block(disk) => Some(NamedDevice::Disk(disk.path().to_owned())),
        DeviceConfig::Net(net) => Some(NamedDevice::Net(net.mac().to_string())),
        _ => None,
    }
}

fn config_of(request: AttachRequest, files: Vec<File>) -> Result<DeviceConfig, ApiError> {
    match request {
        AttachRequest::Disk(disk) => Ok(DeviceConfig::Block(disk_of(&disk, files)?)),
        AttachRequest::Net(net) => Ok(DeviceConfig::Net(net_of(net, files)?)),
    }
}

fn disk_of(disk: &DiskToAttach, files: Vec<File>) -> Result<BlockConfig, ApiError> {
    let access = if disk.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let engine = match disk.io_uring {
        None => EngineChoice::Auto,
        Some(true) => EngineChoice::IoUring,
        Some(false) => EngineChoice::Sync,
    };
    let config = BlockConfig::handed(files, access, &disk.serial);
    Ok(config.map_err(bad)?.with_queues(disk.queues).with_engine(engine))
}

fn net_of(net: NetToAttach, mut files: Vec<File>) -> Result<NetConfig, ApiError> {
    let refused = |text: &str| ApiError::new(Reason::BadRequest, text);
    let link = match (net.bridge, net.tap) {
        (Some(bridge), tap) => NetLink::Bridge { bridge, tap },
        (None, Some(tap)) => NetLink::Tap(tap),
        (None, None) => return Err(refused("a network device needs a bridge or a tap")),
    };
    let mac = net.mac.parse().map_err(bad)?;
    let tap = files.pop().ok_or_else(|| refused("no tap came with the request"))?;
    NetConfig::handed(link, mac, net.mtu, tap).map_err(bad)
}

fn bad(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::BadRequest, error.to_string())
}

fn refusal(error: vmm_core::Error) -> ApiError {
    match &error {
        vmm_core::Error::Device(DeviceError::Config(_)) => bad(error),
        vmm_core::Error::Device(DeviceError::NoHotPlug | DeviceError::DiskInUse { .. })
        | vmm_core::Error::WrongState { .. } => {
            ApiError::new(Reason::WrongState, error.to_string())
        }
        _ => ApiError::failed(error),
    }
}
