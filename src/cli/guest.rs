//! Arguments of the verbs about one guest: run, restore, save, template, ls, show, console, events,
//! pause, resume, shutdown, reboot, reset, destroy, balloon, blockresize.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::JsonFlag;
use super::isolation::IsolationArgs;
use super::named_disk::NamedDisk;
use super::spec::GuestSpec;
use crate::names::GuestName;
use crate::units::parse_duration;
use crate::units::parse_size;

const RUN_EXAMPLES: &str = "\
Examples:
  lighter run                        the built-in workload, 512 MiB
  lighter run --name w1 --memory 1G --dirty-rate 20000 --detach
  lighter run --name linux --cpus 2 --kernel vmlinuz --initrd initrd.img
  lighter run --kernel vmlinux --acpi off --on-reboot stop
  lighter run web-1.toml --detach    a guest from a file
  lighter run --name big --memory 4G --hugepages 2M --prealloc --cpu x86-64-v3
  lighter run --template web.template --name web-7 --detach
  lighter run --name db --kernel vmlinux --disk /shared/db.raw --rng \\
      --cmdline 'console=ttyS0 root=/dev/vda'
  lighter run --name web-1 --disk /shared/web-1.raw
  lighter run --name web-2 --disk /shared/web-2.qcow2 \\
      --seed user-data.yaml --ssh-key ~/.ssh/id_ed25519.pub
  lighter run --name web --kernel vmlinux --initrd initramfs.gz \\
      --net bridge=br0 --net tap=tap1,mac=52:54:00:12:34:56

The guest's serial console is on this terminal. All keys go to the guest, except
Ctrl-], which leaves the console: the guest keeps running, as with --detach, and
also when the terminal is closed. `lighter console` shows it again, `lighter
destroy` ends it. The built-in workload reads no keys: Ctrl-C, pressed twice,
ends it. Without a terminal (in a service, in a script), the guest runs until
the command is told to end.";

/// `lighter run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// The guest's file, instead of the options below; see `lighter define`. A --name replaces the
    /// one in it.
    #[arg(
        value_name = "FILE.toml",
        conflicts_with_all = [
            "uuid", "memory", "cpus", "cpu", "hugepages", "prealloc", "numa_policy", "merge_domain", "dirty_log", "template", "kernel",
            "firmware", "initrd", "cmdline", "acpi", "machine", "nested", "on_reboot", "disk", "seed", "ssh_key",
            "hostname", "password_file", "net", "device", "rng", "balloon", "vsock", "labels",
            "dirty_rate", "working_set", "write_order", "pattern", "zero_share", "image_share", "run_length", "shuffle",
            "read_rate",
        ]
    )]
    pub(crate) file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) background: BackgroundArgs,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,

    // Last: its last heading would hold for what follows, too.
    #[command(flatten)]
    pub(crate) spec: GuestSpec,
}

/// In this terminal, or on its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct BackgroundArgs {
    /// Return once the guest runs; it continues without this terminal.
    #[arg(long, short)]
    pub(crate) detach: bool,
}

/// `lighter restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter restore web-1.lighter
  lighter restore web-1.lighter --name web-2 --detach

The guest continues where `lighter save` stopped it, on the same disks. It is
refused when one of them was written since, by the guest itself, by another
program or by fsck: its memory would not match them, and data would be lost. A
guest that writes disks is therefore restored once. Without such disks a file
can be restored again: each guest gets a UUID of its own, and what is in its
memory (host name, addresses, keys) is the same in all of them.

A guest whose name is that of one that has moved to another host, or whose last
migration is not settled, is refused: it may run there. --force restores it all
the same; --name gives it another name.")]
pub(crate) struct RestoreArgs {
    /// The file that `lighter save` wrote.
    pub(crate) file: PathBuf,

    /// The guest's name on this host [default: the file's, without its ending].
    #[arg(long)]
    pub(crate) name: Option<GuestName>,

    /// Use all disks as they are, even if they were written since the guest was saved: only when
    /// you know that they match.
    #[arg(long = "unsafe")]
    pub(crate) unsafe_disks: bool,

    /// Restore it even if the guest may run on another host: only when you know that it does not.
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) background: BackgroundArgs,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,
}

/// `lighter save`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter save web-1 web-1.lighter
  lighter save web-1 web-1.lighter --disks --keep-running

The guest is paused while it is written, and then ends; `lighter restore`
continues it. If the save fails or is interrupted, the guest continues here.
With --keep-running it continues in any case; a guest that writes disks needs
--disks for that, since the saved memory would not match disks that were written
later.

With --disks the disks that it writes are copied to FILE.NAME while it is
paused, at once on a file system that shares blocks (btrfs, xfs), and `lighter
restore` runs the guest on the copies.")]
pub(crate) struct SaveArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The file to write; a saved guest or template of that name is replaced, of whichever guest it
    /// is, once all is written.
    pub(crate) file: PathBuf,

    /// Keep the guest running. If it writes to disks, this needs --disks.
    #[arg(long)]
    pub(crate) keep_running: bool,

    /// Also copy the disks that the guest writes to, which must not be qcow2 images; it is restored
    /// on the copies.
    #[arg(long)]
    pub(crate) disks: bool,
}

/// `lighter template`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter template web-1 web.template
  lighter run --template web.template --name web-2 --detach
  lighter run --template web.template --name web-3 --disk web-3.raw --detach

