//! Decides for how much of the time each vCPU of a throttled guest rests: those that write, and
//! those that write most, before others.
//!
//! A vCPU's writes are estimated from its page faults (see [`super::faults`]). What each may write
//! is the same for all, so the rest of a vCPU changes gradually with its part of the writes: noise
//! does not switch it on and off. Disks have a limit of their own
//! ([`crate::DiskContent::limit_writes`]).

/// Most of the time that a vCPU may rest, in percent. At 100 the guest would be paused.
pub(super) const PERCENT_MAX: u8 = 99;

/// Faults for each vCPU of the guest, on average, that make a sample: fewer are mostly chance.
const FAULTS_PER_VCPU_MIN: u64 = 32;
/// Faults count writes if there is one for each of so many pages that the log was armed for again.
/// About one for each page is expected, less those that the devices of this process wrote.
const REARMED_PER_FAULT_MAX: u64 = 8;

/// How much a guest is slowed down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Number of vCPUs that rest for a share of the time.
    pub vcpus: u8,
    /// The largest share of the time that one of them rests, in percent.
    pub percent: u8,
}

impl Throttled {
    /// Sums up for how much of the time each vCPU rests.
    pub(super) fn of(rests: &[u8]) -> Self {
        let vcpus = rests.iter().filter(|percent| **percent > 0).count();
        let percent = rests.iter().copied().max().unwrap_or(0);
        Self { vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX), percent }
    }
}

/// What has been counted until some time.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Faults of each vCPU.
    pub(super) faults: Vec<u64>,
    /// Pages that had been written and whose next write the log was armed for.
    pub(super) rearmed: u64,
}

impl Sample {
    /// Returns what has been counted since `earlier`.
    fn since(&self, earlier: &Self) -> Self {
        let both = self.faults.iter().zip(&earlier.faults);
        Self {
            faults: both.map(|(now, earlier)| now.saturating_sub(*earlier)).collect(),
            rearmed: self.rearmed.saturating_sub(earlier.rearmed),
        }
    }

    fn all_faults(&self) -> u64 {
        self.faults.iter().fold(0, |sum, faults| sum.saturating_add(*faults))
    }
}

/// The part that each vCPU has in the guest's writes.
#[derive(Debug)]
pub(super) struct Writers {
    first: Sample,
    /// The last one that changed `parts`.
    last: Sample,
    /// Whether faults count writes on this host.
    are_counted: bool,
    /// What each vCPU would write if none rested, as a part of all; known after the first sample.
    parts: Option<Vec<f64>>,
}

impl Writers {
    /// Begins with the counts at the start of the throttle.
    pub(super) fn new(first: Sample) -> Self {
        Self { last: first.clone(), first, are_counted: false, parts: None }
    }

    /// Learns from what has been counted by now, in a guest that was slowed down by `percent`.
    pub(super) fn learn(&mut self, sample: Sample, percent: u8) {
        let (rests, new) = (self.rests(percent), sample.since(&self.last));
        let all = sample.since(&self.first);
        self.are_counted = all.rearmed / REARMED_PER_FAULT_MAX <= all.all_faults();
        if new.all_faults() < FAULTS_PER_VCPU_MIN * new.faults.len() as u64 {
            return;
        }
        let at_full_speed = |(faults, rest): (&u64, &u8)| {
            *faults as f64 * 100.0 / f64::from(100 - (*rest).min(PERCENT_MAX))
        };
        let writes: Vec<f64> = new.faults.iter().zip(&rests).map(at_full_speed).collect();
        let sum: f64 = writes.iter().sum();
        let parts = writes.iter().map(|writes| writes / sum);
        self.parts = Some(match &self.parts {
            None => parts.collect(),
            Some(before) => parts.zip(before).map(|(part, before)| (part + before) / 2.0).collect(),
        });
        self.last = sample;
    }

    /// Returns for how much of the time each vCPU rests, in percent, such that the guest writes
    /// less by `percent`. All rest alike as long as it is not known which of them write.
    pub(super) fn rests(&self, percent: u8) -> Vec<u8> {
        let percent = percent.min(PERCENT_MAX);
        match &self.parts {
            Some(parts) if self.are_counted => {
                let most = most_of_each(parts, f64::from(100 - percent) / 100.0);
                parts.iter().map(|part| rest(*part, most)).collect()
            }
            _ => evenly(self.first.faults.len(), percent),
        }
    }
}

/// Has all `vcpus` rest for `percent` of the time.
pub(super) fn evenly(vcpus: usize, percent: u8) -> Vec<u8> {
    vec![percent.min(PERCENT_MAX); vcpus]
}

/// Returns the most that each vCPU may write so that all together write `allowed`, if each would
/// write its part of 1: those with a smaller part leave what they do not need to the others.
fn most_of_each(parts: &[f64], allowed: f64) -> f64 {
    let mut ascending = parts.to_vec();
    ascending.sort_by(f64::total_cmp);
    let (mut left, mut others) = (allowed, ascending.len());
    for part in ascending {
        let each = left / others as f64;
        if part >= each {
            return each;
        }
        left -= part;
        others -= 1;
    }
    f64::INFINITY
}

