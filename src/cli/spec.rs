//! What a guest is made of: the options of `lighter run` and the keys of a guest's file, in one
//! type.
//!
//! clap reads it from a command line and serde from TOML, so that a key means what the option of
//! its name means, and a guest is built in one way. What keys mean together is in
//! [`GuestSpec::check`]; the command line refuses the same by its attributes, as a usage error.

mod checks;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use clap::{ArgGroup, Args, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;
use vmm_core::memory::{HugePages, MemoryConfig, MergeDomain, NumaPolicy, Prealloc};
use vmm_core::{DirtyLog, GUEST_CIDS, Labels, MachineKind, VCPUS_MAX};

use super::cpu::CpuArg;
use super::disk::{DiskAccess, DiskArg};
use super::host_device::HostDeviceArg;
use super::label::{self, Label};
use super::net::NetArg;
use super::seed::SeedArg;
use crate::names::GuestName;
use crate::units::{MIB, Size};

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[command(group = ArgGroup::new("own").args(["kernel", "firmware", "disk"]).multiple(true))]
pub(crate) struct GuestSpec {
    /// The guest's name on this host [default: one is made up].
    #[arg(long)]
    pub(crate) name: Option<GuestName>,

    /// The guest's identity, which it keeps wherever it goes [default: one is chosen; a guest that
    /// is defined keeps its own].
    #[arg(long, value_name = "UUID")]
    pub(crate) uuid: Option<Uuid>,

    /// Guest memory: 512M or 512MiB, 1G (512MB is decimal) [default: 512M].
    #[arg(long, short, value_name = "SIZE", allow_negative_numbers = true)]
    pub(crate) memory: Option<Size>,

