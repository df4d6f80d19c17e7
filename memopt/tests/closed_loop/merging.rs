//! Merging and huge pages in a closed loop: a simulated ksmd that needs two scans, chunks that turn
//! hot and cold, two merge domains.

use std::collections::BTreeMap;
use std::time::Duration;

use memopt::ledger::Ledger;
use memopt::plan::{Plan, round};
use memopt::policy::{Goal, Policy};
use memopt::situation::{Backing, Chunk, Cost, Guest, Host, Ksm, Situation, Survey, Vmm};
use memopt::step::{Action, ChunkRange};
use memopt::units::GIB;
use memopt::verify::{Expectation, Outcome, Verdict};

const ROUND_S: u64 = 10;
const CHUNKS: u32 = 512;
const SURVEY_EVERY_S: u64 = 300;

/// What a chunk contains, independent of the actions on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    Rich,
    Hot,
    Unique,
}

#[derive(Clone, Copy)]
struct SimChunk {
    nature: Nature,
    is_huge: bool,
    is_mergeable: bool,
    is_merged: bool,
    /// How often its merging was turned on or off.
    turns: u32,
}

impl SimChunk {
    /// Pages saved by merging it: 300 duplicates, each with seven others.
    fn saved_pages(&self) -> i64 {
        if self.is_merged { 262 } else { 0 }
    }

    fn sample(&self, index: usize) -> Chunk {
        Chunk {
            index: u32::try_from(index).expect("few chunks"),
            present_pages: 512,
            duplicate_pages: if self.nature == Nature::Unique { 2 } else { 300 },
            written_pages: if self.nature == Nature::Hot { 200 } else { 0 },
            is_huge: self.is_huge,
            is_mergeable: self.is_mergeable,
            ..Chunk::default()
        }
    }
}

struct SimClone {
    name: String,
    domain: &'static str,
    chunks: Vec<SimChunk>,
}

impl SimClone {
    /// Three fifths of its chunks are rich in duplicates, a fifth is hot and on small pages, a
    /// fifth is unique.
    fn new(name: &str, domain: &'static str) -> Self {
        let chunk = |index: u32| {
            let nature = match index % 5 {
                0 => Nature::Hot,
                1 => Nature::Unique,
                _ => Nature::Rich,
            };
            let is_huge = nature != Nature::Hot;
            SimChunk { nature, is_huge, is_mergeable: false, is_merged: false, turns: 0 }
        };
        Self { name: name.to_owned(), domain, chunks: (0..CHUNKS).map(chunk).collect() }
    }

    fn profit(&self) -> i64 {
        let records = |chunk: &SimChunk| if chunk.is_mergeable { 512 * 64 } else { 0 };
        self.chunks.iter().map(|chunk| chunk.saved_pages() * 4096 - records(chunk)).sum()
    }

    fn sample(&self, survey: &Survey) -> Guest {
        let resident = (i64::try_from(GIB).expect("a GiB") - self.profit()).unsigned_abs();
        let is_huge = |chunk: &&SimChunk| chunk.is_huge;
        let huge = self.chunks.iter().filter(is_huge).count() as u64;
        let merged: i64 = self.chunks.iter().map(SimChunk::saved_pages).sum();
        Guest {
            name: self.name.clone(),
            vmm: Vmm::Lighter,
            pid: 1,
            memory_bytes: GIB,
            cost: Cost {
                resident_bytes: GIB,
                proportional_bytes: resident,
                huge_bytes: huge << 21,
                merged_bytes: Some(merged.unsigned_abs() * 4096),
                merge_profit_bytes: Some(self.profit()),
                swapped_bytes: 0,
            },
            backing: Backing::Anonymous,
            balloon: None,
            merge_domain: Some(self.domain.to_owned()),
            is_mergeable: self.chunks.iter().any(|chunk| chunk.is_mergeable),
            merged_instead: None,
            is_preallocated: false,
            survey: Some(survey.clone()),
            hindrance: None,
            since_boot: None,
            labels: BTreeMap::new(),
            user: None,
        }
    }

    fn change(&mut self, ranges: &[ChunkRange], change: impl Fn(&mut SimChunk)) {
        for range in ranges {
            let first = range.first as usize;
            self.chunks[first..first + range.count as usize].iter_mut().for_each(&change);
        }
    }
}

struct MergingHost {
    second: u64,
    clones: Vec<SimClone>,
    surveys: Vec<Survey>,
    surveyed: u64,
    policy: Policy,
    ledger: Ledger,
    goal: Goal,
    pages_per_s: u64,
    pages_scanned: u64,
    full_scans: u64,
    seconds_run: u64,
    pending: Vec<Expectation>,
    outcomes: Vec<Outcome>,
}

