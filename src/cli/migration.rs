//! Arguments of the verbs that move a guest: migrate, cancel.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use migrate::OnStall;
use migrate::pages::Compression;

use super::JsonFlag;
use super::host_device::HostDeviceArg;
use super::limits::{Preset, Setting, on_stall, time_limit};
use super::named_disk::NamedDisk;
use crate::address::Destination;
use crate::names::GuestName;
use crate::units::{format_duration, parse_rate};

const MIGRATE_EXAMPLES: &str = "\
Examples:
  lighter migrate web-1 host-b
  lighter migrate web-1 host-b:4950 --downtime 50ms --bandwidth 1GB/s
  lighter migrate web-1 host-b --downtime 300ms --downtime-max 2s
  lighter migrate web-1 192.0.2.7 --tls-name host-b --json
  lighter migrate db host-b --copy-disks
  lighter migrate db host-b --copy-disks --disk-path /srv/a/db.raw=/srv/b/db.raw
  lighter migrate db host-b --copy-disk /srv/db-cache.raw
  lighter migrate db host-b --copy-disk vdb
  lighter migrate web-1 host-b --preset now
  lighter migrate web-1 host-b --via 192.0.2.7,198.51.100.7
  lighter migrate web-1 host-b --detach-on-migrate
  lighter migrate web-1 host-b --detach-on-migrate --attach-there vfio=03:00.0
  lighter migrate web-1 host-b --estimate
  lighter migrate web-1 --set on-stall=force,downtime=2s
  lighter migrate web-1 --postcopy-now
  lighter migrate web-1 --resolve run

A migration stalls when the guest writes faster than its memory is sent.
With --downtime-max, it may then pause for longer, step by step; if that does
not suffice, --on-stall says what to do. --set changes these and other limits on
the way.

Ctrl-C cancels the migration, and the guest keeps running here; a second Ctrl-C
does not wait for that (exit code 5). The guest's own process migrates it: if
this command is killed, the migration continues, `lighter show NAME` shows its
progress, and `lighter cancel NAME` cancels it. Devices are then neither given
back nor attached there.

Whatever fails, the guest runs on one host at most. If the connection is lost
while memory is sent, the hosts try for two minutes to go on. If it is lost
during the hand-over, the guest may run on neither until the hosts reach each
other again; if they never will, --resolve decides by hand.

With --json the report is printed at the end, or the estimate; until then,
progress is shown on stderr if that is a terminal.";

/// The options of a migration that begins; they change nothing about one that is under way.
const STARTING: [&str; 15] = [
    "preset",
    "downtime",
    "downtime_max",
    "on_stall",
    "bandwidth",
    "timeout",
    "compress",
    "connections",
    "via",
    "tls_name",
    "json",
    "copying",
    "detach_on_migrate",
    "attach_there",
    "estimate",
];

/// `lighter migrate`.
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_EXAMPLES)]
pub(crate) struct MigrateArgs {
    /// The guest.
    pub(crate) name: GuestName,

