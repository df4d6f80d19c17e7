//! Attaches devices to the guest while it runs, and detaches them.
//!
//! The process opens no files for that: it is confined. The client opens them, and passes them
//! along with its request.

use std::fs::File;
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

/// How long to wait until a guest has looked for an attached device.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);
/// Longest time to wait until a guest has let go of a device.
const DETACH_PATIENCE_MAX: Duration = Duration::from_secs(600);
/// How often the guest is told again: it may have masked the interrupt the last time.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between looks at what the guest has done.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl ProcessControl {
    /// Attaches a device with these open files, and waits until the guest has looked for it, or for
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
        tracing::info!(%device, %address, "a device was attached to the guest");
        let what = What::DeviceAttached { device: device.to_string(), address: address.clone() };
        self.process().events().device(what);
        let noticed = self.wait(machine, NOTICE_PATIENCE, || machine.vm().has_seen_devices());
        Ok(AttachedDevice { device, address, noticed })
    }

    /// Asks the guest to let go of a device, and waits until it has.
    ///
    /// # Errors
    /// If the guest is being migrated or saved, is paused, has no such device, or does not let go
    /// of it in time.
    pub(super) fn detach(&self, request: DetachRequest) -> Result<DetachedDevice, ApiError> {
        let DetachRequest { device, wait_ms } = request;
        let (machine, name) = (self.machine()?, self.process().name());
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        if machine.vm().run_state() == RunState::Paused {
            let text = format!("{name} is paused, and cannot let go of a device: resume it first");
            return Err(ApiError::new(Reason::WrongState, text));
        }
        let is_it = |config: &DeviceConfig| name_of(config).as_ref() == Some(&device);
        if !machine.vm().ask_out(is_it).map_err(refusal)? {
            let text = format!("{name} has no {device}: `lighter show {name}` lists its devices");
            return Err(ApiError::new(Reason::NotFound, text));
        }
        drop(occupation);
        let patience = Duration::from_millis(wait_ms).min(DETACH_PATIENCE_MAX);
        if !self.wait(machine, patience, || !has(machine, &device)) {
            let text = format!(
                "{name} has not let go of the {device} within {} s; it is still asked to, and may do so any time, or when it \
                 boots again: `lighter show {name}` tells",
                patience.as_secs()
            );
            return Err(ApiError::new(Reason::WrongState, text));
        }
        Ok(DetachedDevice { device })
    }

    /// Waits until the running guest has done something, and tells it again meanwhile. Returns
    /// whether it has done it.
    fn wait(&self, machine: &SharedMachine, patience: Duration, done: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut next = Instant::now() + TELL_INTERVAL;
        while !done() {
            let now = Instant::now();
            let is_over = self.process().is_ending() || now >= deadline;
            if is_over || machine.vm().run_state() != RunState::Running {
                return false;
            }
            if now >= next {
                next = now + TELL_INTERVAL;
                if let Err(error) = machine.vm().tell_again() {
                    tracing::warn!(%error, "cannot tell the guest that its devices change");
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        true
    }
}

impl GuestProcess {
    /// Takes away the devices that the guest has let go of. Does nothing while it is being migrated
    /// or saved: they are a part of what its other host, or the file, expects.
    pub(super) fn take_ejected(&self) {
        let Some(machine) = self.machine() else { return };
        if !machine.vm().has_ejections() {
            return;
        }
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
            let Some(device) = name_of(&config).map(|device| device.to_string()) else { continue };
            let error = lost.map(|error| error.to_string());
            match &error {
                None => tracing::info!(%device, "a device has left the guest"),
                Some(error) => {
                    tracing::error!(%device, %error, "a device has left the guest, and its last writes are lost");
                }
            }
            self.events().device(What::DeviceDetached { device, error });
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
        AttachRequest::Disk(disk) => Ok(DeviceConfig::Block(disk_of(disk, files)?)),
        AttachRequest::Net(net) => Ok(DeviceConfig::Net(net_of(net, files)?)),
    }
}

fn disk_of(disk: DiskToAttach, files: Vec<File>) -> Result<BlockConfig, ApiError> {
    let access = if disk.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let engine = match disk.io_uring {
        None => EngineChoice::Auto,
        Some(true) => EngineChoice::IoUring,
        Some(false) => EngineChoice::Sync,
    };
    let config = BlockConfig::handed(files, access, &disk.serial, disk.names);
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