The guest is paused while it is written, and then continues. Guests from the
file start where it was, within moments, each under its own name and UUID, and
share its memory until they write it. A guest that writes disks can be cloned if
each clone gets a copy of these disks: `lighter pause` the guest, make the
template, copy the disks, `lighter resume` it. Clones share machine-id and SSH
host keys: renew them in each. Linux 5.18 and later with ACPI draws random
numbers of its own in each clone. Leave the file alone while clones run; to
replace it, run this verb again.")]
pub(crate) struct TemplateArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The file to write; a saved guest or template of that name is replaced, of whichever guest it
    /// is, once all is written. Clones of the old one keep it.
    pub(crate) file: PathBuf,
}

/// Verbs that take a name and nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter pause web-1
  lighter reset web-1
  lighter destroy web-1 web-2

Several guests are taken one after the other; one that fails does not keep the
others back. `reset` and `destroy` do not ask the guest: what it has not written
to a disk is lost. See `lighter shutdown` and `lighter reboot` to end it
cleanly. `suspend` is another name for `pause`, `stop` for `destroy`.

A guest that is being migrated is not paused, resumed or destroyed: `lighter
cancel NAME` first. It can be reset: the migration continues, and moves the
guest while it boots. One whose memory follows it can only be destroyed, at
its destination: the migration then counts as complete.")]
pub(crate) struct NamesArgs {
    /// The guests.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<GuestName>,
}

/// `lighter resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter resume web-1
  lighter resume web-1 web-2

After a failed migration, a guest resumes only if its disks were not written
meanwhile: what it keeps of them in memory would corrupt them.")]
pub(crate) struct ResumeArgs {
    /// The guests.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<GuestName>,

    /// Use all disks as they are, even if they were written since the guest last had them: only
    /// when you know that they match.
    #[arg(long = "unsafe")]
    pub(crate) unsafe_disks: bool,
}

/// `lighter events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter events
  lighter events web-1
  lighter events --json | jq -r 'select(.event == \"stopped\") | .guest'

Prints a line for each event from now on, until Ctrl-C. With --json a line is an
object with time_unix_ms, guest, uuid, pid, number and event: started, stopped
(reason), paused, resumed, reset (reason), nothing-to-boot, migration-started
(role), migration-phase (phase), migration-decided (decision),
migration-ended (role, outcome, error), in-doubt (detail), and others that the
user guide lists. Those of migrations have migration_id.

Guests' processes report each event as it happens, and number them: a gap means
that this command read too slowly. The node's socket has the same:

  curl -N --unix-socket /var/lib/lighter/node.sock http://node/v1/events")]
pub(crate) struct EventsArgs {
    /// Only this guest, whether or not it runs.
    pub(crate) name: Option<GuestName>,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter console`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter console web-1
  lighter console web-1 < /dev/null | tee boot.log

Begins with the last 64 KiB that the guest wrote in its process. All keys go to
the guest, Ctrl-C too; only Ctrl-] leaves the console, and the guest continues.
Several clients can watch and type at once. A migration ends this console: open
it on the other host.

The guest's bytes reach the terminal unchanged, escape sequences included, as on
a serial line; `lighter logs` shows them as text.")]
pub(crate) struct ConsoleArgs {
    /// The guest.
    pub(crate) name: GuestName,
}

/// `lighter shutdown`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter shutdown web-1
  lighter shutdown web-1 web-2 --timeout 5m
  lighter shutdown --all

The guest's system decides what its power button does; most shut down. A guest
that runs without ACPI, that is still booting, or that is the built-in workload
ignores it, and this says so at once. `lighter destroy` ends a guest that does
not answer. With --all, the buttons of all guests of this host are pressed at
once, and the timeout is that of all together.")]
pub(crate) struct ShutdownArgs {
    /// The guests, one after the other.
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) names: Vec<GuestName>,

    /// All guests that run on this host.
    #[arg(long)]
    pub(crate) all: bool,

    /// How long each may take.
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// `lighter reboot`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter reboot web-1
  lighter reboot web-1 web-2 --timeout 5m

This presses the guest's power button, and boots the guest again when it has
switched itself off within the timeout. A guest that runs without ACPI, that is
still booting, or that is the built-in workload ignores the button, and this
says so at once. `lighter reset` boots a guest again that does not answer.")]
pub(crate) struct RebootArgs {
    /// The guests, one after the other.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<GuestName>,

    /// How long each may take.
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

With SIZE the guest is told to keep no more than that of its memory; give it all
of its memory to take nothing away. It gives memory up as it can: run this again
to see how far it is. `Resident` is what the host really spends on it.")]
pub(crate) struct BalloonArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// Memory that the guest keeps, binary units: 512M, 1G.
    #[arg(value_parser = parse_size)]
    pub(crate) size: Option<u64>,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter blockresize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter blockresize web-1 vda 40G
  lighter blockresize web-1 /srv/web-1.qcow2 40G
  lvextend -L 40G /dev/vg0/db && lighter blockresize db /dev/vg0/db

The guest sees the new size at once; grow its partition and its file system
inside it (growpart, resize2fs). It cannot be made smaller again. If the command
fails after the disk has grown, the guest keeps the old size: repeat it.")]
pub(crate) struct BlockresizeArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// The disk: its path as `lighter show` prints it, or vda for the first one, vdb for the second
    /// one.
    #[arg(value_name = "DISK", value_parser = NamedDisk::parse)]
    pub(crate) disk: NamedDisk,

    /// New size, binary units: 512M, 40G [default: what the device or the file has by now].
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
    /// Also list defined guests that do not run, and the last guests that have ended, with the
    /// reason.
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
