//! Requests and responses of a guest's API. Times are milliseconds since 1970, or durations with
//! their unit in the name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm_core::MachineKind;
use vmm_core::memory::HugePages;
use vmm_core::virtio::balloon::{SetBy, Statistics};
use vmm_core::virtio::block::{CacheMode, LockReach};
use vmm_core::virtio::net::NetStatus;

use crate::names::GuestName;

/// State of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestState {
    /// Arriving: the copy in this process is incomplete and does not run.
    Incoming,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped on request.
    Paused,
    /// Leaving for another host; it runs here until the switchover.
    Migrating,
    /// Handed over (at the source) or complete (at the destination), but the other host has not
    /// confirmed: the guest does not run here until that is resolved.
    InDoubt,
    /// The guest has ended, and its process is about to.
    Ended,
}

impl GuestState {
    /// The state as shown in tables.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Migrating => "migrating",
            Self::InDoubt => "in doubt",
            Self::Ended => "ended",
        }
    }
}

/// What a guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestKind {
    /// The built-in workload.
    Workload,
    /// A kernel provided by the user.
    Linux,
    /// Firmware, and what that has booted from the guest's disks.
    Firmware,
}

/// What happens when a guest resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnReboot {
    /// The guest boots again.
    Restart,
    /// The guest ends.
    Stop,
}

/// `GET /v1/guest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestInfo {
    /// Name on this host.
    pub(crate) name: GuestName,
    /// Identity, the same on every host.
    pub(crate) uuid: Uuid,
    /// The process that runs it.
    pub(crate) pid: u32,
    /// Version of lighter that the process runs; absent from processes of older versions.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// State of the guest.
    pub(crate) state: GuestState,
    /// What the guest runs; `linux` while its memory is still arriving.
    pub(crate) kind: GuestKind,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Virtual CPUs.
    pub(crate) vcpus: u8,
    /// Its disks.
    #[serde(default)]
    pub(crate) disks: Vec<DiskInfo>,
    /// Names of the documents on its seed disk; empty when it has none.
    #[serde(default)]
    pub(crate) seed: Vec<String>,
    /// Its network devices.
    #[serde(default)]
    pub(crate) nets: Vec<NetInfo>,
    /// The host's devices that the guest has.
    #[serde(default)]
    pub(crate) host_devices: Vec<HostDeviceInfo>,
    /// How the guest reaches its devices; absent until the source has described an incoming guest.
    #[serde(default)]
    pub(crate) machine: Option<MachineKind>,
    /// Name of the CPU model that the guest sees; absent until the source has described an incoming
    /// guest.
    #[serde(default)]
    pub(crate) cpu_model: Option<String>,
    /// How its memory is backed.
    #[serde(default)]
    pub(crate) backing: BackingInfo,
    /// Labels given at its start; they move with the guest.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// The vsock device; absent when the guest has none.
    #[serde(default)]
    pub(crate) vsock: Option<VsockInfo>,
    /// When this process started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// What happens when the guest resets itself.
    pub(crate) on_reboot: OnReboot,
    /// Number of resets in this process.
    pub(crate) restarts: u64,
    /// Reason of the last reset, for people.
    pub(crate) last_restart: Option<String>,
    /// The running migration, or the last one.
    pub(crate) migration_id: Option<Uuid>,
    /// More about the state, for people: why it is in doubt, or the destination of its memory out
    /// of reach, or that its firmware has found nothing to boot, and what to do.
    pub(crate) detail: Option<String>,
    /// What its process is confined to.
    #[serde(default)]
    pub(crate) confinement: Confinement,
}

#[cfg(test)]
impl GuestInfo {
    /// An example for a guest of this name.
    pub(crate) fn example(name: &str) -> Self {
        Self {
            name: name.parse().unwrap(),
            uuid: Uuid::nil(),
            pid: 1,
            version: None,
            state: GuestState::Running,
            kind: GuestKind::Workload,
            memory_bytes: 512 << 20,
            vcpus: 2,
            disks: Vec::new(),
            seed: Vec::new(),
            nets: Vec::new(),
            host_devices: Vec::new(),
            machine: None,
            cpu_model: None,
            backing: BackingInfo::default(),
            labels: BTreeMap::new(),
            vsock: None,
            started_unix_ms: 1000,
            on_reboot: OnReboot::Stop,
            restarts: 0,
            last_restart: None,
            migration_id: None,
            detail: None,
            confinement: Confinement::default(),
        }
    }
}

