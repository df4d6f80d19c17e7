//! Measures what many processes cost, without walking all their page tables in each round.
//!
//! PSS is the true cost of a guest, but expensive: the kernel walks every mapped page for it. RSS,
//! pool pages, swap and merged pages are cheap counters. So each round reads the counters of every
//! process, and measures PSS for as many as fit a time budget: first those that were never
//! measured, then those not measured for 5 minutes, then those whose counters have moved most, then
//! the oldest. Between two measurements, PSS is assumed to have moved with RSS, minus half of what
//! was merged since: a page merged with one other page is charged by half. The next measurement
//! removes the error; code that verifies the gain of an action uses [`Meter::exact`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::cost::process_cost_in;
use super::process::{Cheap, exact_cost};
use super::{ObserveError, Sources};
use crate::situation::Cost;

/// The assumed time to walk page tables before the first measurement, in nanoseconds per MiB: 4 KiB
/// pages on a slow host.
const NANOSECONDS_PER_MIB: u64 = 10_000;

/// A process not measured for this long goes before all that have moved more.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Measures processes within a time budget.
#[derive(Debug)]
pub struct Meter {
    budget: Duration,
    known: BTreeMap<u32, Known>,
}

/// The last exact measurement of a process.
#[derive(Debug, Clone, Copy)]
struct Known {
    cost: Cost,
    /// The counters at the time of the measurement.
    then: Cheap,
    /// The time of the measurement, on the caller's clock.
    at: Duration,
    took: Duration,
}

/// What a process costs, and how old the measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// The cost. Before the first exact measurement, PSS is set to RSS, which it never exceeds.
    pub cost: Cost,
    /// Time since PSS was measured; absent if it never was. All other values are current, except
    /// huge pages.
    pub exact_age: Option<Duration>,
}

/// A process whose PSS may be measured in this round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// Its index in the list of processes.
    index: usize,
    is_known: bool,
    /// How far its counters have moved since the last measurement.
    drift_bytes: u64,
    age: Duration,
    expected: Duration,
}

impl Meter {
    /// Creates a meter that spends about `budget` on exact measurements in each round, and makes at
    /// least one.
    #[must_use]
    pub const fn new(budget: Duration) -> Self {
        Self { budget, known: BTreeMap::new() }
    }

    /// Returns what each of `pids` costs, in the same order. Forgets all other processes. `now` is
    /// the time on any monotonic clock.
    pub fn round(
        &mut self,
        sources: &Sources,
        pids: &[u32],
        now: Duration,
    ) -> Vec<Result<Metered, ObserveError>> {
        let mut known = std::mem::take(&mut self.known);
        let cheap: Vec<_> = pids.iter().map(|pid| Cheap::read(sources, *pid)).collect();
        for (pid, cheap) in pids.iter().zip(&cheap) {
            let Ok(cheap) = cheap else { continue };
            if let Some(known) = known.remove(pid)
                && known.then.started == cheap.started
            {
                self.known.insert(*pid, known);
            }
        }
        let candidates = self.candidates(pids, &cheap, now);
        let mut spent = Duration::ZERO;
        for (nth, candidate) in candidates.iter().enumerate() {
            if nth > 0 && spent + candidate.expected > self.budget {
                continue;
            }
            let began = Instant::now();
            if let Ok(cheap) = &cheap[candidate.index] {
                // A process that has ended in the meantime is reported as gone in the next round.
                let _ = self.measure(sources, pids[candidate.index], *cheap, now);
            }
            spent += began.elapsed();
        }
        let results = pids.iter().zip(cheap);
        results.map(|(pid, cheap)| cheap.map(|cheap| self.estimate(*pid, &cheap, now))).collect()
    }

    /// Estimates what each of `pids` costs from their counters alone; measures and forgets nothing.
    ///
    /// For samples too frequent to walk page tables.
    pub fn estimates(
        &self,
        sources: &Sources,
        pids: &[u32],
        now: Duration,
    ) -> Vec<Result<Metered, ObserveError>> {
        let estimate_one = |pid: &u32| Ok(self.estimate(*pid, &Cheap::read(sources, *pid)?, now));
        pids.iter().map(estimate_one).collect()
    }

    /// Measures what `pid` costs now, to verify the gain of an action.
    ///
    /// # Errors
    /// [`ObserveError::Gone`] if the process has ended, [`ObserveError::Forbidden`] for a process
    /// of another user.
    pub fn exact(
        &mut self,
        sources: &Sources,
        pid: u32,
        now: Duration,
    ) -> Result<Cost, ObserveError> {
        let cheap = Cheap::read(sources, pid)?;
        self.measure(sources, pid, cheap, now)
    }

