//! The cost of making a clone share pages with its template again: for the host, and for the guest,
//! which writes meanwhile.
//!
//! `cargo bench -p vmm-core --bench sharing -- [ROUNDS] [MIB]` (5 rounds of 1024 MiB by default).
//! The guest is the built-in workload with one vCPU, which rewrites 64 MiB, at 2,000 pages per
//! second or as fast as it can. Each round starts a clone of it, makes unchanged copies of every
//! other run of its pages, lets it run, and shares 8 MiB at a time, as `lighter` does. Figures are
//! medians over the rounds; a stall is the longest time that the guest did not run while a piece
//! was shared, by its own clock.

mod guest;

use std::io::{Error, sink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use vmm_core::memory::{PAGE_BYTES, PageMap};
use vmm_core::snapshot::{CloneConfig, Template, save_template};
use vmm_core::workload::{Control, Report, WorkloadParams};
use vmm_core::{Vm, VmShape};

use guest::{Outcome, PATIENCE, fill};

const PIECE_BYTES: u64 = 8 << 20;
const PAGE: u64 = PAGE_BYTES as u64;
const RATE: u64 = 2_000;
/// More pages per second than any processor can write.
const UNLIMITED: u64 = 10_000_000;
/// Lengths of the runs: so many consecutive pages are copied, then as many are not.
const RUNS: [u64; 3] = [1, 16, 512];

fn main() -> Outcome<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|it| it.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(5);
    let mib = numbers.get(1).copied().unwrap_or(1024);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("template");
    save_template(&filled(mib)?, &path)?;
    println!(
        "pages/s    run  copied MiB  shared MiB  total ms   CPU ms  stall us: median of pieces, longest"
    );
    for rate in [RATE, UNLIMITED] {
        for run in RUNS {
            let rows: Outcome<Vec<Row>> = (0..rounds).map(|_| measure(&path, rate, run)).collect();
            let rows = rows?;
            let column = |of: fn(&Row) -> f64| median(rows.iter().map(of).collect());
            let rate = if rate == UNLIMITED { "unlimited".to_owned() } else { rate.to_string() };
            println!(
                "{rate:9}  {run:4}  {:10.0}  {:10.0}  {:8.0}  {:7.0}  {:27.0}  {:7.0}",
                column(|row| row.copied_mib),
                column(|row| row.shared_mib),
                column(|row| row.total_ms),
                column(|row| row.cpu_ms),
                column(|row| row.stall_us),
                column(|row| row.longest_stall_us),
            );
        }
    }
    Ok(())
}

/// The results of one round.
struct Row {
    copied_mib: f64,
    shared_mib: f64,
    total_ms: f64,
    cpu_ms: f64,
    stall_us: f64,
    longest_stall_us: f64,
}

fn measure(template: &Path, rate: u64, run: u64) -> Outcome<Row> {
    let vm = Template::open(template)?.start(&CloneConfig::default(), Box::new(sink()))?;
    let mut map = PageMap::open()?;
    copy_every_other(&vm, run)?;
    let control = Control::new(vm.ram().memory())?;
    control.set_dirty_rate(rate)?;
    vm.resume()?;
    let before = own_pages(&vm, &mut map)?;
    let (mut stalls, mut total, mut cpu) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    for piece in pieces(&vm) {
        let epoch = control.reset_stall()?;
        await_report(&vm, |report| report.stall_epoch() >= epoch)?;
        let (began, used) = (Instant::now(), ClockId::CLOCK_THREAD_CPUTIME_ID.now()?);
        vm.share_with_template(&piece, &mut map)?;
        total += began.elapsed();
        cpu += Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now()? - used);
        // The guest reports a stall only once it runs again.
        std::thread::sleep(Duration::from_millis(1));
        stalls.push(Report::read(vm.ram().memory())?.longest_stall().as_secs_f64() * 1e6);
    }
    let after = own_pages(&vm, &mut map)?;
    vm.stop();
    let mib = |pages: u64| (pages * PAGE) as f64 / f64::from(1 << 20);
    Ok(Row {
        copied_mib: mib(before),
        shared_mib: mib(before.saturating_sub(after)),
        total_ms: total.as_secs_f64() * 1e3,
        cpu_ms: cpu.as_secs_f64() * 1e3,
        longest_stall_us: stalls.iter().copied().fold(0.0, f64::max),
        stall_us: median(stalls),
    })
}

/// A paused guest that has filled its memory.
fn filled(mib: u64) -> Outcome<Vm> {
    let vm = Vm::create(&VmShape::for_host(mib << 20, 1)?, Box::new(sink()))?;
    fill(&vm, WorkloadParams::default())?;
    vm.pause()?;
    Ok(vm)
}

/// Makes copies of every other run of pages of a paused clone, without changing the content.
fn copy_every_other(vm: &Vm, run: u64) -> Outcome<()> {
    let mut page = [0; PAGE_BYTES];
    for region in vm.ram().layout().regions() {
        for number in (0..region.bytes / PAGE).filter(|number| (number / run).is_multiple_of(2)) {
            let gpa = region.gpa + number * PAGE;
            vm.ram().read(gpa, &mut page)?;
            vm.ram().write(gpa, &page)?;
        }
    }
    Ok(())
}

fn pieces(vm: &Vm) -> impl Iterator<Item = std::ops::Range<u64>> {
    vm.ram().layout().regions().iter().flat_map(|region| {
        let end = region.gpa + region.bytes;
        (region.gpa..end)
            .step_by(PIECE_BYTES as usize)
            .map(move |start| start..end.min(start + PIECE_BYTES))
    })
}

fn own_pages(vm: &Vm, map: &mut PageMap) -> Outcome<u64> {
    pieces(vm).try_fold(0, |sum, piece| {
        let own = map.own_pages(vm.ram(), &piece)?;
        Ok(sum + own.iter().map(|pages| pages.count).sum::<u64>())
    })
}

fn await_report(vm: &Vm, is_meant: impl Fn(&Report) -> bool) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_meant(&Report::read(vm.ram().memory())?) {
        if Instant::now() > deadline {
            return Err(Error::other("the guest does not answer").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
