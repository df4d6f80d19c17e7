//! Arguments of the verbs about one guest: run, restore, save, ls, show, pause, resume, shutdown, reboot, reset, destroy,
//! balloon.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::JsonFlag;
use super::disk::DiskArg;
use crate::names::GuestName;
use crate::units::{parse_duration, parse_size};

const RUN_EXAMPLES: &str = "\
Examples:
  lighter run                                          the built-in workload, 512 MiB, until Ctrl-C
  lighter run --name w1 --memory 1G --dirty-rate 20000 --detach
  lighter run --name linux --memory 512M --cpus 2 --kernel /boot/vmlinuz --initrd initramfs.gz
  lighter run --kernel vmlinux --acpi off --on-reboot stop
  lighter run --name db --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/vda' --disk /shared/db.raw --rng

A kernel's serial console is on this terminal: all keys go to the guest, but Ctrl-] ends it. With --detach
the console is written to guests/NAME/console.log in the state folder.";

/// `lighter run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// The guest's name on this host [default: one is made up].
    #[arg(long)]
    pub(crate) name: Option<GuestName>,

    /// Guest memory, binary units: 512M, 1G.
    #[arg(long, short, value_parser = parse_size, default_value = "512M", value_name = "SIZE")]
    pub(crate) memory: u64,

    /// Virtual CPUs, 1 to 8.
    #[arg(long, short, value_parser = clap::value_parser!(u8).range(1..=8), default_value_t = 1, value_name = "N")]
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

    /// Whether the kernel gets ACPI tables: with them it finds its devices, has a power button and can switch itself off.
    #[arg(long, value_enum, default_value_t, requires = "kernel", value_name = "SWITCH")]
    pub(crate) acpi: SwitchArg,

    /// What to do when the guest resets itself [default: restart a kernel, stop the workload].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) on_reboot: Option<OnRebootArg>,

    /// Disk for the guest, a raw file or a block device: /dev/vda first. Give it more than once for more disks. ro: the guest
    /// only reads it; serial: what it sees as serial number. To migrate, have the same disk under the same path on both hosts.
    #[arg(long, value_name = "PATH[,ro][,serial=TEXT]", requires = "kernel")]
    pub(crate) disk: Vec<DiskArg>,

    /// Give the guest entropy from this host.
    #[arg(long, requires = "kernel")]
    pub(crate) rng: bool,

    /// Whether the guest has a balloon: it then gives memory that it does not use back to this host, by itself and when
    /// `lighter balloon` says so.
    #[arg(long, value_enum, default_value_t, requires = "kernel", value_name = "SWITCH")]
    pub(crate) balloon: SwitchArg,

    #[command(flatten)]
    pub(crate) background: BackgroundArgs,

    // Last: its heading would hold for what follows, too.
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
}

/// What the built-in workload does.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Built-in workload")]
pub(crate) struct WorkloadArgs {
    /// Pages of 4 KiB that the workload writes each second, all vCPUs together.
    #[arg(long, default_value_t = 2000, value_name = "PAGES", conflicts_with = "kernel")]
    pub(crate) dirty_rate: u32,

    /// Memory that it keeps writing to: 64M, or less if the guest is smaller.
    #[arg(long, value_parser = parse_size, default_value = "64M", value_name = "SIZE", conflicts_with = "kernel")]
    pub(crate) working_set: u64,

    /// What the pages hold.
    #[arg(long, value_enum, default_value_t, value_name = "PATTERN", conflicts_with = "kernel")]
    pub(crate) pattern: PatternArg,
}

/// On or off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SwitchArg {
    /// On.
    #[default]
    On,
    /// Off.
    Off,
}

/// What becomes of a guest that resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnRebootArg {
    /// It boots again, in the same process and under the same name.
    Restart,
    /// It ends.
    Stop,
}

/// What the workload's pages hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
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

/// In this terminal, or on its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct BackgroundArgs {
    /// Return once the guest runs; it goes on without this terminal.
    #[arg(long, short)]
    pub(crate) detach: bool,
}

/// `lighter restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter restore web-1.lighter
  lighter restore web-1.lighter --name web-2 --detach

The guest goes on where `lighter save` stopped it. Restore one file only once at a time: two guests
from one file believe that they are the same machine.")]
pub(crate) struct RestoreArgs {
    /// The file that `lighter save` wrote.
    pub(crate) file: PathBuf,

    /// The guest's name on this host [default: the file's, without its ending].
    #[arg(long)]
    pub(crate) name: Option<GuestName>,

    #[command(flatten)]
    pub(crate) background: BackgroundArgs,
}

/// `lighter save`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter save web-1 web-1.lighter

The guest is paused while it is written, and then goes on. `lighter restore` runs the file.")]
pub(crate) struct SaveArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The file to write; an existing one is only replaced when all is written.
    pub(crate) file: PathBuf,
}

/// Verbs that take a name and nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter pause web-1
  lighter resume web-1
  lighter reset web-1
  lighter destroy web-1

`reset` and `destroy` do not ask the guest: what it has not written to a disk is lost. See `lighter shutdown`
and `lighter reboot` for the kind way. `stop` is another name for `destroy`.

A guest that is being migrated is not paused, resumed or destroyed: `lighter cancel NAME` first. It can be
reset: the migration goes on, and moves the guest as it boots.")]
pub(crate) struct NameArgs {
    /// The guest.
    pub(crate) name: GuestName,
}

/// `lighter shutdown` and `lighter reboot`: verbs that press the power button.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter shutdown web-1
  lighter shutdown web-1 --timeout 5m
  lighter reboot web-1

The guest's system decides what its power button does; most shut down. A guest that runs without ACPI, that is
still booting, or that is the built-in workload does not listen to it, and this says so at once. `reboot` boots
the guest again when it has switched itself off within the timeout. `lighter destroy` ends a guest that does not
answer, `lighter reset` boots it again.")]
pub(crate) struct ButtonArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// How long the guest may take.
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// `lighter balloon`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter balloon web-1
  lighter balloon web-1 512M
  lighter balloon web-1 --json

With SIZE the guest is told to keep no more than that of its memory; give it all of its memory to take nothing away.
It gives memory up as it can: look again to see how far it is. `Resident` is what the host really spends on it.")]
pub(crate) struct BalloonArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// How much memory the guest shall keep, binary units: 512M, 1G.
    #[arg(value_parser = parse_size)]
    pub(crate) size: Option<u64>,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter ls`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter ls
  lighter ls --all
  lighter ls --json")]
pub(crate) struct ListArgs {
    /// List the last guests that have ended, too, and how they did.
    #[arg(long, short)]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter show web-1
  lighter show web-1 --json")]
pub(crate) struct ShowArgs {
    /// The guest.
    pub(crate) name: GuestName,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