    fn measure(
        &mut self,
        sources: &Sources,
        pid: u32,
        then: Cheap,
        at: Duration,
    ) -> Result<Cost, ObserveError> {
        let began = Instant::now();
        let cost = exact_cost(&process_cost_in(sources, pid)?, then.merged);
        self.known.insert(pid, Known { cost, then, at, took: began.elapsed() });
        Ok(cost)
    }

    /// Returns the processes that have memory, the most urgent first.
    fn candidates(
        &self,
        pids: &[u32],
        cheap: &[Result<Cheap, ObserveError>],
        now: Duration,
    ) -> Vec<Candidate> {
        let readable = pids.iter().zip(cheap).enumerate();
        let readable = readable.filter_map(|(index, (pid, cheap))| {
            let cheap = cheap.as_ref().ok()?;
            let known = self.known.get(pid);
            Some(Candidate {
                index,
                is_known: known.is_some(),
                drift_bytes: known.map_or(u64::MAX, |known| drift(&known.then, cheap)),
                age: known.map_or(Duration::MAX, |known| now.saturating_sub(known.at)),
                expected: expected(known, cheap),
            })
        });
        let mut candidates: Vec<_> = readable.collect();
        urgent_first(&mut candidates);
        candidates
    }

    fn estimate(&self, pid: u32, cheap: &Cheap, now: Duration) -> Metered {
        let merged = cheap.merged;
        let mut cost = Cost {
            resident_bytes: cheap.resident_bytes,
            proportional_bytes: cheap.occupied_bytes(),
            huge_bytes: 0,
            merged_bytes: merged.map(|merged| merged.bytes()),
            merge_profit_bytes: merged.map(|merged| merged.profit_bytes),
            swapped_bytes: cheap.swapped_bytes,
        };
        let known = self.known.get(&pid).filter(|known| known.then.started == cheap.started);
        let Some(known) = known else { return Metered { cost, exact_age: None } };
        cost.proportional_bytes = moved(known, cheap);
        cost.huge_bytes = known.cost.huge_bytes.min(cheap.resident_bytes);
        Metered { cost, exact_age: Some(now.saturating_sub(known.at)) }
    }
}

/// Estimates PSS: the measured value, adjusted by the counters' changes since then.
fn moved(known: &Known, now: &Cheap) -> u64 {
    let merged = |cheap: &Cheap| cheap.merged.map_or(0, |merged| merged.bytes());
    let then = &known.then;
    let grown = now.occupied_bytes().saturating_sub(then.occupied_bytes());
    let unmerged = merged(then).saturating_sub(merged(now)) / 2;
    let shrunk = then.occupied_bytes().saturating_sub(now.occupied_bytes());
    let newly_merged = merged(now).saturating_sub(merged(then)) / 2;
    let more = known.cost.proportional_bytes.saturating_add(grown).saturating_add(unmerged);
    more.saturating_sub(shrunk).saturating_sub(newly_merged).min(now.occupied_bytes())
}

fn drift(then: &Cheap, now: &Cheap) -> u64 {
    let merged = |cheap: &Cheap| cheap.merged.map_or(0, |merged| merged.bytes());
    let resident = then.occupied_bytes().abs_diff(now.occupied_bytes());
    resident.saturating_add(merged(then).abs_diff(merged(now)))
}

/// Estimates how long measuring a process will take: its last time, scaled with its growth, or
/// [`NANOSECONDS_PER_MIB`] if it was never measured.
fn expected(known: Option<&Known>, now: &Cheap) -> Duration {
    let mebibytes = now.resident_bytes >> 20;
    let Some(known) = known else {
        return Duration::from_nanos(mebibytes.saturating_mul(NANOSECONDS_PER_MIB));
    };
    let growth = now.resident_bytes as f64 / known.then.resident_bytes.max(1) as f64;
    known.took.mul_f64(growth.clamp(0.1, 100.0))
}