    /// Where to: the address of the other host's node, port 4950 unless given.
    #[arg(
        value_parser = destination,
        value_name = "HOST[:PORT]",
        required_unless_present_any = ["resolve", "set", "postcopy_now", "recover"],
        conflicts_with_all = ["resolve", "set", "postcopy_now", "recover"]
    )]
    pub(crate) destination: Option<String>,

    /// What matters most; the options below override its parts.
    #[arg(long, value_enum, default_value = "balanced", value_name = "PRESET")]
    pub(crate) preset: Preset,

    /// Longest planned pause of the guest: switchover begins when less is expected. If it takes
    /// longer than twice this time and a second (30 s at most, or this time and a second if that is
    /// longer), the guest continues here, and after the third time the migration fails [default:
    /// as the preset says].
    #[arg(long, value_parser = time_limit, value_name = "TIME")]
    pub(crate) downtime: Option<Duration>,

    /// Raise --downtime up to this, doubled step by step, when the migration stalls or the guest
    /// cannot be paused for so short a time; --on-stall comes after that [default: --downtime is
    /// not raised].
    #[arg(long, value_parser = time_limit, value_name = "TIME")]
    pub(crate) downtime_max: Option<Duration>,

    /// What to do when rounds no longer lower the expected pause, and it is still too long
    /// [default: as the preset says].
    #[arg(long, value_parser = on_stall(), value_name = "HOW")]
    pub(crate) on_stall: Option<OnStall>,

    /// At most this much on the network, also while the guest is paused for the hand-over, or its
    /// memory follows it: 100MB/s, 1Gbit/s [default: no limit].
    #[arg(long, value_parser = parse_rate, value_name = "RATE")]
    pub(crate) bandwidth: Option<u64>,

    /// Give up after this long; the guest continues here.
    #[arg(long, value_parser = time_limit, default_value = "1h", value_name = "TIME")]
    pub(crate) timeout: Duration,

    /// Compress pages: when it helps, never, or always with LZ4.
    #[arg(long, value_parser = compression(), default_value = "auto", value_name = "HOW")]
    pub(crate) compress: Compression,

    /// QUIC connections side by side [default: as many as help on this machine].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16), value_name = "N")]
    pub(crate) connections: Option<u8>,

    /// Send over these addresses of the other host at once, one on each network between the hosts:
    /// their rates add up, and the migration goes on when one of them fails. At most four; routing
    /// decides which interface leads to each. An estimate measures the first one.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ADDRESS",
        conflicts_with = "connections",
        requires = "destination"
    )]
    pub(crate) via: Vec<IpAddr>,

    /// Copy all of the guest's disks, for hosts that do not share them. The destination creates new
    /// files, in the folders that its node was started with (`lighter node --disk-dir`), or
    /// overwrites block devices (`--replace-disks`); the disks here are left as they are.
    #[arg(long, group = "copying")]
    pub(crate) copy_disks: bool,

    /// Copy only this disk of the guest: its path as `lighter show` prints it, or vda for the first
    /// one there, vdb for the second one; may be given several times. Both hosts share its other
    /// disks.
    #[arg(long, value_parser = NamedDisk::parse, value_name = "DISK", group = "copying")]
    pub(crate) copy_disk: Vec<NamedDisk>,

    /// Path of a copied disk at the destination; may be given several times [default: as here].
    /// HERE is its path here, or vda.
    #[arg(long, value_parser = disk_path, value_name = "HERE=THERE", requires = "copying")]
    pub(crate) disk_path: Vec<(NamedDisk, PathBuf)>,

    /// Replace files that exist at the disks' paths at the destination, once the guest runs there,
    /// and overwrite block devices there, from the beginning, unless they are in use. If the
    /// migration then fails, such a device has a part of the copy on it.
    #[arg(long, requires = "copying")]
    pub(crate) replace_disks: bool,

    /// Skip the check that both hosts have the same disks, or, of a copied disk, that it is not the
    /// very device that it would overwrite. If that is wrong, the guest's data is lost. With
    /// `--resolve run`: run the guest here although the other host may have written its block
    /// devices. If it did, their data is lost. With `--resolve discard`: give up memory that a
    /// guest still needs which runs at its destination. It is lost then.
    #[arg(long = "unsafe")]
    pub(crate) unproven_disks: bool,

    /// Detach the host's devices (VFIO) that the guest has, which cannot move, and migrate it then.
    /// If it stays, it gets them again; there, --attach-there gives it others.
    #[arg(long, requires = "destination", conflicts_with = "estimate")]
    pub(crate) detach_on_migrate: bool,

    /// Device of the destination that the guest gets when it has arrived: its node must give it
    /// (`lighter node --device`), which is asked first. What becomes of it is said on stderr; after
    /// Ctrl-C that is not awaited (exit code 5). Give it more than once for more devices.
    #[arg(
        long,
        value_name = "vfio=ADDRESS",
        requires = "destination",
        conflicts_with = "estimate"
    )]
    pub(crate) attach_there: Vec<HostDeviceArg>,

    /// Do not migrate: measure for some seconds how it would go with these options, and what would
    /// help. The guest's writes are logged meanwhile, and it is paused once for some milliseconds;
    /// at most 256 MiB of test data are sent to the other host within a second.
    #[arg(long, requires = "destination")]
    pub(crate) estimate: bool,

    /// The name in the destination's certificate, when it is not HOST.
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_name: Option<String>,

    /// Change the migration that is under way: downtime=TIME, downtime-max=TIME, timeout=TIME,
    /// on-stall=HOW, bandwidth=RATE or bandwidth=none; only the bandwidth once the guest is handed
    /// over before its memory.
    #[arg(
        long,
        value_parser = Setting::parse,
        value_delimiter = ',',
        value_name = "KEY=VALUE",
        conflicts_with = "resolve",
        conflicts_with_all = STARTING
    )]
    pub(crate) set: Vec<Setting>,

    /// Hand the guest of the migration that is under way over at once: it runs at the destination
    /// before its memory is there, and waits for each page that it lacks. A host that fails until
    /// all of it is there loses the guest; a network that fails does not.
    #[arg(long, conflicts_with_all = ["resolve", "set"], conflicts_with_all = STARTING)]
    pub(crate) postcopy_now: bool,

    /// Look for the destination at this address, when it cannot be reached any more at the first
    /// one. Both hosts keep all they have, and go on once they meet: for two minutes before the
    /// guest is handed over, without limit afterwards.
    #[arg(
        long,
        value_parser = destination,
        value_name = "HOST[:PORT]",
        conflicts_with_all = ["resolve", "set", "postcopy_now"],
        conflicts_with_all = STARTING
    )]
    pub(crate) recover: Option<String>,

    /// Decide about a guest whose migration is in doubt, when the other host will not answer any
    /// more.
    #[arg(
        long,
        value_enum,
        value_name = "DECISION",
        conflicts_with_all = STARTING
    )]
    pub(crate) resolve: Option<ResolveArg>,

    #[command(flatten)]
    pub(crate) json: JsonFlag,

    /// What every migration is: for those who know `virsh migrate --live`.
    #[arg(long = "live", hide = true)]
    _live: bool,
}

