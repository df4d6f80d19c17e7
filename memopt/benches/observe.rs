//! Measures how long it takes to observe many guests: all counters, PSS of all, one round of the
//! meter, the search for processes with mergeable memory, and the host.
//!
//! `cargo bench -p memopt --bench observe -- [PROCESSES] [MIB] [ROUNDS]` (100 processes of 16 MiB
//! and 20 rounds by default). The processes are real and their memory is touched; it is on huge
//! pages only if the host uses them for all processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memopt::observe::{Meter, Sources, cost, host, mergeable_areas, mergeable_processes};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The time that a round may spend on exact measurements.
const BUDGET: Duration = Duration::from_millis(30);

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().filter(|it| it != "--bench").collect();
    if arguments.get(1).map(String::as_str) == Some("hold") {
        return hold(arguments[2].parse()?);
    }
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |it| it.parse());
    let (processes, mib, rounds) = (number(1, 100)?, number(2, 16)?, number(3, 20)?);
    let guests = start(processes, mib)?;
    let pids: Vec<u32> = guests.iter().map(Child::id).collect();
    let sources = Sources::system();

    let mut exact = Vec::new();
    for _ in 0..rounds {
        exact.push(time(|| pids.iter().map(|pid| cost(&sources, *pid)).collect::<Vec<_>>()));
    }
    let mut meter = Meter::new(BUDGET);
    let mut metered = Vec::new();
    let began = Instant::now();
    let mut oldest = Duration::ZERO;
    for _ in 0..rounds {
        let mut round = Vec::new();
        metered.push(time(|| round = meter.round(&sources, &pids, began.elapsed())));
        let ages = round.iter().flatten().map(|one| one.exact_age.unwrap_or(Duration::MAX));
        oldest = ages.max().unwrap_or_default();
    }
    let mut counters = Meter::new(Duration::ZERO);
    let counted: Vec<_> =
        (0..rounds).map(|_| time(|| counters.round(&sources, &pids, began.elapsed()))).collect();
    let hosts: Vec<_> = (0..rounds).map(|_| time(|| host(&sources))).collect();

    let all = processes_of_the_host()?;
    let asked: Vec<_> =
        (0..rounds).map(|_| time(|| mergeable_processes(&sources, &[], |_| ()))).collect();
    // Those processes have no mergeable memory, so all their page tables are walked.
    let walk =
        |pids: &[u32]| pids.iter().map(|pid| mergeable_areas(&sources, *pid)).collect::<Vec<_>>();
    let walked: Vec<_> = (0..rounds).map(|_| time(|| walk(&all))).collect();

    println!("{processes} processes of {mib} MiB, {rounds} rounds; median and worst in ms");
    row("PSS of all", exact);
    row("counters of all, PSS of one", counted);
    row(&format!("a round of the meter ({} ms for PSS)", BUDGET.as_millis()), metered);
    row(&format!("who lets pages be merged, of {}", all.len()), asked);
    row("the same before Linux 6.15: smaps of all", walked);
    row("the host", hosts);
    println!("oldest PSS after the meter's rounds: {oldest:.1?}");
    for mut guest in guests {
        drop(guest.stdin.take());
        guest.wait()?;
    }
    Ok(())
}

fn processes_of_the_host() -> Outcome<Vec<u32>> {
    let names =
        std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let began = Instant::now();
    std::hint::black_box(work());
    began.elapsed()
}

fn row(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let milliseconds = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, worst) = (milliseconds(times.get(times.len() / 2)), milliseconds(times.last()));
    println!("{name:44} {median:9.2} {worst:9.2}");
}

fn start(processes: usize, mib: usize) -> Outcome<Vec<Child>> {
    let mut guests = Vec::new();
    for _ in 0..processes {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("hold").arg(mib.to_string());
        let mut guest = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let said = guest.stdout.take().ok_or("no output")?;
        BufReader::new(said).read_line(&mut String::new())?;
        guests.push(guest);
    }
    Ok(guests)
}

/// Runs as a process with touched memory until its input ends.
fn hold(mib: usize) -> Outcome<()> {
    let memory = vec![7_u8; mib << 20];
    std::io::stdout().write_all(b"ready\n")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    std::hint::black_box(memory);
    Ok(())
}
