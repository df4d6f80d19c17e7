//! Arguments of the verbs that watch what runs on a host: logs.

use clap::Args;

use crate::names::GuestName;

/// `lighter logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter logs web-1
  lighter logs web-1 --follow --tail 20
  lighter logs web-1 --process
  lighter logs web-1 | grep -a 'Kernel panic'

Prints the last 4 to 8 MiB that a guest in the background wrote on its console in its process, or
the last 64 KiB of a guest in a terminal. Of guests that are gone, the logs of those whose process
died are kept; the logs of the others went with them.

--follow ends when the guest is gone. Ctrl-C ends it with exit code 0. `lighter console` also types
on the console.")]
pub(crate) struct LogsArgs {
    /// The guest, live or not.
    pub(crate) name: GuestName,

    /// Continue with what is written, until the guest is gone or Ctrl-C.
    #[arg(long, short)]
    pub(crate) follow: bool,

    /// Begin with the last lines, this many; 0 prints only what is new [default: all].
    #[arg(long, short = 'n', value_name = "LINES")]
    pub(crate) tail: Option<u64>,

    /// Print the log of the guest's process instead: the messages of lighter about this guest.
    #[arg(long)]
    pub(crate) process: bool,
}
