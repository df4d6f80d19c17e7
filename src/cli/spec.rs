//! What a guest is made of: the options of `lighter run` and the keys of a guest's file, in one type.
//!
//! clap reads it from a command line and serde from TOML, so that a key means what the option of its name means, and a guest is
//! built in one way. What keys mean together is in [`GuestSpec::check`]; the command line refuses the same by its attributes,
//! as a usage error.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};
use vmm_core::memory::RamLayout;
use vmm_core::{GUEST_CIDS, VCPUS_MAX};

use super::disk::DiskArg;
use super::net::NetArg;
use crate::names::GuestName;
use crate::units::{MIB, Size};

/// Most labels of one guest.
const LABELS_MAX: usize = 64;

/// Longest key of a label, in bytes.
const LABEL_KEY_BYTES_MAX: usize = 63;

/// Longest value of a label, in bytes.
const LABEL_VALUE_BYTES_MAX: usize = 255;

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GuestSpec {
    /// The guest's name on this host [default: one is made up].
    #[arg(long)]
    pub(crate) name: Option<GuestName>,

    /// Guest memory, binary units: 512M, 1G.
    #[arg(long, short, default_value_t = default_memory(), value_name = "SIZE")]
    #[serde(default = "default_memory")]
    pub(crate) memory: Size,

    /// Virtual CPUs, 1 to 8.
    #[arg(long, short, value_parser = clap::value_parser!(u8).range(1..=8), default_value_t = 1, value_name = "N")]
    #[serde(default = "one", deserialize_with = "vcpus")]
    pub(crate) cpus: u8,

    /// Linux kernel to boot instead of the built-in workload: a bzImage (vmlinuz) or an ELF vmlinux.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// The kernel's command line [default: console=ttyS0; without ACPI also acpi=off reboot=k].
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub(crate) cmdline: Option<String>,

    /// Whether the kernel gets ACPI tables: with them it finds its devices, has a power button and can switch itself off
    /// [default: on].
    #[arg(long, value_enum, requires = "kernel", value_name = "SWITCH")]
    pub(crate) acpi: Option<SwitchArg>,

    /// What to do when the guest resets itself [default: restart a kernel, stop the workload].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) on_reboot: Option<OnRebootArg>,

    /// Disk for the guest, a raw file or a block device: /dev/vda first. Give it more than once for more disks. ro: the guest
    /// only reads it; serial=TEXT: what it sees as serial number; queues=N: request queues [default: one for each vCPU];
    /// engine=auto|io_uring|sync. To migrate, have the same disk under the same path on both hosts, or `--copy-disks`.
    #[arg(long, value_name = "PATH[,OPTION...]", requires = "kernel")]
    #[serde(default)]
    pub(crate) disk: Vec<DiskArg>,

    /// Network device for the guest. bridge: a tap is made, put on this bridge, and goes with the guest; tap alone: this tap,
    /// which you have made. mac: the guest's address, which it keeps wherever it goes [default: one is chosen]. Give it
    /// more than once for more devices. To migrate, have a bridge or tap of the same name on both hosts.
    #[arg(long, value_name = "bridge=NAME[,tap=NAME]|tap=NAME[,mac=ADDRESS]", requires = "kernel")]
    #[serde(default)]
    pub(crate) net: Vec<NetArg>,

    /// Give the guest entropy from this host.
    #[arg(long, requires = "kernel")]
    #[serde(default)]
    pub(crate) rng: bool,

    /// Whether the guest has a balloon: it then gives memory that it does not use back to this host, by itself and when
    /// `lighter balloon` says so [default: on].
    #[arg(long, value_enum, requires = "kernel", value_name = "SWITCH")]
    pub(crate) balloon: Option<SwitchArg>,

    /// Give the guest a vsock device and this address, 3 or more. Programs of this host then reach it, and it them, by Unix
    /// sockets in vsock/ in the state folder.
    #[arg(long, requires = "kernel", value_name = "CID", value_parser = clap::value_parser!(u32).range(guest_cids()))]
    #[serde(default, deserialize_with = "cid")]
    pub(crate) vsock: Option<u32>,

    /// A label for people and programs, shown by `ls --json` and `show`. Give it more than once for more labels. Labels stay
    /// behind when the guest migrates.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    #[serde(default, deserialize_with = "labels")]
    pub(crate) labels: Vec<Label>,

    /// Pages of 4 KiB that the workload writes each second, all vCPUs together [default: 2000].
    #[arg(long, value_name = "PAGES", conflicts_with = "kernel", help_heading = WORKLOAD)]
    pub(crate) dirty_rate: Option<u32>,

    /// Memory that it keeps writing to, or less if the guest is smaller [default: 64M].
    #[arg(long, value_name = "SIZE", conflicts_with = "kernel", help_heading = WORKLOAD)]
    pub(crate) working_set: Option<Size>,

    /// What the pages hold [default: mixed].
    #[arg(long, value_enum, value_name = "PATTERN", conflicts_with = "kernel", help_heading = WORKLOAD)]
    pub(crate) pattern: Option<PatternArg>,
}

