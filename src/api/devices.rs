//! What the API says about attaching devices to a guest that runs, and detaching them.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmm_core::PciAddress;
use vmm_core::vfio::{HostDevice, HostDeviceError};
use vmm_core::virtio::block::{CacheMode, EngineChoice};

use super::types::{GuestInfo, is_one_pair, one_pair};
use super::{ApiClient, AskError};

/// How long it may take to make durable what a guest has written to a device that it has let go of.
pub(crate) const SETTLE_PATIENCE: Duration = Duration::from_secs(600);

/// How long it may take to attach a device of the host: all of the guest's memory is taken from the
/// host for it.
pub(crate) const PIN_PATIENCE: Duration = Duration::from_secs(600);

/// `POST /v1/guest/devices`: a device, whose open files come along with the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum AttachRequest {
    /// A disk. Its files: the disk itself, open for what the guest does with it; then, for a block
    /// device that the guest writes, the device opened once more with `O_EXCL`, or the files that
    /// an image is based on, open for reading.
    Disk(DiskToAttach),
    /// A network device. Its files: the tap, up and without a carrier, once for each pair of its
    /// queues.
    Net(NetToAttach),
    /// A device of the host. Its files: `/dev/vfio/vfio`, opened for it, and the device's
    /// IOMMU group; none if the guest has another device of that group.
    Host(HostDeviceToAttach),
}

/// A device of the host to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostDeviceToAttach {
    /// Its PCI address on the host.
    pub(crate) address: String,
}

/// Opens a device of this host for a guest of this host.
///
/// # Errors
/// [`HostDeviceError`], worded for the operator.
pub(crate) fn opened(
    address: PciAddress,
    guest: &GuestInfo,
) -> Result<(AttachRequest, Vec<File>), HostDeviceError> {
    let own: Vec<_> = guest.host_devices.iter().filter_map(|own| own.host.parse().ok()).collect();
    let device = HostDevice::open(address, &own)?;
    let request = AttachRequest::Host(HostDeviceToAttach { address: address.to_string() });
    Ok((request, device.into_files()))
}

/// Sends a device with its open files to the guest's process.
///
/// # Errors
/// See [`AskError`].
pub(crate) async fn attach(
    client: &ApiClient,
    request: &AttachRequest,
    files: Vec<File>,
) -> Result<AttachedDevice, AskError> {
    client.post_with_files("/v1/guest/devices", request, files).await
}

/// A disk to attach. Its path is that of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskToAttach {
    /// Whether the guest only reads it.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Its serial number; at most 20 characters.
    #[serde(default)]
    pub(crate) serial: String,
    /// Its request queues, 1 to 8.
    pub(crate) queues: u16,
    /// Whether its bytes go through the host's cache.
    #[serde(default)]
    pub(crate) cache: CacheMode,
    /// How its requests are executed.
    #[serde(default)]
    pub(crate) engine: EngineChoice,
}

/// A network device to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetToAttach {
    /// The bridge that the tap is on, if it was made for the guest.
    #[serde(default)]
    pub(crate) bridge: Option<String>,
    /// Name of the tap, if it must have this one on every host.
    #[serde(default)]
    pub(crate) tap: Option<String>,
    /// The guest's address.
    pub(crate) mac: String,
    /// MTU of the bridge or the tap, bytes.
    pub(crate) mtu: u16,
    /// Pairs of queues, 1 to 8: as many files of the tap come along.
    #[serde(default = "one_pair", skip_serializing_if = "is_one_pair")]
    pub(crate) queues: u16,
    /// Whether the guest sends by a device of its host with the same address while it has one.
    #[serde(default)]
    pub(crate) standby: bool,
}

/// The answer to `POST /v1/guest/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AttachedDevice {
    /// The device.
    #[serde(flatten)]
    pub(crate) device: NamedDevice,
    /// Where the guest finds it: its address on the PCI bus, as lspci has it.
    pub(crate) address: String,
    /// Whether the guest has noticed it by now.
    pub(crate) noticed: bool,
}

/// `PUT /v1/guest/devices/detach`: a device to detach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetachRequest {
    /// The device.
    pub(crate) device: NamedDevice,
    /// How long to wait until the guest has let go of it, milliseconds.
    pub(crate) timeout_ms: u64,
}

/// A device of a guest, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamedDevice {
    /// A disk, by its path on this host.
    Disk(PathBuf),
    /// A network device, by its address.
    Net(String),
    /// A device of the host, by its PCI address there.
    Host(String),
}

impl fmt::Display for NamedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "disk {}", path.display()),
            Self::Net(mac) => write!(f, "network device {mac}"),
            Self::Host(address) => write!(f, "host device {address}"),
        }
    }
}

/// The answer to `PUT /v1/guest/devices/detach`: the guest has let go of it, and what it has
/// written is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DetachedDevice {
    /// The device.
    #[serde(flatten)]
    pub(crate) device: NamedDevice,
}