    /// Virtual CPUs, 1 to 255; the built-in workload has at most 8. More than this host has
    /// processors make the guest slow [default: 1].
    #[arg(
        long, short, value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(VCPUS_MAX))
    )]
    #[serde(default, deserialize_with = "vcpus")]
    pub(crate) cpus: Option<u8>,

    /// Linux kernel to boot instead of the built-in workload: a bzImage (vmlinuz) or an ELF
    /// vmlinux. A guest that has moved reboots only if kernel and initrd were at the same path,
    /// with the same content, on that host when it arrived.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "template"])]
    pub(crate) kernel: Option<PathBuf>,

    /// Firmware that boots what is on the guest's disks, as a distribution's image has it: an ELF
    /// file with a PVH entry, such as EDK2's build for Cloud Hypervisor (CLOUDHV.fd). It implies
    /// `--machine pci`, and needs something to boot from, as a rule a disk. A guest that has moved
    /// reboots only if the file was at the same path, with the same content, on that host when it
    /// arrived [default, with a disk and without --kernel: /usr/local/share/lighter/CLOUDHV.fd].
    #[arg(long, value_name = "FILE", conflicts_with = "template")]
    pub(crate) firmware: Option<PathBuf>,

    /// Template that `lighter template` made: the guest continues from there, under a name of its
    /// own. It has the same configuration as the guest that was saved, and shares its memory until
    /// it writes it.
    #[arg(
        long, value_name = "FILE",
        conflicts_with_all = [
            "memory", "cpus", "acpi", "machine", "on_reboot", "cpu", "nested", "prealloc", "dirty_rate", "working_set", "write_order",
            "pattern", "zero_share", "image_share", "run_length", "shuffle", "read_rate", "seed", "ssh_key", "hostname", "password_file",
            "net", "device", "rng", "balloon", "vsock",
        ]
    )]
    pub(crate) template: Option<PathBuf>,

    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// The kernel's command line [default: console=ttyS0; without ACPI also acpi=off reboot=k].
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub(crate) cmdline: Option<String>,

    /// Whether the kernel gets ACPI tables: with them it finds its devices, has a power button and
    /// can switch itself off [default: on].
    #[arg(long, value_enum, requires = "kernel", value_name = "SWITCH")]
    pub(crate) acpi: Option<SwitchArg>,

    /// How the guest reaches its devices: `pci` for a PCI Express bus, up to 31 devices, or `mmio`
    /// for up to 12 without a bus. It keeps this wherever it goes [default: pci; mmio for the
    /// workload and with `--acpi off`].
    #[arg(long, requires = "own", value_name = "mmio|pci")]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) machine: Option<MachineKind>,

    /// What to do when the guest resets itself [default: stop the workload, restart others].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) on_reboot: Option<OnRebootArg>,

    /// What the node does when the guest crashes or its process dies; a key of definitions alone.
    #[arg(skip)]
    pub(crate) restart: Option<RestartArg>,

    /// Disk for the guest, a raw file, a qcow2 image (NAME.qcow2) or a block device: /dev/vda
    /// first. Without --kernel, firmware boots the guest from its disks. Give it more than once for
    /// more disks. ro: the guest only reads it, the default of an installation image (NAME.iso);
    /// serial=TEXT: what it sees as serial number; queues=N: request queues [default: one for each
    /// vCPU, 8 at most]; cache=writeback|none: with `none`, it bypasses the host's page cache
    /// (O_DIRECT); engine=auto|io_uring|sync. It is locked while the guest runs; no lock keeps
    /// other hosts from a block device that they share. To migrate, have the same disk under the
    /// same path on both hosts, or `--copy-disks`.
    #[arg(long, value_name = "PATH[,OPTION...]")]
    #[serde(default)]
    pub(crate) disk: Vec<DiskArg>,

    /// Documents for cloud-init, on a small disk of the guest's own (NoCloud): files with user
    /// data, meta data and the network configuration, each if wanted. lighter reads them when the
    /// guest starts; they migrate with it.
    #[arg(
        long, value_name = "[USER-DATA][,meta-data=FILE][,network-config=FILE]", requires = "own",
        help_heading = CLOUD_INIT
    )]
    pub(crate) seed: Option<SeedArg>,

    /// File with public SSH keys that let the image's ordinary user log in. Give it more than once
    /// for more files.
    #[arg(long, value_name = "FILE", requires = "own", help_heading = CLOUD_INIT)]
    #[serde(default)]
    pub(crate) ssh_key: Vec<PathBuf>,

    /// Host name for the guest's system [default: the guest's name, unless the seed has meta-data].
    #[arg(long, value_name = "NAME", requires = "own", help_heading = CLOUD_INIT)]
    pub(crate) hostname: Option<String>,

    /// File with a password, or its hash (`mkpasswd -m sha-512`), for the image's ordinary user: to
    /// log in on the console.
    #[arg(long, value_name = "FILE", requires = "own", help_heading = CLOUD_INIT)]
    pub(crate) password_file: Option<PathBuf>,

    /// Network device for the guest. bridge: a tap is made, put on this bridge, and goes with the
    /// guest; tap alone: this tap, which you have made. mac: the guest's address, which it keeps
    /// wherever it goes [default: one is chosen]. queues: pairs of queues, which as many vCPUs use
    /// side by side, 1 to 8 [default: 1]. standby: a device of the host (--device) with the
    /// same address carries the guest's frames while the guest has it; its system pairs the two.
    /// Give it more than once for more devices. To migrate, have a bridge or tap of the same name
    /// on both hosts.
    #[arg(
        long,
        value_name = "bridge=NAME[,tap=NAME]|tap=NAME[,mac=ADDRESS[,standby]][,queues=N]",
        requires = "own"
    )]
    #[serde(default)]
    pub(crate) net: Vec<NetArg>,

    /// Device of this host for the guest, which has it to itself: the driver vfio-pci must have it.
    /// All of the guest's memory is then taken at the start and stays where it is (no balloon, no
    /// merging), and the guest is neither migrated nor saved until the device is detached. Give it
    /// more than once for more devices.
    #[arg(long, value_name = "vfio=ADDRESS", requires = "own")]
    #[serde(default)]
    pub(crate) device: Vec<HostDeviceArg>,

    /// Give the guest entropy from this host.
    #[arg(long, requires = "own")]
    #[serde(default)]
    pub(crate) rng: bool,

    /// Whether the guest has a balloon: it then returns unused memory to this host,
    /// automatically and when `lighter balloon` asks for it [default: on].
    #[arg(long, value_enum, requires = "own", value_name = "WHAT")]
    pub(crate) balloon: Option<BalloonArg>,

    /// Give the guest a vsock device and this address, 3 or more. Programs of this host then reach
    /// it, and it them, by Unix sockets in vsock/ in the state folder.
    #[arg(long, requires = "own", value_name = "CID", value_parser = clap::value_parser!(u32).range(guest_cids()))]
    #[serde(default, deserialize_with = "cid")]
    pub(crate) vsock: Option<u32>,

    /// What the guest sees of this host's processor: `host` for all of it, a model of `lighter
    /// cpu-models`, or a file that changes one, for guests that move between unlike hosts [default:
    /// host].
    #[arg(long, value_name = "MODEL|FILE.toml")]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) cpu: Option<CpuArg>,

    /// Let the guest run virtual machines (VMX, SVM). It cannot be migrated or saved while it does
    /// [default: off].
    #[arg(long, value_enum, requires = "own", value_name = "SWITCH")]
    pub(crate) nested: Option<SwitchArg>,

    /// Pages under guest memory: 4 KiB only (off), huge ones where the kernel finds some (thp), or
    /// huge pages of this host's pool, reserved for the guest (2M, 1G) [default: thp].
    #[arg(long, value_name = "off|thp|2M|1G", help_heading = MEMORY)]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) hugepages: Option<HugePages>,

    /// Take all of the guest's memory from this host at the start, instead of as the guest touches
    /// it.
    #[arg(long, help_heading = MEMORY)]
    #[serde(default)]
    pub(crate) prealloc: bool,

    /// NUMA nodes that guest memory comes from: default, bind:NODES, interleave:NODES or
    /// preferred:NODE; NODES like 0-1,3.
    #[arg(long, value_name = "POLICY", help_heading = MEMORY)]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) numa_policy: Option<NumaPolicy>,

    /// Let the kernel merge the guest's pages with equal ones of guests in the same domain, as
    /// those of one tenant. Guests without a domain are never merged.
    #[arg(long, value_name = "NAME", help_heading = MEMORY)]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) merge_domain: Option<MergeDomain>,

    /// How KVM tells which pages the guest wrote while it migrates from here [default: auto].
    #[arg(long, value_name = "auto|bitmap|ring[:ENTRIES]", help_heading = MEMORY)]
    #[serde(default, deserialize_with = "from_text")]
    pub(crate) dirty_log: Option<DirtyLog>,

    /// A label for people and programs, by which policies and schedules choose guests; shown by `ls
    /// --json` and `show`. Give it more than once for more labels. They go wherever the guest goes.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    #[serde(default, deserialize_with = "label::table")]
    pub(crate) labels: Vec<Label>,

    /// Pages of 4 KiB that the workload writes each second, all vCPUs together [default: 2000].
    #[arg(long, value_name = "PAGES", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) dirty_rate: Option<u32>,

    /// Memory that it keeps writing to, or less if the guest is smaller [default: 64M].
    #[arg(long, value_name = "SIZE", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) working_set: Option<Size>,

    /// In which order it writes to that [default: sequential].
    #[arg(long, value_enum, value_name = "ORDER", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) write_order: Option<WriteOrderArg>,

    /// What the pages hold [default: mixed].
    #[arg(long, value_enum, value_name = "PATTERN", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) pattern: Option<PatternArg>,

    /// Share of pages of zeros, percent [default: what the pattern has].
    #[arg(
        long, value_name = "PERCENT", conflicts_with = "own", help_heading = WORKLOAD,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    #[serde(default, deserialize_with = "percent")]
    pub(crate) zero_share: Option<u8>,

    /// Share of pages that are, until they are written to, the same in all guests with these
    /// options, as in clones of one image. What is neither that nor zeros is the guest's own
    /// [default: all but the zeros].
    #[arg(
        long, value_name = "PERCENT", conflicts_with = "own", help_heading = WORKLOAD,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    #[serde(default, deserialize_with = "percent")]
    pub(crate) image_share: Option<u8>,

    /// How much memory of one kind lies together: zeros, the image's, or the guest's own [default:
    /// 4K].
    #[arg(long, value_name = "SIZE", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) run_length: Option<Size>,

    /// Put pieces of this size in an order of the guest's own, so that clones of an image have
    /// equal pages at different addresses [default: all at the same].
    #[arg(long, value_name = "SIZE", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) shuffle: Option<Size>,

    /// Pages of 4 KiB that the workload reads each second, anywhere in its memory, all vCPUs
    /// together, and 64 for each at least [default: 0].
    #[arg(long, value_name = "PAGES", conflicts_with = "own", help_heading = WORKLOAD)]
    pub(crate) read_rate: Option<u32>,
}