/// The heading of the workload's options.
const WORKLOAD: &str = "Built-in workload";

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

/// A label of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// Letters, digits, `-`, `_`, `.` and `/`.
    pub(crate) key: String,
    /// Any text of one line.
    pub(crate) value: String,
}

impl Label {
    fn new(key: &str, value: &str) -> Result<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !key.bytes().all(is_plain) {
            bail!(
                "a label's key is 1 to {LABEL_KEY_BYTES_MAX} letters, digits, `-`, `_`, `.` or `/`"
            );
        }
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            bail!(
                "the value of a label is one line of at most {LABEL_VALUE_BYTES_MAX} bytes, that of {key} is not"
            );
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl FromStr for Label {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((key, value)) => Self::new(key, value),
            None => bail!("`{text}` is no label: write it as KEY=VALUE"),
        }
    }
}

fn default_memory() -> Size {
    Size(512 * MIB)
}

fn one() -> u8 {
    1
}

fn vcpus<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    match u8::deserialize(from)? {
        count @ 1..=VCPUS_MAX => Ok(count),
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
            let text = format!(
                "a guest's address is {} to {}, not {cid}",
                GUEST_CIDS.start(),
                GUEST_CIDS.end()
            );
            Err(serde::de::Error::custom(text))
        }
    }
}

fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Label>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(from)?;
    let labels = table.iter().map(|(key, value)| Label::new(key, value));
    labels.collect::<Result<_>>().map_err(serde::de::Error::custom)
}

/// Where in a guest's file something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The key.
    pub(crate) key: &'static str,
    /// Which table it is a key of, by the tables' name and counted from 0, if it is in one of several.
    pub(crate) item: Option<(&'static str, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Some((tables, index)) => write!(f, "{tables}[{index}].{}", self.key),
            None => f.write_str(self.key),
        }
    }
}

/// A value that is well-formed and still makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Fault {
    /// Whose.
    pub(crate) place: Place,
    /// What is wrong with it.
    pub(crate) what: String,
}

impl Fault {
    fn of(key: &'static str, what: impl Into<String>) -> Self {
        Self { place: Place { key, item: None }, what: what.into() }
    }
}

impl GuestSpec {
    /// Whether the values make sense together, and are possible on any host.
    ///
    /// # Errors
    /// The first that does not, or is not.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        RamLayout::new(self.memory.0).map_err(|error| Fault::of("memory", error.to_string()))?;
        let of_kernels = [
            ("initrd", self.initrd.is_some()),
            ("cmdline", self.cmdline.is_some()),
            ("acpi", self.acpi.is_some()),
            ("disk", !self.disk.is_empty()),
            ("net", !self.net.is_empty()),
            ("rng", self.rng),
            ("balloon", self.balloon.is_some()),
            ("vsock", self.vsock.is_some()),
        ];
        let of_the_workload = [
            ("dirty-rate", self.dirty_rate.is_some()),
            ("working-set", self.working_set.is_some()),
            ("pattern", self.pattern.is_some()),
        ];
        let (stray, what) = match self.kernel {
            None => (&of_kernels[..], "the built-in workload has none: this is for a `kernel`"),
            Some(_) => (
                &of_the_workload[..],
                "this is for the built-in workload, which a guest with a `kernel` does not run",
            ),
        };
        if let Some((key, _)) = stray.iter().find(|(_, is_there)| *is_there) {
            return Err(Fault::of(key, what));
        }
        if self.labels.len() > LABELS_MAX {
            return Err(Fault::of("labels", format!("a guest has at most {LABELS_MAX} labels")));
        }
        let mut disks = self.disk.iter().enumerate();
        disks.try_for_each(|(index, disk)| disk.check(index))?;
        let mut nets = self.net.iter().enumerate();
        nets.try_for_each(|(index, net)| net.check(index))
    }

    /// Whether its files are named so that any process on this host finds them.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check_paths(&self) -> Result<(), Fault> {
        let single = [("kernel", &self.kernel), ("initrd", &self.initrd)];
        let single =
            single.into_iter().filter_map(|(key, path)| Some((key, None, path.as_deref()?)));
        let disks = self.disk.iter().enumerate();
        let disks = disks.map(|(index, disk)| ("path", Some(("disk", index)), disk.path.as_path()));
        let mut paths = single.chain(disks);
        match paths.find(|(_, _, path)| !path.is_absolute()) {
            None => Ok(()),
            Some((key, item, path)) => Err(Fault {
                place: Place { key, item },
                what: format!("`{}` is no absolute path", path.display()),
            }),
        }
    }

    /// The labels by their keys; of a key that was given twice, the last.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let pair = |label: &Label| (label.key.clone(), label.value.clone());
        self.labels.iter().map(pair).collect()
    }

    /// The kernel, or none for the workload.
    pub(crate) fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
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
        let long = format!("x={}", "v".repeat(LABEL_VALUE_BYTES_MAX + 1));
        for text in ["", "x", "=v", "a b=v", "x=\n", &long] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