impl MergingHost {
    fn new(clones: Vec<SimClone>) -> Self {
        let mut host = Self {
            second: 0,
            clones,
            surveys: Vec::new(),
            surveyed: 0,
            policy: Policy::default(),
            ledger: Ledger::default(),
            goal: Goal::MaxDensity,
            pages_per_s: 0,
            pages_scanned: 0,
            full_scans: 0,
            seconds_run: 0,
            pending: Vec::new(),
            outcomes: Vec::new(),
        };
        host.survey();
        host
    }

    fn survey(&mut self) {
        self.surveyed = self.second;
        let sample = |clone: &SimClone| Survey {
            age: Duration::ZERO,
            sampled: 1.0,
            copies: 8.0,
            chunks: clone.chunks.iter().enumerate().map(|(at, it)| it.sample(at)).collect(),
        };
        self.surveys = self.clones.iter().map(sample).collect();
    }

    /// Simulates ksmd's scans of mergeable memory; the second scan merges.
    fn scan(&mut self) {
        if self.pages_per_s == 0 {
            return;
        }
        self.seconds_run += ROUND_S;
        let mergeable = |clone: &SimClone| clone.chunks.iter().filter(|it| it.is_mergeable).count();
        let pages = self.clones.iter().map(mergeable).sum::<usize>() as u64 * 512;
        let before = self.pages_scanned;
        self.pages_scanned += self.pages_per_s * ROUND_S;
        if pages == 0 || before / pages == self.pages_scanned / pages {
            return;
        }
        self.full_scans += 1;
        if self.full_scans.is_multiple_of(2) {
            let chunks = self.clones.iter_mut().flat_map(|clone| &mut clone.chunks);
            chunks
                .filter(|it| it.is_mergeable)
                .for_each(|it| it.is_merged = it.nature == Nature::Rich);
        }
    }

    fn sample(&self) -> Situation {
        let profit: i64 = self.clones.iter().map(SimClone::profit).sum();
        let available = 12 * GIB - 8 * GIB;
        let guests = self.clones.iter().zip(&self.surveys).map(|(clone, survey)| {
            let age = Duration::from_secs(self.second - self.surveyed);
            clone.sample(&Survey { age, ..survey.clone() })
        });
        Situation {
            unix_seconds: self.second,
            uptime: Duration::from_secs(1000 + self.second),
            host: Host {
                total_bytes: 12 * GIB,
                available_bytes: available + u64::try_from(profit).unwrap_or(0),
                swap_used_bytes: 0,
                pressure: None,
                ksm: Some(Ksm {
                    run: u8::from(self.pages_per_s > 0),
                    pages_shared: 0,
                    pages_sharing: 0,
                    pages_unshared: 0,
                    pages_volatile: 0,
                    zero_pages: 0,
                    pages_scanned: self.pages_scanned,
                    full_scans: self.full_scans,
                    profit_bytes: profit,
                    cpu: None,
                }),
                pools: Vec::new(),
                merged_domain: None,
                other_processes: Vec::new(),
            },
            guests: guests.collect(),
        }
    }

    fn round(&mut self) -> Plan {
        self.second += ROUND_S;
        self.scan();
        if self.second - self.surveyed >= SURVEY_EVERY_S {
            self.survey();
        }
        let now = self.sample();
        let pending = std::mem::take(&mut self.pending);
        let (settled, pending): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|it| it.is_settled(&now));
        self.pending = pending;
        for outcome in settled.iter().map(|it| it.check(&now)) {
            self.ledger.verified(&outcome);
            self.outcomes.push(outcome);
        }
        let plan = round(&now, &self.policy, &mut self.ledger, &self.goal);
        for step in &plan.steps {
            self.pending.push(Expectation::of(step, &now, &self.policy));
            self.act(&step.action);
            let clones = self.clones.iter().zip(&mut self.surveys);
            let own = clones.filter(|(clone, _)| step.action.guest() == Some(&clone.name));
            own.for_each(|(_, survey)| step.action.note(survey));
            self.ledger.acted(step);
        }
        self.assert_domains_apart();
        plan
    }

    fn act(&mut self, action: &Action) {
        let name = action.guest().unwrap_or_default().to_owned();
        let clone = self.clones.iter_mut().find(|clone| clone.name == name);
        let all = [ChunkRange { first: 0, count: CHUNKS }];
        match (action, clone) {
            (Action::Merge { chunks, .. }, Some(clone)) => clone.change(chunks, |it| {
                (it.is_mergeable, it.is_huge, it.turns) = (true, false, it.turns + 1);
            }),
            (Action::Unmerge { chunks, .. }, Some(clone)) => {
                clone.change(chunks.as_deref().unwrap_or(&all), |it| {
                    it.turns += u32::from(it.is_mergeable);
                    (it.is_mergeable, it.is_merged) = (false, false);
                });
            }
            (Action::MakeHuge { chunks, .. }, Some(clone)) => {
                clone.change(chunks, |it| it.is_huge = true);
            }
            (Action::DriveKsm { pages_per_s, .. }, _) => self.pages_per_s = *pages_per_s,
            (Action::StopKsm { .. }, _) => self.pages_per_s = 0,
            (other, _) => panic!("nothing else can be done here: {other}"),
        }
    }

    /// The kernel must never be able to merge guests of two domains.
    fn assert_domains_apart(&self) {
        let is_mergeable = |clone: &&SimClone| clone.chunks.iter().any(|it| it.is_mergeable);
        let mut domains: Vec<&str> =
            self.clones.iter().filter(is_mergeable).map(|clone| clone.domain).collect();
        domains.dedup();
        assert!(domains.len() <= 1, "second {}: {domains:?}", self.second);
    }

    fn run(&mut self, minutes: u64) -> usize {
        (0..minutes * 60 / ROUND_S).map(|_| self.round().steps.len()).sum()
    }

    /// The share of the chunks of this nature, in this domain, for which `holds` is true.
    fn share(&self, domain: &str, nature: Nature, holds: impl Fn(&SimChunk) -> bool) -> f64 {
        let clones = self.clones.iter().filter(|clone| clone.domain == domain);
        let chunks = clones.flat_map(|clone| &clone.chunks).filter(|it| it.nature == nature);
        let (mut all, mut found) = (0, 0);
        for chunk in chunks {
            all += 1;
            found += u32::from(holds(chunk));
        }
        f64::from(found) / f64::from(all)
    }
}