/// The heading of the options for cloud-init.
const CLOUD_INIT: &str = "cloud-init, for images with it";

/// The heading of the workload's options.
const WORKLOAD: &str = "Built-in workload";

/// The heading of the options about memory.
const MEMORY: &str = "Memory";

/// On or off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SwitchArg {
    /// On.
    #[default]
    On,
    /// Off.
    Off,
}

/// What a guest with a balloon does with memory that is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BalloonArg {
    /// It returns free memory automatically, and what `lighter balloon` asks for.
    #[default]
    On,
    /// It keeps free memory, and says at a migration what need not be sent; it returns what
    /// `lighter balloon` asks for.
    Hints,
    /// It has no balloon.
    Off,
}

/// What the node does about a defined guest that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RestartArg {
    /// It stays off.
    No,
    /// The node starts it again, up to three times in ten minutes.
    OnFailure,
}

/// What becomes of a guest that resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnRebootArg {
    /// It boots again, in the same process and under the same name.
    Restart,
    /// It ends.
    Stop,
}

/// What the workload's pages hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PatternArg {
    /// Half noise, a quarter text, a quarter zero: like an ordinary guest.
    #[default]
    Mixed,
    /// Noise, which no compression shrinks.
    Random,
    /// Text, which compresses well.
    Text,
    /// Zero, but for what is being written.
    Zero,
}