/// What a guest's process is confined to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Confinement {
    /// Filter of system calls.
    pub(crate) seccomp: SeccompState,
    /// Restriction of files.
    pub(crate) landlock: LandlockState,
}

/// What happens when a process makes a forbidden system call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SeccompState {
    /// The process ends.
    On,
    /// The kernel logs the call.
    Log,
    /// Nothing: there is no filter.
    #[default]
    Off,
}

/// How far Landlock keeps a process from files that it does not need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LandlockState {
    /// All rules are enforced.
    Full,
    /// Some rules are not enforced, because the kernel is too old for them.
    Partial,
    /// Not at all, because the kernel has no Landlock.
    Missing,
    /// Not at all, because Landlock was switched off.
    #[default]
    Off,
}

/// A guest's vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VsockInfo {
    /// The guest's CID.
    pub(crate) cid: u32,
    /// Unix socket on which programs of this host connect to the guest. The guest connects to
    /// theirs at the same path with `_PORT` appended.
    pub(crate) socket: PathBuf,
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DiskInfo {
    /// The file or block device on this host.
    pub(crate) path: PathBuf,
    /// Format of the disk in its file.
    #[serde(default)]
    pub(crate) format: DiskFormat,
    /// Size of the disk, bytes.
    pub(crate) bytes: u64,
    /// Whether the guest can only read it.
    pub(crate) read_only: bool,
    /// Whether its bytes go through the host's cache.
    #[serde(default)]
    pub(crate) cache: CacheMode,
    /// Whether the lock on the disk covers this host only, or all hosts of its file system.
    pub(crate) lock_reach: LockReach,
}

/// `PUT /v1/guest/disk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskSizeRequest {
    /// The disk, by its path on this host.
    pub(crate) path: PathBuf,
    /// The new size, bytes; without it, what the device or the file has by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
}

/// Format of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiskFormat {
    /// Raw: the file or device holds the disk's bytes one for one.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// A device of the host that a guest has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct HostDeviceInfo {
    /// Its PCI address on the host.
    pub(crate) host: String,
    /// Where the guest has it: its address on the guest's PCI bus.
    pub(crate) guest: String,
    /// Whether the guest has noticed which devices it has by now.
    #[serde(default)]
    pub(crate) noticed: bool,
}

/// A network device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NetInfo {
    /// The guest's MAC address.
    pub(crate) mac: String,
    /// MTU that the guest is told, bytes.
    pub(crate) mtu: u16,
    /// Name of the tap on this host.
    pub(crate) tap: String,
    /// The bridge that the tap is attached to; absent when the user provided the tap.
    pub(crate) bridge: Option<String>,
    /// Whether the guest sends by a device of its host with the same address while it has one.
    #[serde(default)]
    pub(crate) standby: bool,
    /// Pairs of queues that the guest may use.
    #[serde(default = "one_pair")]
    pub(crate) queues: u16,
    /// Whether the host's kernel carries frames of it (vhost-net).
    #[serde(default)]
    pub(crate) vhost: bool,
    /// Frames that the guest received in this process.
    pub(crate) received: FlowInfo,
    /// Frames that the guest sent in this process.
    pub(crate) transmitted: FlowInfo,
}

/// Returns the pairs of queues of a network device about which an earlier release says nothing.
pub(super) fn one_pair() -> u16 {
    1
}

/// Returns whether a process of an earlier release is to be told nothing of the queues.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes it so
pub(super) fn is_one_pair(pairs: &u16) -> bool {
    *pairs == one_pair()
}

/// Frames in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowInfo {
    /// Bytes of frames that were passed on.
    pub(crate) bytes: u64,
    /// Frames that were passed on.
    pub(crate) packets: u64,
    /// Frames that were dropped.
    pub(crate) drops: u64,
}

