//! What a throttled guest sees: how long it stands still, and how much it still writes.
//!
//! `cargo bench -p vmm-core --bench throttle -- [SECONDS]` (5 seconds for each row by default). The
//! guest is the built-in workload with one vCPU, which rewrites 64 MiB at 20,000 pages per second
//! when it is not throttled. A stall is the longest time that the guest did not run, by its own
//! clock.

mod guest;

use std::io::sink;
use std::time::{Duration, Instant};

use vmm_core::workload::{Control, Report, WorkloadParams};
use vmm_core::{Vm, VmShape};

use guest::{Outcome, PATIENCE, fill};

const MIB: u64 = 64;
const RATE: u64 = 20_000;
/// None, the least and the most of a first step, and those that follow 75 %.
const PERCENTS: [u8; 6] = [0, 20, 75, 94, 98, 99];

fn main() -> Outcome<()> {
    let seconds = std::env::args().find_map(|it| it.parse().ok()).unwrap_or(5);
    let vm = Vm::create(&VmShape::for_host(MIB << 20, 1)?, Box::new(sink()))?;
    fill(&vm, WorkloadParams { dirty_rate_pages_per_second: RATE, ..WorkloadParams::default() })?;
    println!("throttle %  pages/s  longest stall ms");
    for percent in PERCENTS {
        let (speed, stall) = measure(&vm, percent, Duration::from_secs(seconds))?;
        println!("{percent:10}  {speed:7.0}  {:16.1}", stall.as_secs_f64() * 1e3);
    }
    vm.stop();
    Ok(())
}

/// Pages that the guest writes per second while it is throttled, and its longest stall.
fn measure(vm: &Vm, percent: u8, during: Duration) -> Outcome<(f64, Duration)> {
    vm.throttle(percent, PATIENCE)?;
    let epoch = Control::new(vm.ram().memory())?.reset_stall()?;
    let (began, before) = (Instant::now(), Report::read(vm.ram().memory())?);
    std::thread::sleep(during);
    let after = Report::read(vm.ram().memory())?;
    assert!(after.stall_epoch() >= epoch, "the guest did not run");
    let written = after.pages_written() - before.pages_written();
    Ok((written as f64 / began.elapsed().as_secs_f64(), after.longest_stall()))
}
