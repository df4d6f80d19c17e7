//! Measures how long it takes to plan for many guests.
//!
//! `cargo bench -p memopt --bench plan -- [GUESTS] [CHUNKS] [ROUNDS]` (100 guests, 512 surveyed
//! chunks of each and 200 rounds by default). In each round every guest reports new values;
//! observing them and planning are timed separately. The two numbers are the median and the slowest
//! round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memopt::ledger::Ledger;
use memopt::plan::plan;
use memopt::policy::{Goal, Policy, Preset};
use memopt::situation::{
    Backing, Balloon, Chunk, Cost, Guest, Host, Ksm, Situation, Statistics, Survey, Vmm,
};
use memopt::units::{GIB, MIB};

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|it| it.parse().ok()).collect();
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (guests, chunks, rounds) = (number(0, 100), number(1, 512), number(2, 200).max(1));
    println!("{guests} guests, {chunks} chunks surveyed of each, {rounds} rounds");
    println!(
        "goal                  observe ms (median, max)  plan ms (median, max)  steps  skipped"
    );
    for goal in [Goal::MaxDensity, Goal::Free(8 * GIB), Goal::Keep(0.2)] {
        let mut ledger = Ledger::default();
        let policy = Preset::Dense.policy();
        let (mut observed, mut planned) = (Vec::new(), Vec::new());
        let mut size = (0, 0);
        for round in 0..rounds {
            let situation = sample(guests, chunks, round as u64);
            let began = Instant::now();
            ledger.observe(&situation, &policy);
            observed.push(began.elapsed());
            let began = Instant::now();
            let plan = plan(&situation, &policy, &ledger, &goal);
            planned.push(began.elapsed());
            size = (plan.steps.len(), plan.skipped.len());
        }
        let (observed, planned) = (summary(&mut observed), summary(&mut planned));
        println!(
            "{:20}  {observed:>24}  {planned:>21}  {:5}  {:7}",
            goal.to_string(),
            size.0,
            size.1
        );
    }
    rules(guests);
}

/// Measures planning with as many rules as a policy may have.
fn rules(guests: usize) {
    let text =
        "[[guest]]\nname = \"*-none\"\nlabel = \"tier=batch\"\nmin = \"1GiB\"\n".repeat(1000);
    let policy = match Policy::parse(&text, "bench") {
        Ok(policy) => policy,
        Err(error) => return println!("{error}"),
    };
    let mut ledger = Ledger::default();
    let mut planned: Vec<Duration> = (0..20)
        .map(|round| {
            let situation = sample(guests, 0, round);
            ledger.observe(&situation, &policy);
            let began = Instant::now();
            let _ = plan(&situation, &policy, &ledger, &Goal::MaxDensity);
            began.elapsed()
        })
        .collect();
    println!("with 1,000 rules: {} ms", summary(&mut planned));
}

fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!("{:.3}, {:.3}", ms(times.get(times.len() / 2)), ms(times.last()))
}

fn sample(guests: usize, chunks: usize, round: u64) -> Situation {
    Situation {
        unix_seconds: 1_800_000_000 + round * 10,
        uptime: Duration::from_secs(1000 + round * 10),
        host: Host {
            total_bytes: 512 * GIB,
            available_bytes: 100 * GIB,
            swap_used_bytes: 0,
            pressure: None,
            ksm: Some(Ksm::default()),
            pools: Vec::new(),
            merged_domain: None,
            other_processes: Vec::new(),
        },
        guests: (0..guests as u64).map(|index| guest(index, chunks as u64, round)).collect(),
    }
}

fn guest(index: u64, chunks: u64, round: u64) -> Guest {
    // Pseudo-random values: a linear congruence of guest and round.
    let noise = (index * 6_364_136_223 + round * 1_442_695_041) % 1000;
    let used = GIB + noise * MIB;
    Guest {
        name: format!("guest-{index:03}"),
        vmm: Vmm::Lighter,
        pid: 1000 + index as u32,
        memory_bytes: 4 * GIB,
        cost: Cost {
            resident_bytes: 4 * GIB - noise * MIB,
            proportional_bytes: 4 * GIB - noise * MIB,
            ..Cost::default()
        },
        backing: Backing::Anonymous,
        balloon: Some(Balloon {
            has_driver: true,
            target_bytes: 4 * GIB,
            actual_bytes: 4 * GIB,
            is_set_by_steps: None,
            reports_free_pages: index.is_multiple_of(2),
            reported_bytes_total: 0,
            statistics: Some(Statistics {
                age: Duration::from_secs(2),
                total_bytes: Some(4 * GIB),
                free_bytes: Some(noise * MIB),
                available_bytes: Some(4 * GIB - used),
                major_faults: Some(round),
                oom_kills: Some(0),
                ..Statistics::default()
            }),
        }),
        merge_domain: Some(format!("tenant-{}", index % 5)),
        is_mergeable: false,
        merged_instead: None,
        is_preallocated: false,
        survey: Some(Survey {
            age: Duration::from_secs(60),
            sampled: 0.25,
            copies: 5.0,
            chunks: (0..chunks).map(|chunk| some_chunk(chunk, noise)).collect(),
        }),
        hindrance: None,
        since_boot: None,
        labels: BTreeMap::from([("tier".to_owned(), "batch".to_owned())]),
        user: None,
    }
}

fn some_chunk(index: u64, noise: u64) -> Chunk {
    let mixed = (index * 2_654_435_761 + noise) % 512;
    Chunk {
        index: index as u32 * 4,
        present_pages: 512,
        zero_pages: 0,
        duplicate_pages: mixed as u16,
        template_pages: 0,
        written_pages: if mixed.is_multiple_of(5) { 64 } else { 0 },
        is_huge: mixed.is_multiple_of(2),
        is_mergeable: false,
        has_twins: false,
    }
}