impl From<vmm_core::virtio::net::Flow> for FlowInfo {
    fn from(flow: vmm_core::virtio::net::Flow) -> Self {
        Self { bytes: flow.bytes, packets: flow.frames, drops: flow.drops }
    }
}

impl From<NetStatus> for NetInfo {
    fn from(status: NetStatus) -> Self {
        Self {
            mac: status.mac.to_string(),
            mtu: status.mtu,
            tap: status.tap,
            bridge: status.bridge,
            standby: status.standby,
            queues: status.queue_pairs,
            vhost: status.vhost,
            received: status.received.into(),
            transmitted: status.transmitted.into(),
        }
    }
}

/// How a guest's memory is backed, in the words of `lighter run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BackingInfo {
    /// `off`, `thp`, `2M` or `1G`.
    pub(crate) hugepages: String,
    /// Whether all memory was allocated at the start.
    pub(crate) prealloc: bool,
    /// NUMA nodes that the memory comes from.
    pub(crate) numa_policy: String,
    /// Name of the domain within which its pages may be merged.
    pub(crate) merge_domain: Option<String>,
    /// Whether the kernel may merge its pages now.
    pub(crate) mergeable: bool,
    /// The domain that this host merges instead.
    pub(crate) merged_instead: Option<String>,
    /// Whether pages that the guest has not written are shared with a template.
    pub(crate) from_template: bool,
    /// Whether devices of the host reach all of it, so that none is given back or merged.
    #[serde(default)]
    pub(crate) pinned: bool,
    /// How KVM reports the pages that the guest writes.
    pub(crate) dirty_log: String,
}

impl BackingInfo {
    /// Returns the size of its pages; the default if a process of another version names one that
    /// this version does not know.
    pub(crate) fn huge_pages(&self) -> HugePages {
        self.hugepages.parse().unwrap_or_default()
    }
}

/// `PUT /v1/guest/reboot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebootRequest {
    /// The guest boots again if it powers off within this time, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// `PUT /v1/guest/resume`: the body, which may be absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeRequest {
    /// Accept the disks as they are, even if they were written since the guest last had them.
    pub(crate) unsafe_disks: bool,
}

/// Response of a request that returns nothing but the guest's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StateAnswer {
    /// State of the guest now.
    pub(crate) state: GuestState,
}

/// Phase of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WorkloadPhase {
    /// The workload has not started yet.
    Starting,
    /// Memory is being filled.
    Filling,
    /// Memory is full; pages are rewritten and checked.
    Working,
    /// Stopped on request.
    Stopped,
    /// The workload crashed.
    Panicked,
}

/// `GET /v1/guest/workload`: the report of the built-in workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorkloadInfo {
    /// Phase of the workload.
    pub(crate) phase: WorkloadPhase,
    /// Loop iterations; the number grows while the workload runs.
    pub(crate) ticks: u64,
    /// Pages rewritten since memory was filled.
    pub(crate) pages_written: u64,
    /// Pages checked.
    pub(crate) pages_checked: u64,
    /// Pages read at random.
    #[serde(default)]
    pub(crate) pages_read: u64,
    /// Longest time that a vCPU did not run since the last reset of this value, in microseconds of
    /// the guest's own clock.
    pub(crate) longest_stall_us: u64,
    /// Number of the reset since which `longest_stall_us` counts.
    pub(crate) stall_epoch: u64,
    /// How often the guest saw its clock go backwards.
    pub(crate) clock_backwards: u64,
    /// Number of the last complete check of all memory.
    pub(crate) verified_epoch: u64,
    /// Bad pages found so far, by any check.
    pub(crate) bad_pages: u64,
    /// Description of the first bad page, for people.
    pub(crate) first_bad_page: Option<String>,
    /// The guest's verdict: no bad page ever, no clock going backwards, no crash.
    pub(crate) intact: bool,
}

/// `GET /v1/guest/boot-files`: the files from which a guest boots when it resets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BootFiles {
    /// The kernel, and the initrd if there is one.
    pub(crate) files: Vec<BootFileInfo>,
}

