//! The cost of finding the pages that a guest has written, by bitmap and by rings: for the thread
//! that collects them, and for the guest.
//!
//! `cargo bench -p vmm-core --bench dirty_log -- [ROUNDS] [MILLISECONDS]` (10 rounds of 100 ms by
//! default). The guest is the built-in workload with one vCPU, which rewrites a working set of 256
//! MiB at a given rate, or as fast as it can. Each round lets it run, and then collects and re-arms
//! like a migration. Figures are medians over the rounds.

mod guest;

use std::io::sink;
use std::time::{Duration, Instant};

use vmm_core::workload::{Order, Report, WorkloadParams};
use vmm_core::{DirtyLog, Vm, VmOptions, VmShape};

use guest::{Outcome, fill};

const WORKING_SET_BYTES: u64 = 256 << 20;
/// More pages per second than any processor can write.
const UNLIMITED: u64 = 10_000_000;

fn main() -> Outcome<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|it| it.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(10);
    let pause = Duration::from_millis(numbers.get(1).copied().unwrap_or(100));
    println!(
        "memory MiB  pages/s    log         start ms  dirty/round  collect ms  rearm ms  guest's pages/s, of unlogged"
    );
    for mib in [512, 4096] {
        for rate in [200, 2_000, 20_000, 200_000, UNLIMITED] {
            for log in ["bitmap", "ring:16384", "ring:65536"] {
                let row = measure(mib, rate, log.parse()?, rounds, pause)?;
                let rate =
                    if rate == UNLIMITED { "unlimited".to_owned() } else { rate.to_string() };
                println!("{mib:10}  {rate:9}  {log:10}  {row}");
            }
        }
    }
    Ok(())
}

fn measure(mib: u64, rate: u64, log: DirtyLog, rounds: u64, pause: Duration) -> Outcome<String> {
    let vm = working(mib, rate, log)?;
    let unlogged = speed(&vm, pause * 5)?;
    let began = Instant::now();
    vm.start_dirty_log()?;
    let start_ms = began.elapsed().as_secs_f64() * 1e3;
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words)?;
    vm.rearm_dirty(0, &words)?;
    let (mut dirty, mut collects, mut rearms, mut speeds) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        speeds.push(speed(&vm, pause)?);
        words.fill(0);
        let began = Instant::now();
        vm.collect_dirty(&mut words)?;
        collects.push(began.elapsed().as_secs_f64() * 1e3);
        dirty.push(words.iter().map(|word| f64::from(word.count_ones())).sum());
        let began = Instant::now();
        vm.rearm_dirty(0, &words)?;
        rearms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    vm.stop();
    let speed = median(speeds);
    Ok(format!(
        "{start_ms:8.2}  {:11.0}  {:10.2}  {:8.2}  {speed:11.0} {:7.0} %",
        median(dirty),
        median(collects),
        median(rearms),
        100.0 * speed / unlogged
    ))
}

/// Starts a guest and waits until it has filled its memory.
fn working(mib: u64, rate: u64, dirty_log: DirtyLog) -> Outcome<Vm> {
    let shape = VmShape::for_host(mib << 20, 1)?;
    let vm = Vm::create_with(
        &shape,
        &VmOptions { dirty_log, ..VmOptions::default() },
        Box::new(sink()),
    )?;
    let params = WorkloadParams {
        working_set_bytes: WORKING_SET_BYTES,
        dirty_rate_pages_per_second: rate,
        order: Order::Random,
        ..WorkloadParams::default()
    };
    fill(&vm, params)?;
    Ok(vm)
}

/// Pages that the guest writes per second.
fn speed(vm: &Vm, during: Duration) -> Outcome<f64> {
    let written = || Outcome::Ok(Report::read(vm.ram().memory())?.pages_written());
    let (began, before) = (Instant::now(), written()?);
    std::thread::sleep(during);
    Ok((written()? - before) as f64 / began.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