/// In which order the workload writes to its working set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WriteOrderArg {
    /// One page after the other, over and over.
    #[default]
    Sequential,
    /// Any page, evenly.
    Random,
    /// Nine of ten writes go to a tenth of the pages.
    Hot,
}

/// Memory of a guest when none was given.
const MEMORY_BYTES: u64 = 512 * MIB;

fn vcpus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    match u8::deserialize(from)? {
        count @ 1..=VCPUS_MAX => Ok(Some(count)),
        count => {
            let text = format!("a guest has 1 to {VCPUS_MAX} vcpus, not {count}");
            Err(serde::de::Error::custom(text))
        }
    }
}

fn guest_cids() -> RangeInclusive<i64> {
    i64::from(*GUEST_CIDS.start())..=i64::from(*GUEST_CIDS.end())
}

fn cid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(from)? {
        cid if GUEST_CIDS.contains(&cid) => Ok(Some(cid)),
        cid => {
            let (min, max) = (GUEST_CIDS.start(), GUEST_CIDS.end());
            let text = format!("a guest's cid is {min} to {max}, not {cid}");
            Err(serde::de::Error::custom(text))
        }
    }
}

fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    match u8::deserialize(from)? {
        percent @ 0..=100 => Ok(Some(percent)),
        percent => {
            let text = format!("a share is 0 to 100 percent, not {percent}");
            Err(serde::de::Error::custom(text))
        }
    }
}

/// A value that is written as it is typed.
fn from_text<'de, D: Deserializer<'de>, T>(from: D) -> Result<Option<T>, D::Error>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

impl GuestSpec {
    /// The guest's identity: the one that it was given, or a new one.
    pub(crate) fn identity(&self) -> Uuid {
        self.uuid.unwrap_or_else(Uuid::new_v4)
    }

    /// Guest memory in bytes; absent for a guest from a template, which says how much.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.template.is_none().then(|| self.memory.map_or(MEMORY_BYTES, |size| size.0))
    }

    /// Virtual CPUs; absent for a guest from a template.
    pub(crate) fn vcpus(&self) -> Option<u8> {
        self.template.is_none().then(|| self.cpus.unwrap_or(1))
    }

    /// How its memory is to be backed.
    pub(crate) fn memory_config(&self) -> MemoryConfig {
        MemoryConfig {
            huge_pages: self.hugepages.unwrap_or_default(),
            prealloc: if self.prealloc { Prealloc::AtStart } else { Prealloc::OnDemand },
            numa: self.numa_policy.unwrap_or_default(),
            merge_domain: self.merge_domain.clone(),
        }
    }

    /// The labels by their keys; of a key that was given twice, the last.
    pub(crate) fn labels(&self) -> Labels {
        let pair = |label: &Label| (label.key.clone(), label.value.clone());
        self.labels.iter().map(pair).collect()
    }

    /// The disks that the guest writes.
    pub(crate) fn written_disks(&self) -> impl Iterator<Item = &Path> {
        let written = self.disk.iter().filter(|disk| disk.access() == DiskAccess::ReadWrite);
        written.map(|disk| disk.path.as_path())
    }

    /// Whether it runs a system of its own, not the workload or what a template has.
    pub(crate) fn has_system(&self) -> bool {
        self.kernel.is_some() || self.boots_by_firmware()
    }

    /// Whether firmware boots it: what is named, or for a guest with a disk what this host has.
    pub(crate) fn boots_by_firmware(&self) -> bool {
        let boots_its_disk =
            !self.disk.is_empty() && self.kernel.is_none() && self.template.is_none();
        self.firmware.is_some() || boots_its_disk
    }

    /// Whether it has documents for cloud-init.
    pub(crate) fn has_seed(&self) -> bool {
        self.seed.is_some()
            || !self.ssh_key.is_empty()
            || self.hostname.is_some()
            || self.password_file.is_some()
    }

    /// How it reaches its devices.
    pub(crate) fn machine(&self) -> MachineKind {
        let has_bus = self.has_system() && self.acpi != Some(SwitchArg::Off);
        let implied = if has_bus { MachineKind::Pci } else { MachineKind::Mmio };
        self.machine.unwrap_or(implied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_plain_key_and_one_line() {
        let label: Label = "team/owner=a=b c".parse().unwrap();
        assert_eq!((label.key.as_str(), label.value.as_str()), ("team/owner", "a=b c"));
        assert_eq!("x=".parse::<Label>().unwrap().value, "");
        let long = format!("x={}", "v".repeat(256));
        for text in ["", "x", "=v", "a b=v", "x=\n", &long] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
