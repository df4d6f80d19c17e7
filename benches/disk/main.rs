//! A guest's disk under lighter and under QEMU's virtio-mmio, in one run: the same Linux kernel,
//! the same program in it, the same host, and files of the same content, which the host has cached
//! unless `--uncached` is given (`TMPDIR` then needs a file system with `O_DIRECT`).
//!
//!     cargo bench --bench disk [-- --runs 5 --image --uncached]
//!
//! With `--image` the disks are qcow2 images; with `--uncached` they bypass the host's cache.
//!
//! Four guests are booted, which takes some minutes where KVM emulates the guest's kernel; then
//! each measures its disk in turn, while the others are stopped. The guest takes the time
//! (`tests/guest/check/throughput.rs`); CPU time is that of the process without its vCPU threads.
//! Start reading at [`main`].

mod guest;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use guest::{Disks, Format, Guest, System};

/// A measurement that a guest can be asked for.
struct Task {
    letter: u8,
    name: &'static str,
}

const TASKS: [Task; 4] = [
    Task { letter: b'S', name: "64 MiB sequential read, MB/s" },
    Task { letter: b'T', name: "64 MiB sequential write, MB/s" },
    Task { letter: b'R', name: "random 4 KiB reads, 1/s" },
    Task { letter: b'W', name: "random 4 KiB writes, 1/s" },
];

/// The result of a measurement.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Megabytes or requests per second.
    rate: f64,
    cpu_seconds: f64,
}

fn main() -> Result<()> {
    let (runs, disks) = settings(std::env::args().skip(1))?;
    let folder = tempfile::tempdir()?;
    let mut guests = Vec::new();
    for system in System::ALL {
        eprintln!("booting {}", system.name());
        guests.push(Guest::start(system, disks, &kernel()?, &initrd()?, folder.path())?);
    }
    for guest in &mut guests {
        guest.await_boot()?;
    }
    for guest in &mut guests {
        guest.sleep()?;
    }
    let mut measured = vec![vec![Vec::new(); TASKS.len()]; guests.len()];
    for run in 0..=runs {
        for (guest, measured) in guests.iter_mut().zip(&mut measured) {
            guest.wake()?;
            for (task, measured) in TASKS.iter().zip(measured.iter_mut()) {
                let found = measure(guest, task)?;
                eprintln!(
                    "{:<22} {:<36} {:>8.1}  CPU {:.2} s",
                    guest.name(),
                    task.name,
                    found.rate,
                    found.cpu_seconds
                );
                // The first run warms everything up.
                if run > 0 {
                    measured.push(found);
                }
            }
            guest.sleep()?;
        }
    }
    println!("{}", table(&guests, &measured));
    Ok(())
}

/// Returns the number of runs, and what the disks are.
fn settings(mut arguments: impl Iterator<Item = String>) -> Result<(usize, Disks)> {
    let (mut runs, mut disks) = (5, Disks { format: Format::Raw, cache: "writeback" });
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--image" => disks.format = Format::Image,
            "--uncached" => disks.cache = "none",
            "--runs" => {
                let given = arguments.next().and_then(|given| given.parse().ok());
                runs = given.context("--runs needs a number")?;
                ensure!(runs > 0, "--runs must be at least 1");
            }
            _ => bail!("the options are --runs N, --image and --uncached"),
        }
    }
    Ok((runs, disks))
}

fn measure(guest: &mut Guest, task: &Task) -> Result<Run> {
    let before = guest.cpu_seconds()?;
    let line = guest.ask(task.letter)?;
    let cpu_seconds = guest.cpu_seconds()? - before;
    ensure!(line.errors == 0, "{} requests of {} failed", line.errors, guest.name());
    let seconds = line.microseconds as f64 / 1e6;
    let rate = match task.letter {
        b'S' | b'T' => line.bytes as f64 / 1e6 / seconds,
        _ => line.count as f64 / seconds,
    };
    Ok(Run { rate, cpu_seconds })
}

/// The medians, and the ranges of rates, as Markdown.
fn table(guests: &[Guest], measured: &[Vec<Vec<Run>>]) -> String {
    let names: Vec<_> = guests.iter().map(Guest::name).collect();
    let mut lines = vec![
        format!("| task | {} |", names.join(" | ")),
        format!("| --- |{}", " --- |".repeat(names.len())),
    ];
    for (index, task) in TASKS.iter().enumerate() {
        let cells = measured.iter().map(|tasks| cell(&tasks[index]));
        lines.push(format!("| {} | {} |", task.name, cells.collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}

fn cell(runs: &[Run]) -> String {
    let sorted = |of: fn(&Run) -> f64| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (rates, cpu) = (sorted(|run| run.rate), sorted(|run| run.cpu_seconds));
    match (rates.as_slice(), rates.get(rates.len() / 2), cpu.get(cpu.len() / 2)) {
        ([least, .., most], Some(rate), Some(cpu)) => {
            format!("{rate:.1} ({least:.1}-{most:.1}), CPU {cpu:.2} s")
        }
        (_, Some(rate), Some(cpu)) => format!("{rate:.1}, CPU {cpu:.2} s"),
        _ => "-".to_owned(),
    }
}

fn kernel() -> Result<PathBuf> {
    script("kernel.sh")
}

fn initrd() -> Result<PathBuf> {
    script("initramfs.sh")
}

/// Runs a script of the test guest and returns the path that it prints, of what it found or made.
fn script(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest").join(name);
    let output = Command::new(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
