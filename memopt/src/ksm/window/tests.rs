//! Windows over a simulated ksmd.

use proptest::prelude::*;

use super::*;
use crate::observe::Advisor;

/// A ksmd over `memory` pages, of which `duplicates` merge during the second scan.
struct Simulated {
    knobs: KsmKnobs,
    memory: f64,
    duplicates: f64,
    scanned: f64,
    cpu: f64,
    now: f64,
    /// CPU time per page, on the first scan and later.
    costs: [f64; 2],
    has_cpu: bool,
    counts_pages: bool,
    /// Scans until all duplicates are merged.
    merging_scans: f64,
    /// Where ksmd is within a scan at the beginning, as a fraction: everything before that, of
    /// processes that no longer exist, still counts.
    stood: f64,
}

impl Simulated {
    fn new(memory: f64, duplicates: f64) -> Self {
        let knobs = KsmKnobs {
            run: 0,
            pages_to_scan: 100,
            sleep_millisecs: 20,
            smart_scan: Some(1),
            use_zero_pages: Some(0),
            merge_across_nodes: Some(1),
            advisor: Some(Advisor::ScanTime),
        };
        let costs = [1e-6, 6e-6];
        Self {
            knobs,
            memory,
            duplicates,
            scanned: 0.0,
            cpu: 0.0,
            now: 0.0,
            costs,
            has_cpu: true,
            counts_pages: true,
            merging_scans: 2.0,
            stood: 0.0,
        }
    }

    fn sample(&self) -> Sample {
        let scans = self.scanned / self.memory.max(1.0);
        let merging = (scans - 1.0) / (self.merging_scans - 1.0);
        let gone = if scans < 1.0 - self.stood { self.duplicates * self.stood } else { 0.0 };
        let merged = self.duplicates * merging.clamp(0.0, 1.0) + gone;
        let records = (self.memory * scans.min(1.0)) as i64 * 64;
        let ksm = Ksm {
            run: self.knobs.run as u8,
            pages_shared: 1,
            pages_sharing: merged as u64,
            pages_unshared: 0,
            pages_volatile: 0,
            zero_pages: 0,
            pages_scanned: if self.counts_pages { self.scanned as u64 } else { 0 },
            full_scans: (scans + self.stood) as u64,
            profit_bytes: merged as i64 * 4096 - records,
            cpu: self.has_cpu.then(|| Duration::from_secs_f64(self.cpu)),
        };
        Sample { ksm, knobs: self.knobs }
    }

    fn set(&mut self, sets: &[Set]) {
        for Set { knob, value } in sets.iter().copied() {
            match knob {
                Knob::Run => self.knobs.run = value,
                Knob::PagesToScan => {
                    assert_eq!(self.knobs.advisor, Some(Advisor::Off), "the kernel refuses it");
                    self.knobs.pages_to_scan = value;
                }
                Knob::SleepMillisecs => self.knobs.sleep_millisecs = value,
                Knob::SmartScan => self.knobs.smart_scan = Some(value),
                Knob::UseZeroPages => self.knobs.use_zero_pages = Some(value),
                Knob::AdvisorMode => self.knobs.advisor = Some(Advisor::Off),
            }
        }
    }

    fn advance(&mut self, seconds: f64) {
        self.now += seconds;
        if self.knobs.run != 1 || self.memory < 1.0 {
            return;
        }
        let cost = self.costs[usize::from(self.scanned > self.memory)];
        let batch = self.knobs.pages_to_scan as f64;
        // Sleeps end at a kernel tick.
        let sleep = (self.knobs.sleep_millisecs as f64 / 4.0).ceil() * 0.004;
        let batches = seconds / (sleep + batch * cost);
        self.scanned += batches * batch;
        self.cpu += batches * batch * cost;
    }

    fn now(&self) -> Duration {
        Duration::from_secs_f64(self.now)
    }

    /// Runs `window` to its end, with one sample per second.
    fn run(&mut self, window: &mut Window) -> Outcome {
        for _ in 0..100_000 {
            let sets = window.handle(&self.sample(), self.now());
            if let Some(outcome) = window.outcome() {
                return *outcome;
            }
            self.set(&sets);
            self.advance(1.0);
        }
        panic!("the window does not end");
    }
}

fn budget(cpu_share: f64, pages_per_second: u64, seconds: u64) -> Budget {
    let time = Duration::from_secs(seconds);
    Budget { cpu_share, cpu_time: time, pages_per_second, time }
}

const NO_RATE: u64 = 100_000_000;

#[test]
fn ends_soon_after_two_scans_that_merged_everything() {
    let mut ksmd = Simulated::new(1e6, 4e5);
    let mut window = Window::new(budget(0.5, NO_RATE, 3600), Options::default());
    let outcome = ksmd.run(&mut window);
    assert_eq!((outcome.end, outcome.full_scans), (End::Flat, 2));
    assert!((2_125_000..2_500_000).contains(&outcome.pages_scanned), "{outcome:?}");
    assert_eq!(outcome.gain_bytes, 400_000 * 4096 - (64 << 20) / (1 << 20) * 1_000_000);
    let share = outcome.cpu.unwrap().as_secs_f64() / outcome.elapsed.as_secs_f64();
    assert!(share > 0.25 && share < 0.5, "{share}");
}

