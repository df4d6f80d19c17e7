//! Parameters of the workload guest.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::WorkloadError;
use super::abi::PAGE_BYTES;

const RATE_MAX: u64 = 10_000_000;
const READ_RATE_MAX: u64 = 1_000_000_000;

/// Content with which memory is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Incompressible content in every page.
    Random,
    /// Zero pages; rewrites alternate between random content and zero.
    Zero,
    /// Compressible text in every page.
    Text,
    /// A mix of all three; pages beyond the two shares are zero.
    Mixed {
        /// Share of incompressible pages, percent.
        random_percent: u8,
        /// Share of compressible pages, percent.
        text_percent: u8,
    },
}

impl Pattern {
    /// Half random, a quarter text, a quarter zero.
    pub const MIXED: Self = Self::Mixed { random_percent: 50, text_percent: 25 };

    /// Returns the same mix of content, but with `zero_percent` of the pages zero.
    #[must_use]
    pub fn with_zeros(self, zero_percent: u8) -> Self {
        let filled = 100_u64.saturating_sub(zero_percent.into());
        let (random, text) = self.shares();
        let of_all = |share: u64| (filled * share).checked_div(random + text).unwrap_or(0) as u8;
        let text_percent = of_all(text);
        // The remainder of the rounding is random content, unless there is neither random nor text.
        let random_percent = if random + text == 0 { 0 } else { filled as u8 - text_percent };
        Self::Mixed { random_percent, text_percent }
    }

    /// Returns the shares of random and text pages, percent.
    pub(super) fn shares(self) -> (u64, u64) {
        match self {
            Self::Random => (100, 0),
            Self::Zero => (0, 0),
            Self::Text => (0, 100),
            Self::Mixed { random_percent, text_percent } => {
                (random_percent.into(), text_percent.into())
            }
        }
    }
}

/// The order in which pages of the working set are rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// In ascending order, repeatedly.
    #[default]
    Sequential = 0,
    /// Uniformly at random.
    Random = 1,
    /// Nine of ten writes go to a tenth of the pages.
    Hot = 2,
}

/// Parameters of the workload guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadParams {
    /// Memory that is filled and checked; `None` uses all that the guest has.
    pub memory_bytes: Option<u64>,
    /// The part of it that is rewritten, limited to all of it.
    pub working_set_bytes: u64,
    /// Pages rewritten per second, all vCPUs together; with 0 the guest only spins.
    pub dirty_rate_pages_per_second: u64,
    /// Content of the pages.
    pub pattern: Pattern,
    /// Order of rewriting.
    pub order: Order,
    /// Share of rewrites that clear a page, percent.
    pub zeroing_percent: u8,
    /// Pages per second that are checked in the background, all vCPUs together.
    pub sweep_pages_per_second: u64,
    /// Pages per second of which one word is read, anywhere in memory, all vCPUs together.
    pub read_pages_per_second: u64,
    /// Share of pages whose first content is the same in all guests with the same `seed`, percent,
    /// as in clones of one image. Zero pages do not count among them. All other content is the
    /// guest's own, including whatever is rewritten.
    pub image_percent: u8,
    /// Length of a run of pages of one kind (zero, the image's, own), at least 1.
    pub run_pages: u64,
    /// Pages of a piece, if the pieces are to be in an order specific to the guest
    /// ([`super::stamp::Shuffle`]); 0 for no pieces.
    pub piece_pages: u64,
    /// Seed of the image.
    pub seed: u64,
    /// Seed of the guest's own content.
    pub own_seed: u64,
}

impl Default for WorkloadParams {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            working_set_bytes: 64 << 20,
            dirty_rate_pages_per_second: 2_000,
            pattern: Pattern::MIXED,
            order: Order::default(),
            zeroing_percent: 1,
            sweep_pages_per_second: 10_000,
            read_pages_per_second: 0,
            image_percent: 100,
            run_pages: 1,
            piece_pages: 0,
            seed: 1,
            own_seed: 1,
        }
    }
}

impl WorkloadParams {
    /// Checks every field against its range, except for limits that depend on the guest's memory.
    ///
    /// # Errors
    /// [`WorkloadError::Parameter`] names the field and the accepted values.
    pub fn validate(&self) -> Result<(), WorkloadError> {
        let (random, text) = self.pattern.shares();
        let rate = self.dirty_rate_pages_per_second;
        let sweep = self.sweep_pages_per_second;
        let memory = self.memory_bytes.unwrap_or(PAGE_BYTES);
        let percent = "at most 100 percent";
        let per_second = "at most 10000000 pages per second";
        check("pattern", random + text, 0..=100, percent)?;
        check("image_percent", self.image_percent.into(), 0..=100, percent)?;
        check("run_pages", self.run_pages, 1..=u64::MAX, "at least one page")?;
        check("zeroing_percent", self.zeroing_percent.into(), 0..=100, percent)?;
        check("dirty_rate_pages_per_second", rate, 0..=RATE_MAX, per_second)?;
        let read = self.read_pages_per_second;
        let reads = "at most 1000000000 pages per second";
        check("read_pages_per_second", read, 0..=READ_RATE_MAX, reads)?;
        check("sweep_pages_per_second", sweep, 0..=RATE_MAX, per_second)?;
        check("memory_bytes", memory, PAGE_BYTES..=u64::MAX, "at least one page of 4096 bytes")
    }
}

/// Refuses `value` for the parameter `name` unless it lies in `range`, which `allowed` describes.
pub(super) fn check(
    name: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<(), WorkloadError> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(WorkloadError::Parameter { name, value, allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_parameters_are_valid() {
        WorkloadParams::default().validate().unwrap();
    }

    #[test]
    fn the_share_of_zeros_does_not_change_the_rest() {
        let shares = |pattern: Pattern, zeros| pattern.with_zeros(zeros).shares();
        assert_eq!(shares(Pattern::MIXED, 10), (60, 30));
        assert_eq!(shares(Pattern::MIXED, 25), Pattern::MIXED.shares());
        assert_eq!(shares(Pattern::Random, 40), (60, 0));
        assert_eq!(shares(Pattern::Text, 40), (0, 60));
        assert_eq!(shares(Pattern::Zero, 40), (0, 0), "there is nothing else");
    }

    #[test]
    fn refuses_shares_above_100_percent() {
        let pattern = Pattern::Mixed { random_percent: 60, text_percent: 60 };
        let refused = WorkloadParams { pattern, ..Default::default() }.validate().unwrap_err();
        assert_eq!(refused.to_string(), "workload parameter pattern is 120: at most 100 percent");
    }

    #[test]
    fn refuses_runs_of_nothing() {
        let refused = WorkloadParams { run_pages: 0, ..Default::default() }.validate().unwrap_err();
        assert_eq!(refused.to_string(), "workload parameter run_pages is 0: at least one page");
    }

    #[test]
    fn refuses_a_rate_that_no_vcpu_reaches() {
        let params = WorkloadParams { dirty_rate_pages_per_second: u64::MAX, ..Default::default() };
        assert!(params.validate().is_err());
    }
}