fn host() -> MergingHost {
    let clones = ["red-1", "red-2", "red-3"].map(|name| SimClone::new(name, "red"));
    let others = ["blue-1", "blue-2"].map(|name| SimClone::new(name, "blue"));
    MergingHost::new(clones.into_iter().chain(others).collect())
}

#[test]
fn cold_duplicates_are_merged_hot_chunks_huge_and_the_rest_left_alone() {
    let mut host = host();
    host.run(60);
    assert!(host.share("red", Nature::Rich, |it| it.is_merged) > 0.99);
    assert!(host.share("red", Nature::Hot, |it| it.is_huge) > 0.99);
    assert!(host.share("red", Nature::Unique, |it| it.is_huge) > 0.99);
    assert!(host.share("blue", Nature::Rich, |it| it.is_huge) > 0.99, "another domain");
    assert!(host.share("blue", Nature::Hot, |it| it.is_huge) > 0.99);
    // The window ended automatically, long before its time was over.
    assert_eq!(host.pages_per_s, 0);
    assert!(host.seconds_run <= 600, "{}", host.seconds_run);
    let merges = host.outcomes.iter().filter(|it| matches!(it.action, Action::Merge { .. }));
    let (mut count, mut returned) = (0, 0);
    for outcome in merges {
        assert_eq!(outcome.verdict, Verdict::Delivered, "{outcome}");
        (count, returned) = (count + 1, returned + outcome.returned_bytes);
    }
    let profit: i64 = host.clones.iter().map(SimClone::profit).sum();
    assert_eq!((count, returned), (3, profit));
    // Later windows check whether there is more to merge; nothing else is done.
    assert!(host.run(180) <= 8);
}

#[test]
fn chunks_that_turn_are_turned_once() {
    let mut host = host();
    host.run(60);
    let (from, to) = (Nature::Rich, Nature::Hot);
    for clone in host.clones.iter_mut().filter(|clone| clone.domain == "red") {
        let rich = clone.chunks.iter_mut().filter(|it| it.nature == from).take(100);
        rich.for_each(|it| it.nature = to);
    }
    host.run(240);
    assert!(host.share("red", Nature::Hot, |it| it.is_huge && !it.is_mergeable) > 0.99);
    assert!(host.share("red", Nature::Rich, |it| it.is_merged) > 0.99);
    let turns = host.clones.iter().flat_map(|clone| &clone.chunks).map(|it| it.turns).max();
    assert_eq!(turns, Some(2), "in and out again");
}

#[test]
fn the_domains_take_turns_only_when_it_pays() {
    let mut host = host();
    host.run(120);
    // Half of the red guests' chunks become unique. Blue now has more to gain, but slightly more is
    // not enough.
    let make_unique = |host: &mut MergingHost, count: usize| {
        for clone in host.clones.iter_mut().filter(|clone| clone.domain == "red") {
            let rich = clone.chunks.iter_mut().filter(|it| it.nature == Nature::Rich).take(count);
            rich.for_each(|it| (it.nature, it.is_merged) = (Nature::Unique, false));
        }
    };
    make_unique(&mut host, 130);
    host.run(120);
    assert!(host.share("red", Nature::Rich, |it| it.is_merged) > 0.99, "red stays");
    make_unique(&mut host, 130);
    host.run(120);
    assert!(host.share("red", Nature::Rich, |it| it.is_mergeable) < 0.01);
    assert!(host.share("blue", Nature::Rich, |it| it.is_merged) > 0.99);
}
