//! lighter's network compared with QEMU's, in one run: the same Linux kernel, the same program in
//! it, tap devices of the same kind on the same bridge.
//!
//!     cargo bench --bench network [-- --runs 5] [--kib 512]
//!
//! One guest of each is booted (a minute or two where KVM emulates the guest's kernel). A client on
//! the bridge sends the given amount of data through each in turn and waits for all of it to come
//! back, over one TCP connection per guest; then it sends pings. Needs root, for a network
//! namespace of its own; busybox, iproute2 and QEMU.
//!
//! Start reading at [`run`].

mod client;
mod lan;
mod systems;

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use client::Client;
use lan::Lan;
use systems::{Lighter, Qemu, System};

/// Limit of a boot until the guest's program listens.
const BOOT_PATIENCE: Duration = Duration::from_secs(1200);
/// Number of echo requests per run, a fifth of a second apart.
const PINGS: u32 = 20;

/// The measurements of one guest in one run.
#[derive(Debug, Clone, Copy)]
struct Run {
    kib_per_second: f64,
    round_trip_ms: f64,
    /// CPU time of the guest's process without its vCPUs, per MiB that went there and back.
    cpu_ms_per_mib: f64,
}

/// The number of runs, and the data per run.
struct Settings {
    runs: usize,
    kib: usize,
}

impl Settings {
    /// Reads the command line; `--bench`, which cargo adds, is ignored.
    fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut settings = Self { runs: 5, kib: 512 };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().and_then(|value| value.parse().ok());
            let value = value.with_context(|| format!("{name} takes a number"))?;
            match name.as_str() {
                "--runs" => settings.runs = value,
                "--kib" => settings.kib = value,
                _ => bail!("unknown option {name}: there are --runs and --kib"),
            }
        }
        ensure!(settings.runs > 0 && settings.kib > 0, "--runs and --kib must be at least 1");
        Ok(settings)
    }
}

fn main() -> Result<()> {
    let settings = Settings::from_arguments(std::env::args().skip(1))?;
    let folder = tempfile::tempdir()?;
    let lan = Lan::lay()?;
    let systems: [Box<dyn System>; 2] =
        [Box::new(Qemu::boot(&lan, folder.path())?), Box::new(Lighter::boot(&lan, folder.path())?)];
    println!("{}", table(&settings, &run(&settings, &lan, &systems)?));
    Ok(())
}

/// Executes all runs; returns the results of each system, in their order.
fn run(settings: &Settings, lan: &Lan, systems: &[Box<dyn System>; 2]) -> Result<[Vec<Run>; 2]> {
    let mut clients = Vec::new();
    for system in systems {
        system.wait_for_boot(BOOT_PATIENCE)?;
        let mut client = Client::connect(lan, system.address())?;
        // A transfer that does not count: it warms everything up.
        client.echo(16)?;
        clients.push(client);
    }
    let mut runs = [Vec::new(), Vec::new()];
    for number in 1..=settings.runs {
        for ((system, client), runs) in systems.iter().zip(&mut clients).zip(&mut runs) {
            let cpu_before = system.cpu_seconds()?;
            let took = client.echo(settings.kib)?;
            let cpu = system.cpu_seconds()? - cpu_before;
            let run = Run {
                kib_per_second: settings.kib as f64 / took.as_secs_f64(),
                round_trip_ms: client::ping(lan, system.address(), PINGS)?,
                cpu_ms_per_mib: cpu * 1e3 * 1024.0 / settings.kib as f64,
            };
            eprintln!("{} run {number}: {run:.1?}", system.name());
            runs.push(run);
        }
    }
    Ok(runs)
}

/// A figure to compare: its name, and how to read it from a run.
type Figure = (&'static str, fn(&Run) -> f64);

/// The results as Markdown: medians and ranges, and lighter's as a ratio of QEMU's.
fn table(settings: &Settings, [qemu, lighter]: &[Vec<Run>; 2]) -> String {
    let figures: [Figure; 3] = [
        ("KiB/s there and back (more is better)", |run| run.kib_per_second),
        ("round trip of a ping, ms", |run| run.round_trip_ms),
        ("CPU ms of the process without vCPUs, for each MiB there and back", |run| {
            run.cpu_ms_per_mib
        }),
    ];
    let mut text = format!("{} KiB, medians (ranges) of {} runs.\n\n", settings.kib, settings.runs);
    text += "| figure | QEMU | lighter | lighter / QEMU |\n| --- | --- | --- | --- |\n";
    for (name, figure) in figures {
        let [(qemu, qemu_text), (lighter, lighter_text)] =
            [qemu, lighter].map(|runs| summary(runs.iter().map(figure).collect()));
        let ratio = lighter / qemu;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {name} | {qemu_text} | {lighter_text} | **{ratio:.2}** |");
    }
    text
}

/// The median, and the median with the range as text.
fn summary(mut values: Vec<f64>) -> (f64, String) {
    values.sort_by(f64::total_cmp);
    let middle = values[values.len() / 2];
    let (first, last) = (values.first().unwrap_or(&f64::NAN), values.last().unwrap_or(&f64::NAN));
    (middle, format!("{middle:.1} ({first:.1}-{last:.1})"))
}
