//! What travels over a guest's API. Times are milliseconds since 1970 or durations with their unit
//! in the name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm_core::memory::HugePages;
use vmm_core::virtio::balloon::{SetBy, Statistics};
use vmm_core::virtio::block::LockReach;
use vmm_core::virtio::net::NetStatus;

use crate::names::GuestName;

/// How a guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestState {
    /// On its way here: the copy in this process is not complete and does not run.
    Incoming,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still, because somebody asked for it.
    Paused,
    /// On its way to another host; it runs here until it is handed over.
    Migrating,
    /// Handed over or complete, but the other host has not been heard: it does not run here until
    /// that is settled.
    InDoubt,
    /// It has ended, and so will its process.
    Ended,
}

impl GuestState {
    /// As shown in tables.
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

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestKind {
    /// The built-in workload.
    Workload,
    /// A kernel that the user brought.
    Linux,
}

/// What becomes of a guest that resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnReboot {
    /// It boots again.
    Restart,
    /// It ends.
    Stop,
}

/// `GET /v1/guest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestInfo {
    /// Name on this host.
    pub(crate) name: GuestName,
    /// Identity, the same on every host.
    pub(crate) uuid: Uuid,
    /// The process that holds it.
    pub(crate) pid: u32,
    /// How it stands.
    pub(crate) state: GuestState,
    /// What it is made of.
    pub(crate) kind: GuestKind,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Virtual CPUs.
    pub(crate) vcpus: u8,
    /// Its disks.
    #[serde(default)]
    pub(crate) disks: Vec<DiskInfo>,
    /// Its network devices.
    #[serde(default)]
    pub(crate) nets: Vec<NetInfo>,
    /// What it sees of its host's processor, by the name of the model; absent while it has not
    /// arrived.
    #[serde(default)]
    pub(crate) cpu_model: Option<String>,
    /// How its memory is backed.
    #[serde(default)]
    pub(crate) backing: BackingInfo,
    /// Labels that it was started with; they go wherever it goes.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// How it and programs of this host reach each other, if they do.
    #[serde(default)]
    pub(crate) vsock: Option<VsockInfo>,
    /// When this process started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// What becomes of it when it resets itself.
    pub(crate) on_reboot: OnReboot,
    /// How often it has started over in this process.
    pub(crate) restarts: u64,
    /// Why it did so last, for people.
    pub(crate) last_restart: Option<String>,
    /// The migration that is running, or the last one.
    pub(crate) migration_id: Option<Uuid>,
    /// More about the state, for people: why it is in doubt and what to do.
    pub(crate) detail: Option<String>,
    /// What its process is confined to.
    #[serde(default)]
    pub(crate) confinement: Confinement,
}

#[cfg(test)]
impl GuestInfo {
    /// What a guest of this name could say.
    pub(crate) fn example(name: &str) -> Self {
        Self {
            name: name.parse().unwrap(),
            uuid: Uuid::nil(),
            pid: 1,
            state: GuestState::Running,
            kind: GuestKind::Workload,
            memory_bytes: 512 << 20,
            vcpus: 2,
            disks: Vec::new(),
            nets: Vec::new(),
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
    /// System calls.
    pub(crate) seccomp: SeccompState,
    /// Files.
    pub(crate) landlock: LandlockState,
}

/// What becomes of a process that tries a system call that it may not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SeccompState {
    /// It ends.
    On,
    /// The kernel's log tells of it.
    Log,
    /// Nothing.
    #[default]
    Off,
}

/// Whether a process can open what it does not need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LandlockState {
    /// No.
    Full,
    /// No, but the kernel is too old for some of the rules.
    Partial,
    /// Yes: the kernel has no Landlock.
    Missing,
    /// Yes: it was not to be confined.
    #[default]
    Off,
}

/// A guest's vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VsockInfo {
    /// The guest's address.
    pub(crate) cid: u32,
    /// Where programs of this host reach it; where it reaches them is the same with `_PORT`.
    pub(crate) socket: PathBuf,
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DiskInfo {
    /// The file or block device on this host.
    pub(crate) path: PathBuf,
    /// Its size, bytes.
    pub(crate) bytes: u64,
    /// The guest cannot write it.
    pub(crate) read_only: bool,
    /// Whom the lock on it keeps away.
    pub(crate) lock_reach: LockReach,
}

/// A network device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NetInfo {
    /// The guest's address.
    pub(crate) mac: String,
    /// Most bytes of a packet, as the guest is told.
    pub(crate) mtu: u16,
    /// The tap on this host.
    pub(crate) tap: String,
    /// The bridge that the tap was put on; absent when the tap was given.
    pub(crate) bridge: Option<String>,
    /// Frames that the guest received, since it is in this process.
    pub(crate) received: FlowInfo,
    /// Frames that it sent.
    pub(crate) transmitted: FlowInfo,
}

/// Frames in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowInfo {
    /// Bytes of frames that got through.
    pub(crate) bytes: u64,
    /// Frames that got through.
    pub(crate) packets: u64,
    /// Frames that did not.
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
            received: status.received.into(),
            transmitted: status.transmitted.into(),
        }
    }
}

/// How a guest's memory is backed: words as for `lighter run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BackingInfo {
    /// `off`, `thp`, `2M` or `1G`.
    pub(crate) hugepages: String,
    /// All of it was taken at the start.
    pub(crate) prealloc: bool,
    /// NUMA nodes that it comes from.
    pub(crate) numa_policy: String,
    /// With whose pages its pages may be merged.
    pub(crate) merge_domain: Option<String>,
    /// Whether the kernel may merge them now.
    pub(crate) mergeable: bool,
    /// The domain that is merged on this host instead.
    pub(crate) merged_instead: Option<String>,
    /// Pages that it has not written are those of a template.
    pub(crate) from_template: bool,
    /// How KVM tells which pages it wrote.
    pub(crate) dirty_log: String,
}