#[test]
fn the_rest_of_a_scan_of_ended_guests_is_not_a_full_scan() {
    for stood in [0.5, 0.9, 0.99] {
        let mut ksmd = Simulated { stood, ..Simulated::new(200_000.0, 100_000.0) };
        let outcome = ksmd.run(&mut Window::new(budget(0.5, 1_000_000, 600), Options::default()));
        assert_eq!(outcome.end, End::Flat);
        assert_eq!(ksmd.sample().ksm.pages_sharing, 100_000, "all of them: {outcome:?}");
        assert!(outcome.pages_scanned < 700_000, "no more than it takes: {outcome:?}");
    }
}

#[test]
fn continues_while_late_pages_are_merged() {
    let mut ksmd = Simulated::new(1e6, 4e5);
    ksmd.merging_scans = 4.5;
    let mut window = Window::new(budget(0.5, NO_RATE, 3600), Options::default());
    let outcome = ksmd.run(&mut window);
    assert_eq!(outcome.end, End::Flat);
    assert!((4_625_000..5_100_000).contains(&outcome.pages_scanned), "{outcome:?}");
    assert_eq!(outcome.gain_bytes, 400_000 * 4096 - 64 * 1_000_000);
}

#[test]
fn memory_without_duplicates_is_not_scanned_a_third_time() {
    let mut ksmd = Simulated::new(1e6, 0.0);
    let outcome = ksmd.run(&mut Window::new(budget(0.5, NO_RATE, 3600), Options::default()));
    assert_eq!((outcome.end, outcome.full_scans), (End::Flat, 2));
}

#[test]
fn without_page_counts_a_third_scan_decides() {
    let mut ksmd = Simulated::new(2e5, 8e4);
    ksmd.counts_pages = false;
    let outcome = ksmd.run(&mut Window::new(budget(0.5, NO_RATE, 3600), Options::default()));
    assert_eq!((outcome.end, outcome.full_scans), (End::Flat, 3));
    assert_eq!(outcome.gain_bytes, 80_000 * 4096 - 64 * 200_000);
}

#[test]
fn the_advisor_goes_first_and_ksmd_starts_last() {
    let ksmd = Simulated::new(1e6, 0.0);
    let options = Options { smart_scan: Some(false), use_zero_pages: Some(true) };
    let mut window = Window::new(budget(0.2, NO_RATE, 60), options);
    let knobs: Vec<Knob> =
        window.handle(&ksmd.sample(), Duration::ZERO).iter().map(|set| set.knob).collect();
    assert_eq!(knobs.first(), Some(&Knob::AdvisorMode));
    assert_eq!(knobs.last(), Some(&Knob::Run));
    assert!(knobs.contains(&Knob::SmartScan) && knobs.contains(&Knob::UseZeroPages));
}

#[test]
fn knobs_missing_from_an_older_kernel_are_not_written() {
    let mut ksmd = Simulated::new(1e6, 0.0);
    ksmd.knobs = KsmKnobs { advisor: None, smart_scan: None, use_zero_pages: None, ..ksmd.knobs };
    let options = Options { smart_scan: Some(false), use_zero_pages: Some(true) };
    let sets = Window::new(budget(0.2, NO_RATE, 60), options).handle(&ksmd.sample(), ksmd.now());
    let knobs: Vec<Knob> = sets.iter().map(|set| set.knob).collect();
    assert_eq!(knobs, [Knob::SleepMillisecs, Knob::PagesToScan, Knob::Run]);
}

#[test]
fn the_time_ends_it_however_much_is_left() {
    let mut ksmd = Simulated::new(1e9, 1e8);
    let mut window = Window::new(budget(0.1, NO_RATE, 120), Options::default());
    let outcome = ksmd.run(&mut window);
    assert_eq!(outcome.end, End::TimeUsed);
    assert_eq!(outcome.elapsed, Duration::from_secs(120));
}

#[test]
fn the_cpu_time_ends_it_near_to_it() {
    for has_cpu in [true, false] {
        let mut ksmd = Simulated { has_cpu, ..Simulated::new(1e9, 1e8) };
        // The assumed cost per page where the kernel does not count CPU time.
        ksmd.costs = [PAGE_COST; 2];
        let budget = Budget { cpu_time: Duration::from_secs(3), ..budget(0.2, NO_RATE, 3600) };
        let outcome = ksmd.run(&mut Window::new(budget, Options::default()));
        assert_eq!(outcome.end, End::CpuTimeUsed);
        assert!((2.8..3.2).contains(&ksmd.cpu), "{} s", ksmd.cpu);
    }
}