/// Returns how much a vCPU rests, in percent, so that it writes no more than `most`.
fn rest(part: f64, most: f64) -> u8 {
    if part <= most {
        return 0;
    }
    (100.0 * (1.0 - most / part)).round().clamp(0.0, f64::from(PERCENT_MAX)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest whose vCPUs write so many pages between two samples at full speed, each of which
    /// faults once and is armed again.
    struct Guest {
        writes: Vec<u64>,
        counted: Sample,
        writers: Writers,
    }

    impl Guest {
        fn new(writes: &[u64]) -> Self {
            let counted = Sample { faults: vec![7; writes.len()], rearmed: 1000 };
            let writers = Writers::new(counted.clone());
            Self { writes: writes.to_vec(), writers, counted }
        }

        /// Lets it run until the next sample, throttled by `percent`; returns the new rests.
        fn run(&mut self, percent: u8) -> Vec<u8> {
            let rests = self.writers.rests(percent);
            for ((faults, writes), rest) in
                self.counted.faults.iter_mut().zip(&self.writes).zip(rests)
            {
                let written = writes * u64::from(100 - rest) / 100;
                *faults += written;
                self.counted.rearmed += written;
            }
            self.writers.learn(self.counted.clone(), percent);
            self.writers.rests(percent)
        }
    }

    #[test]
    fn only_the_vcpu_that_writes_rests() {
        let mut guest = Guest::new(&[0, 10_000, 0, 3]);
        assert_eq!(guest.writers.rests(75), [75; 4], "nothing is known yet");
        assert_eq!(guest.run(75), [0, 75, 0, 0]);
        assert_eq!(guest.run(94), [0, 94, 0, 0]);
        assert_eq!(guest.run(99), [0, 99, 0, 0]);
        assert_eq!(guest.run(0), [0; 4]);
    }

    #[test]
    fn vcpus_that_write_alike_rest_alike() {
        let mut guest = Guest::new(&[5000; 4]);
        for percent in [20, 75, 99] {
            assert_eq!(guest.run(percent), [percent; 4]);
        }
    }

    #[test]
    fn those_that_write_most_rest_first_and_as_many_pages_are_saved() {
        let mut guest = Guest::new(&[10_000, 1000, 5000]);
        assert_eq!(guest.run(30), [48, 0, 0], "5,200 of the 11,200 pages that are left");
        assert_eq!(guest.run(75), [85, 0, 70], "1,500 for each of these two");
        assert_eq!(guest.run(99), [99, 95, 99], "some 50 for each, within the bound");
    }

    #[test]
    fn a_vcpu_that_rests_still_counts_as_one_that_writes() {
        let mut guest = Guest::new(&[10_000, 1000]);
        let rests = guest.run(94);
        for _ in 0..20 {
            assert_eq!(guest.run(94), rests);
        }
    }

    #[test]
    fn noise_changes_rests_a_little_and_other_writers_are_found() {
        let mut guest = Guest::new(&[10_000, 40]);
        guest.run(75);
        for noise in [0, 200, 0, 100, 150, 0] {
            guest.writes[1] = noise;
            let rests = guest.run(75);
            assert!(rests[0].abs_diff(75) <= 2 && rests[1] == 0, "{rests:?}");
        }
        guest.writes = vec![0, 10_000];
        for _ in 0..8 {
            guest.run(75);
        }
        assert_eq!(guest.run(75), [0, 75]);
    }

    #[test]
    fn a_few_faults_decide_nothing_until_there_are_more() {
        let mut guest = Guest::new(&[40, 0]);
        assert_eq!(guest.run(50), [50; 2]);
        for _ in 0..2 {
            guest.run(50);
        }
        assert_eq!(guest.run(50), [50, 0]);
    }

    #[test]
    fn all_rest_alike_where_writes_do_not_fault() {
        let mut guest = Guest::new(&[1000, 0]);
        guest.counted.rearmed += 100_000;
        assert_eq!(guest.run(75), [75; 2]);
        assert_eq!(guest.run(75), [75; 2]);
    }

    #[test]
    fn counts_that_make_no_sense_do_no_harm() {
        let sample = |faults, counted| Sample { faults, rearmed: counted };
        let mut writers = Writers::new(sample(vec![5, u64::MAX], u64::MAX));
        writers.learn(sample(vec![u64::MAX, 0], 0), 255);
        assert_eq!(writers.rests(255), [PERCENT_MAX, 0]);
        assert_eq!(evenly(2, 255), [PERCENT_MAX; 2]);
    }

    #[test]
    fn a_throttle_is_summed_up_by_the_vcpus_that_rest() {
        assert_eq!(Throttled::of(&[0, 80, 0, 20]), Throttled { vcpus: 2, percent: 80 });
        assert_eq!(Throttled::of(&[0, 0]), Throttled::default());
    }
}