impl BackingInfo {
    /// The size of its pages. A process of another version may have a word for it that this one
    /// does not know.
    pub(crate) fn huge_pages(&self) -> HugePages {
        self.hugepages.parse().unwrap_or_default()
    }
}

/// `PUT /v1/guest/reboot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebootRequest {
    /// The guest boots again should it switch itself off within this time, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// `PUT /v1/guest/resume`, which needs none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeRequest {
    /// Takes disks as they are, also those that were written since the guest last had them.
    pub(crate) unsafe_disks: bool,
}

/// The answer of a request that has nothing else to say: how the guest stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StateAnswer {
    /// How the guest stands now.
    pub(crate) state: GuestState,
}

/// How far the workload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WorkloadPhase {
    /// Nothing has run yet.
    Starting,
    /// Memory is being filled.
    Filling,
    /// Memory is full; pages are rewritten and checked.
    Working,
    /// Stopped on request.
    Stopped,
    /// It broke down.
    Panicked,
}

/// `GET /v1/guest/workload`: what the built-in workload says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorkloadInfo {
    /// How far it has come.
    pub(crate) phase: WorkloadPhase,
    /// Loop turns; grow while it runs.
    pub(crate) ticks: u64,
    /// Pages rewritten since memory was filled.
    pub(crate) pages_written: u64,
    /// Pages checked.
    pub(crate) pages_checked: u64,
    /// Pages read at random.
    #[serde(default)]
    pub(crate) pages_read: u64,
    /// Longest time in which a vCPU did not run since the last reset, microseconds of the guest's
    /// own clock.
    pub(crate) longest_stall_us: u64,
    /// The reset that `longest_stall_us` counts from.
    pub(crate) stall_epoch: u64,
    /// Times the guest's clock was seen to go backwards.
    pub(crate) clock_backwards: u64,
    /// The last check of all memory that is finished.
    pub(crate) verified_epoch: u64,
    /// Bad pages found so far, in any check.
    pub(crate) bad_pages: u64,
    /// The first of them, for people.
    pub(crate) first_bad_page: Option<String>,
    /// The guest's verdict: no bad page ever, no clock going backwards, no break-down.
    pub(crate) intact: bool,
}

/// `PUT /v1/guest/workload`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkloadControl {
    /// Pages rewritten each second, all vCPUs together.
    pub(crate) dirty_rate_pages_per_s: Option<u64>,
    /// The part of memory that is rewritten, bytes.
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
    /// Memory that the guest shall keep, bytes; all of its memory to take nothing away.
    pub(crate) target_bytes: u64,
    /// Who sets it: the optimizer takes its own back, and leaves an operator's. Absent, it is an
    /// operator; older guests' processes reject the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
}

/// `GET /v1/guest/balloon`: what the guest keeps of its memory, and what the host spends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonInfo {
    /// Whether the guest has a driver for it; without one, nothing happens.
    pub(crate) has_driver: bool,
    /// Whether the guest reports free pages by itself, and they are given back.
    pub(crate) reporting: bool,
    /// Whether the guest says, when it is migrated, which pages are free and need not be sent.
    #[serde(default)]
    pub(crate) gives_hints: bool,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Memory that the guest shall keep, bytes.
    pub(crate) target_bytes: u64,
    /// Who has set that; absent from older guests' processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
    /// Memory that it says to have kept, bytes.
    pub(crate) actual_bytes: u64,
    /// Memory given back through the balloon since this process started, bytes; the guest may have
    /// it again.
    pub(crate) inflated_bytes_total: u64,
    /// Memory given back because the guest reported it as free, bytes; the guest may have it again.
    pub(crate) reported_bytes_total: u64,
    /// Host memory of the guest's process (RSS), bytes: what was really given back is missing here.
    pub(crate) resident_bytes: Option<u64>,
    /// The same, with memory that it has in common with other processes counted once (PSS), bytes.
    pub(crate) proportional_bytes: Option<u64>,
    /// What the guest said last of its memory.
    pub(crate) statistics: Option<BalloonStatistics>,
}

/// What a guest says of its memory. None of it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonStatistics {
    /// How long ago it said so, in milliseconds.
    pub(crate) age_ms: u64,
    /// What it said; what it did not say is absent.
    #[serde(flatten)]
    pub(crate) values: Statistics,
}

/// `PUT /v1/guest/console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsoleInput {
    /// What is typed, as UTF-8.
    #[serde(default)]
    pub(crate) input: String,
    /// What is typed behind that, in bytes: for keys that are no text.
    #[serde(default)]
    pub(crate) bytes: Vec<u8>,
}

/// The answer to `PUT /v1/guest/console`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ConsoleTaken {
    /// Bytes that there was room for; the rest must be typed again once the guest has read some.
    pub(crate) taken_bytes: usize,
}

/// `GET /v1/guest/console`: the query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConsoleRead {
    /// The offset to read from, in bytes since the guest's process began: `console-next` of the
    /// last answer.
    pub(crate) from: u64,
    /// How long to wait when there is nothing to read yet, in milliseconds.
    pub(crate) wait_ms: u64,
}

/// The header of an answer with the offset of its first byte.
pub(crate) const CONSOLE_FROM: &str = "console-from";

/// The header of an answer with the offset behind its last byte.
pub(crate) const CONSOLE_NEXT: &str = "console-next";

/// The answer to `PUT /v1/guest/workload`: what to wait for in the workload's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorkloadControlled {
    /// `stall_epoch` reaches this once the stall is forgotten.
    pub(crate) stall_epoch: Option<u64>,
    /// `verified_epoch` reaches this once all memory is checked.
    pub(crate) verified_epoch: Option<u64>,
}