#[test]
fn nothing_to_merge_ends_it_soon() {
    let mut ksmd = Simulated::new(0.0, 0.0);
    let mut window = Window::new(budget(0.5, NO_RATE, 3600), Options::default());
    let outcome = ksmd.run(&mut window);
    assert_eq!((outcome.end, outcome.elapsed), (End::NothingToMerge, IDLE));
}

#[test]
fn a_setting_changed_by_another_program_ends_it() {
    let mut ksmd = Simulated::new(1e9, 0.0);
    let mut window = Window::new(budget(0.5, NO_RATE, 3600), Options::default());
    let sets = window.handle(&ksmd.sample(), ksmd.now());
    ksmd.set(&sets);
    ksmd.knobs.sleep_millisecs = 10;
    let foreign = Foreign { knob: Knob::SleepMillisecs, ours: 50, found: 10 };
    assert_eq!(ksmd.run(&mut window).end, End::Foreign(foreign));
}

#[test]
fn without_a_count_of_cpu_time_the_pages_limit_it() {
    let mut ksmd = Simulated::new(1e8, 0.0);
    ksmd.has_cpu = false;
    let mut window = Window::new(budget(0.9, 5_000, 300), Options::default());
    let outcome = ksmd.run(&mut window);
    assert_eq!(outcome.cpu, None);
    let rate = outcome.pages_scanned as f64 / 300.0;
    assert!(rate > 3_500.0 && rate <= 5_000.0, "{rate}");
}

#[test]
fn without_a_count_of_cpu_time_the_share_is_reckoned_from_the_pages() {
    let mut ksmd = Simulated::new(1e8, 0.0);
    ksmd.has_cpu = false;
    ksmd.costs = [PAGE_COST, PAGE_COST];
    ksmd.run(&mut Window::new(budget(0.2, NO_RATE, 300), Options::default()));
    let share = ksmd.cpu / 300.0;
    assert!(share > 0.14 && share <= 0.2, "{share}");
}

#[test]
fn a_cancelled_window_reports_its_work_so_far() {
    let mut ksmd = Simulated::new(1e8, 0.0);
    let mut window = Window::new(budget(0.5, NO_RATE, 300), Options::default());
    let sets = window.handle(&ksmd.sample(), ksmd.now());
    ksmd.set(&sets);
    ksmd.advance(5.0);
    window.stop(End::CalledOff, &ksmd.sample(), ksmd.now());
    let outcome = *window.outcome().unwrap();
    assert_eq!((outcome.end, outcome.elapsed.as_secs()), (End::CalledOff, 5));
    assert!(outcome.pages_scanned > 0);
    assert_eq!(window.handle(&ksmd.sample(), ksmd.now()), []);
}

proptest! {
    /// Over a whole window ksmd stays within both limits, for any cost per page, and makes use of
    /// the budget.
    #[test]
    fn stays_within_the_budget_and_uses_it(
        share in 0.01_f64..0.95,
        rate in 1_000_u64..500_000,
        cost in 0.5e-6_f64..2e-5,
    ) {
        let mut ksmd = Simulated::new(1e12, 0.0);
        ksmd.costs = [cost, cost];
        let mut window = Window::new(budget(share, rate, 300), Options::default());
        let outcome = ksmd.run(&mut window);
        let used = outcome.cpu.unwrap().as_secs_f64() / 300.0 / share;
        let scan_rate = outcome.pages_scanned as f64 / 300.0 / rate as f64;
        // The first second runs on the assumed cost.
        prop_assert!(used < 1.02 && scan_rate < 1.02, "share {used}, rate {scan_rate}");
        prop_assert!(used.max(scan_rate) > 0.7, "share {used}, rate {scan_rate}");
    }

    /// Whatever the samples, every setting is one that the kernel accepts.
    #[test]
    fn any_samples_give_settings_that_knobs_allow(
        numbers in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<i64>(), any::<u32>()), 1..20),
        share in any::<f64>(),
        rate in any::<u64>(),
    ) {
        let mut window = Window::new(budget(share, rate, 3600), Options::default());
        let mut knobs = Simulated::new(0.0, 0.0).knobs;
        knobs.advisor = None;
        for (nth, (scanned, full_scans, profit_bytes, cpu)) in numbers.into_iter().enumerate() {
            let mut ksmd = Simulated::new(0.0, 0.0);
            ksmd.knobs = knobs;
            let mut sample = ksmd.sample();
            sample.ksm = Ksm {
                pages_scanned: scanned,
                full_scans,
                profit_bytes,
                cpu: Some(Duration::from_millis(u64::from(cpu))),
                ..sample.ksm
            };
            let sets = window.handle(&sample, Duration::from_secs(nth as u64));
            for set in &sets {
                prop_assert!(set.knob.allows(set.value), "{set}");
            }
            ksmd.set_blindly(&sets);
            knobs = ksmd.knobs;
        }
    }
}

impl Simulated {
    /// Sets knobs without an advisor that could refuse.
    fn set_blindly(&mut self, sets: &[Set]) {
        self.knobs.advisor = Some(Advisor::Off);
        self.set(sets);
        self.knobs.advisor = None;
    }
}