/// Sorts by urgency: processes never measured, then those that waited too long, then those that
/// moved by 32 MiB or more (by powers of two), then the oldest.
fn urgent_first(candidates: &mut [Candidate]) {
    // Movements below 32 MiB are noise: they count the same, and age decides.
    let step = |candidate: &Candidate| candidate.drift_bytes.checked_ilog2().unwrap_or(0).max(24);
    candidates.sort_by_key(|candidate| {
        let urgency = (candidate.age >= AGE_MAX, step(candidate), candidate.age);
        (candidate.is_known, std::cmp::Reverse(urgency), candidate.index)
    });
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn candidate(index: usize, drift_bytes: u64, seconds: u64) -> Candidate {
        let (age, expected) = (Duration::from_secs(seconds), Duration::from_millis(10));
        Candidate { index, is_known: true, drift_bytes, age, expected }
    }

    #[test]
    fn the_unknown_come_first_then_what_moved_then_the_oldest() {
        let unknown = Candidate { is_known: false, ..candidate(3, u64::MAX, 0) };
        let mut all = [
            candidate(0, 4096, 60),
            candidate(1, 1 << 20, 30),
            candidate(2, 1 << 30, 1),
            unknown,
            candidate(4, 0, 300),
        ];
        urgent_first(&mut all);
        assert_eq!(all.map(|candidate| candidate.index), [3, 4, 2, 0, 1]);
    }

    /// A process with `kib` of memory, half of it shared with one other process.
    fn process(root: &Path, pid: u32, kib: u64, started: u64) {
        let folder = root.join(format!("proc/{pid}"));
        fs::create_dir_all(&folder).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(folder.join("stat"), format!("{pid} (qemu) S {zeros}{started} 0\n")).unwrap();
        fs::write(folder.join("status"), format!("Name:\tqemu\nVmRSS:\t{kib} kB\nVmSwap:\t8 kB\n"))
            .unwrap();
        let pss = kib * 3 / 4;
        let rollup = format!(
            "Rss: {kib} kB\nPss: {pss} kB\nAnonymous: 0 kB\nAnonHugePages: 4 kB\nSwap: 8 kB\n"
        );
        fs::write(folder.join("smaps_rollup"), rollup).unwrap();
    }

    fn costs(round: Vec<Result<Metered, ObserveError>>) -> Vec<(u64, Option<u64>)> {
        let results = round.into_iter().map(|metered| metered.unwrap());
        results
            .map(|metered| {
                (metered.cost.proportional_bytes >> 10, metered.exact_age.map(|age| age.as_secs()))
            })
            .collect()
    }

    #[test]
    fn all_are_measured_in_turn_and_estimated_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::at(folder.path());
        process(folder.path(), 10, 1000, 7);
        process(folder.path(), 11, 4000, 7);
        // No time budget: one measurement per round.
        let mut meter = Meter::new(Duration::ZERO);
        let at = Duration::from_secs;
        let first = costs(meter.round(&sources, &[10, 11], at(100)));
        assert_eq!(first, [(750, Some(0)), (4000, None)]);
        let second = costs(meter.round(&sources, &[10, 11], at(110)));
        assert_eq!(second, [(750, Some(10)), (3000, Some(0))]);

        process(folder.path(), 11, 4100, 7);
        assert_eq!(meter.exact(&sources, 10, at(111)).unwrap().proportional_bytes >> 10, 750);
        process(folder.path(), 10, 1200, 7);
        let third = costs(meter.round(&sources, &[10, 11], at(112)));
        assert_eq!(third, [(950, Some(1)), (3075, Some(0))], "the oldest was measured");
    }

    #[test]
    fn estimates_measure_nothing_and_keep_every_guest() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::at(folder.path());
        process(folder.path(), 10, 1000, 7);
        process(folder.path(), 11, 4000, 7);
        let mut meter = Meter::new(Duration::from_secs(10));
        let at = Duration::from_secs;
        meter.round(&sources, &[10, 11], at(100));
        process(folder.path(), 11, 4100, 7);
        assert_eq!(costs(meter.estimates(&sources, &[11], at(105))), [(3100, Some(5))]);
        assert_eq!(costs(meter.estimates(&sources, &[10], at(106))), [(750, Some(6))]);
        process(folder.path(), 10, 2000, 8);
        assert_eq!(costs(meter.estimates(&sources, &[10], at(107))), [(2000, None)], "another one");
    }

    #[test]
    fn a_later_process_of_the_same_number_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::at(folder.path());
        process(folder.path(), 10, 1000, 7);
        process(folder.path(), 11, 1000, 7);
        let mut meter = Meter::new(Duration::from_secs(10));
        meter.round(&sources, &[10, 11], Duration::ZERO);
        process(folder.path(), 10, 2000, 8);
        fs::remove_dir_all(folder.path().join("proc/11")).unwrap();
        meter.budget = Duration::ZERO;
        let round = meter.round(&sources, &[10, 11], Duration::from_secs(1));
        assert_eq!(round[0].as_ref().unwrap().exact_age, Some(Duration::ZERO));
        assert!(matches!(round[1], Err(ObserveError::Gone { pid: 11 })));
        assert_eq!(meter.known.len(), 1);
    }
}
