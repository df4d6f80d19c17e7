//! Arguments of the verbs that watch what runs on a host: logs, stats, version.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::JsonFlag;
use crate::names::GuestName;
use crate::units::parse_duration;

/// Shortest time between two samples: the kernel counts CPU time in steps of 10 ms.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest time between two samples.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// `lighter logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter logs web-1
  lighter logs web-1 --follow --tail 20
  lighter logs web-1 --process
  lighter logs web-1 | grep -a 'Kernel panic'

Prints the last 4 to 8 MiB that a guest wrote on its console in its process, or
the last 64 KiB if its console is the stdout of `lighter run`. When a guest has
ended, the last 64 KiB are kept until the next guest of that name ends; if its
process died, both logs are.

On a terminal, `?` stands for the control characters that the guest wrote, which
the terminal would obey; a file or a pipe gets all bytes unchanged.

--follow ends when the guest is gone. Ctrl-C ends it with exit code 0. `lighter
console` also types on the console.")]
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

/// `lighter stats`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter stats
  lighter stats web-1 web-2 --interval 10s
  lighter stats --no-stream
  lighter stats --json | jq -r '.guests[] | [.name, .cpu_percent] | @tsv'

CPU % is the CPU time of the guest's process: 100 is one CPU. RESIDENT is the
host memory that it occupies, MEMORY what the guest was given. The others are
bytes each second: NET RX and NET TX what the guest received and sent, DISK RD
and DISK WR what its process read from storage and wrote to it (host's page
cache excluded, swap included). `-` is unknown, or the guest has no such device.

A terminal shows one table, which is updated; a file or a pipe gets a table for
each sample, or with --json a line. Ctrl-C ends it with exit code 0.")]
pub(crate) struct StatsArgs {
    /// The guests; it ends when all of them are gone [default: all guests, and those that start
    /// later].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<GuestName>,

    /// Print one sample, which takes a second, and exit.
    #[arg(long, conflicts_with = "interval")]
    pub(crate) no_stream: bool,

    /// Time between two samples, 100ms to 1h.
    #[arg(long, value_parser = interval, default_value = "2s", value_name = "TIME")]
    pub(crate) interval: Duration,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter version`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter version
  lighter version --json

Hosts can move guests between them if they have a version of the protocol in
common. Running guests and the node keep the version that started them: this
shows which of them run another one than this program. It says why /dev/kvm
cannot be used, if so. `lighter --version` prints the version alone.")]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// Reads the time between two samples.
fn interval(text: &str) -> Result<Duration> {
    let interval = parse_duration(text)?;
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        bail!("`{text}` is out of range: give 100ms to 1h");
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_neither_too_short_nor_too_long() {
        for (text, time) in [("100ms", INTERVAL_MIN), ("2s", Duration::from_secs(2))] {
            assert_eq!(interval(text).unwrap(), time);
        }
        assert_eq!(interval("1h").unwrap(), INTERVAL_MAX);
        for text in ["0s", "99ms", "61m", "2", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