/// A file from which a guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BootFileInfo {
    /// Path of the file, the same on each host of the guest.
    pub(crate) path: PathBuf,
    /// XXH3 of the content with which the guest was started, 128 bits in hexadecimal.
    pub(crate) digest: String,
}

/// `PUT /v1/guest/workload`: absent settings do not change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkloadControl {
    /// Pages rewritten each second, all vCPUs together.
    pub(crate) dirty_rate_pages_per_s: Option<u64>,
    /// Size of the memory that is rewritten, bytes.
    pub(crate) working_set_bytes: Option<u64>,
    /// Forget the longest stall.
    pub(crate) reset_stall: bool,
    /// Check all memory now.
    pub(crate) verify: bool,
}

/// `PUT /v1/guest/balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonRequest {
    /// Memory that the guest should keep, bytes; the size of its memory deflates the balloon.
    pub(crate) target_bytes: u64,
    /// Who sets the target: the optimizer takes back only targets that it has set itself, never an
    /// operator's. Absent means an operator; guest processes of older versions reject the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
}

/// `GET /v1/guest/balloon`: how much of its memory the guest keeps, and what it costs the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonInfo {
    /// Whether the guest has a driver for the balloon; without one, it has no effect.
    pub(crate) has_driver: bool,
    /// Whether the guest reports free pages automatically, and the host frees them.
    pub(crate) reporting: bool,
    /// Whether the guest gives free page hints during a migration: those pages need not be sent.
    #[serde(default)]
    pub(crate) gives_hints: bool,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Balloon target: the memory that the guest should keep, bytes.
    pub(crate) target_bytes: u64,
    /// Who set the target; absent from guest processes of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
    /// Memory that the guest claims to keep, bytes.
    pub(crate) actual_bytes: u64,
    /// Memory freed through the balloon since this process started, bytes; the guest may use it
    /// again later.
    pub(crate) inflated_bytes_total: u64,
    /// Memory freed through free page reporting, bytes; the guest may use it again later.
    pub(crate) reported_bytes_total: u64,
    /// Host memory of the guest's process, bytes: its RSS and its huge pages of the pool. Memory
    /// that was really freed is not part of it.
    pub(crate) resident_bytes: Option<u64>,
    /// Host memory like `resident_bytes`, but with each page that several processes share divided
    /// among them (PSS), bytes.
    pub(crate) proportional_bytes: Option<u64>,
    /// The last statistics that the guest sent.
    pub(crate) statistics: Option<BalloonStatistics>,
}

/// Statistics of a guest about its memory. They cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonStatistics {
    /// Age of the statistics, in milliseconds.
    pub(crate) age_ms: u64,
    /// The values; those that the guest did not send are absent.
    #[serde(flatten)]
    pub(crate) values: Statistics,
}

/// `PUT /v1/guest/console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsoleInput {
    /// Text to type, in UTF-8.
    #[serde(default)]
    pub(crate) input: String,
    /// Bytes to type after that, for keys that are not text.
    #[serde(default)]
    pub(crate) bytes: Vec<u8>,
}

/// The answer to `PUT /v1/guest/console`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ConsoleTaken {
    /// Bytes that were accepted; the client must send the rest again once the guest has read some.
    pub(crate) taken_bytes: usize,
}

/// `GET /v1/guest/console`: the query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConsoleRead {
    /// Offset to read from, in bytes since the guest's process began: `console-next` of the last
    /// response.
    pub(crate) from: u64,
    /// How long to wait when there is nothing to read yet, in milliseconds.
    pub(crate) wait_ms: u64,
}

/// Response header with the offset of the first byte.
pub(crate) const CONSOLE_FROM: &str = "console-from";

/// Response header with the offset after the last byte.
pub(crate) const CONSOLE_NEXT: &str = "console-next";

/// Response of `PUT /v1/guest/workload`: the values to wait for in the workload's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorkloadControlled {
    /// `stall_epoch` reaches this value once the stall is reset.
    pub(crate) stall_epoch: Option<u64>,
    /// `verified_epoch` reaches this value once all memory is checked.
    pub(crate) verified_epoch: Option<u64>,
}
