//! Arguments of the verbs about guests that are written down: define, undefine, start, autostart.

use std::path::PathBuf;

use clap::Args;

use crate::names::GuestName;

const DEFINE_EXAMPLES: &str = "\
Examples:
  lighter define web-1.toml
  lighter start web-1

web-1.toml:
  name = \"web-1\"
  memory = \"1G\"
  cpus = 2
  kernel = \"/shared/vmlinuz-6.1\"
  initrd = \"/shared/initrd.img-6.1\"
  cmdline = \"console=ttyS0 root=/dev/vda rw\"
  rng = true
  restart = \"on-failure\"
  labels = { team = \"shop\" }

  [[disk]]
  path = \"/shared/web-1.raw\"
  read-only = false
  serial = \"web-1\"

Keys are named like the options of `lighter run`, except labels, [[disk]],
[[net]] and read-only as above; --detach and those of isolation are not keys.
restart: with on-failure, the node starts the guest again when it has crashed or
its process has died, up to three times in ten minutes. Paths must be absolute.
A definition of the same name is replaced; a running guest has the new one from
its next start.";

/// `lighter define`.
#[derive(Debug, Args)]
#[command(after_help = DEFINE_EXAMPLES)]
pub(crate) struct DefineArgs {
    /// The guest's file.
    #[arg(value_name = "FILE.toml")]
    pub(crate) file: PathBuf,
}

/// `lighter start`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter start web-1
  lighter start web-1 --force

It runs in the background, as with `lighter run --detach`. A guest that has
moved to another host, is in a file (`lighter save`), or whose last migration is
not settled is refused: it may run there, and two copies would destroy its
disks. So is one that the other host of its last migration has, or has had
since; when that host does not answer within 5 s, a warning says so. --force
starts it here all the same, unless a host that it has moved to says that it has
it, or that another guest there uses its disks.")]
pub(crate) struct StartArgs {
    /// The guest, which has been defined.
    pub(crate) name: GuestName,

    /// Start it even if it may run on another host: only when you know that it does not.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `lighter undefine`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter undefine web-1
  lighter undefine web-1 web-2")]
pub(crate) struct DefinedArgs {
    /// The guests, which have been defined.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<GuestName>,
}

/// `lighter autostart`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter autostart web-1
  lighter autostart web-1 --disable

The node starts such guests when it is first started after the host has booted,
one after the other, and logs which did not start. A guest that has moved to
another host is not started: it may be running there. One whose last migration
is not settled waits until the other host has answered. As `lighter start`, it
asks the other host.")]
pub(crate) struct AutostartArgs {
    /// The guest, which has been defined.
    pub(crate) name: GuestName,

    /// No longer start it when the host boots.
    #[arg(long)]
    pub(crate) disable: bool,
}