impl MigrateArgs {
    /// Returns the downtime limit, and the most to which it is raised.
    ///
    /// # Errors
    /// If it would be raised to less than it is.
    pub(crate) fn downtime(&self) -> Result<(Duration, Option<Duration>)> {
        let limit = self.downtime.unwrap_or_else(|| self.preset.downtime());
        match self.downtime_max {
            Some(max) if max < limit => bail!(
                "--downtime-max {} is below the downtime limit of {}: give more, or less with --downtime",
                format_duration(max),
                format_duration(limit)
            ),
            max => Ok((limit, max)),
        }
    }

    /// Whether any disk is copied.
    pub(crate) fn copies_disks(&self) -> bool {
        self.copy_disks || !self.copy_disk.is_empty()
    }
}

/// Checks where to, and leaves it as it was typed: the guest's process takes it apart.
fn destination(text: &str) -> Result<String> {
    Destination::parse(text).map(|_| text.to_owned())
}

/// Splits `HERE=THERE`.
fn disk_path(text: &str) -> Result<(NamedDisk, PathBuf)> {
    let Some((here, there)) = text.split_once('=') else {
        bail!("`{text}` is not HERE=THERE, the paths of a disk on both hosts");
    };
    let there = PathBuf::from(there);
    if !there.is_absolute() {
        bail!("`{}` is not absolute, as the path at the destination must be", there.display());
    }
    Ok((NamedDisk::parse(here)?, there))
}

/// The values of `--compression`, with their help.
const COMPRESSIONS: [(&str, Compression, &str); 3] = [
    ("auto", Compression::Auto, "When it makes the migration faster"),
    ("off", Compression::Off, "Never"),
    ("lz4", Compression::Lz4, "Always"),
];

fn compression() -> impl TypedValueParser<Value = Compression> {
    let values = COMPRESSIONS.map(|(name, _, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values).map(|name| {
        let named = COMPRESSIONS.iter().find(|(known, ..)| *known == name);
        named.map_or(Compression::Auto, |(_, compression, _)| *compression)
    })
}

/// An operator's decision about a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResolveArg {
    /// Run the copy of the guest that is here. Two guests will run if the other host runs it too.
    Run,
    /// Delete the copy on this host. The guest is lost if the other host does not run it.
    Discard,
}

/// `lighter cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter cancel web-1

Works on both hosts, until the guest is handed over; from then on the migration
can only be completed.")]
pub(crate) struct CancelArgs {
    /// The guest.
    pub(crate) name: GuestName,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MigrateArgs,
    }

    fn parse(more: &[&str]) -> Result<MigrateArgs, clap::Error> {
        let line = [&["migrate", "db", "host-b"][..], more].concat();
        Line::try_parse_from(line).map(|line| line.args)
    }

    #[test]
    fn a_downtime_limit_is_raised_to_no_less_than_it_is() {
        let ms = Duration::from_millis;
        let limits = |more: &[&str]| parse(more).unwrap().downtime().map_err(|it| it.to_string());
        assert_eq!(limits(&[]), Ok((ms(300), None)));
        let both = ["--downtime", "50ms", "--downtime-max", "2s"];
        assert_eq!(limits(&both), Ok((ms(50), Some(ms(2000)))));
        assert_eq!(limits(&["--downtime-max", "300ms"]), Ok((ms(300), Some(ms(300)))));
        for low in
            [&["--downtime-max", "299ms"][..], &["--preset", "now", "--downtime-max", "999ms"]]
        {
            let error = limits(low).unwrap_err();
            assert!(error.contains("--downtime-max") && error.contains("below"), "{error}");
        }
    }

    #[test]
    fn all_disks_are_copied_or_those_that_are_named() {
        let there = ["--disk-path", "/no/a=/b", "--disk-path", "vdc=/c", "--replace-disks"];
        let named = ["--copy-disk", "/no/a", "--copy-disk", "vdc"];
        let args = parse(&[&named[..], &there].concat()).unwrap();
        assert!(args.copies_disks());
        let [a, c] = [NamedDisk::Path("/no/a".into()), NamedDisk::Number(2)];
        assert_eq!(args.copy_disk, [a.clone(), c.clone()]);
        assert_eq!(args.disk_path, [(a, "/b".into()), (c, "/c".into())]);
        let args = parse(&[&["--copy-disks"][..], &there].concat()).unwrap();
        assert!(args.copies_disks() && args.copy_disk.is_empty());
        assert!(!parse(&[]).unwrap().copies_disks());
        for wrong in [&there[..], &["--copy-disks", "--copy-disk", "/no/a"]] {
            parse(wrong).unwrap_err();
        }
    }
}
