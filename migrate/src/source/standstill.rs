//! Times the steps of the hand-over, for the report and for the error if it takes too long.

use std::time::Duration;

use crate::report;

/// A step of the hand-over, from the request to pause the guest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Pause,
    Flush,
    Save,
    Send,
    Ready,
    Record,
    Takeover,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::Pause,
        Self::Flush,
        Self::Save,
        Self::Send,
        Self::Ready,
        Self::Record,
        Self::Takeover,
    ];

    /// Describes an unfinished step, for the error.
    const fn under_way(self) -> &'static str {
        match self {
            Self::Pause => "the guest was still being paused",
            Self::Flush => "its disks were still being flushed",
            Self::Save => "its state was still being saved",
            Self::Send => "its last pages were still being sent",
            Self::Ready => "the destination had not said that it is ready",
            Self::Record => "the decision was still being recorded",
            Self::Takeover => "the destination had not said that it has taken it over",
        }
    }
}

/// The time that each step has taken, and since when it is under way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standstill {
    /// How long a guest that ran may be paused, and when that is over.
    allowed: Option<(Duration, Duration)>,
    steps: [(Duration, Option<Duration>); Step::ALL.len()],
}

impl Standstill {
    /// Begins a pause of a guest that ran, for at most `allowed`. Steps of an earlier pause that
    /// was called off do not count, though its flush may still hang.
    pub(super) fn allow(&mut self, allowed: Duration, now: Duration) {
        *self = Self { allowed: Some((allowed, now.saturating_add(allowed))), ..Self::default() };
    }

    /// Returns the longest pause; none while there is no deadline.
    pub(super) fn allowed(&self) -> Option<Duration> {
        self.allowed.map(|(allowed, _)| allowed)
    }

    /// Returns when the guest has been paused for too long; none while there is no deadline.
    pub(super) fn until(&self) -> Option<Duration> {
        self.allowed.map(|(_, until)| until)
    }

    /// Removes the deadline; returns whether there was one.
    pub(super) fn stop_clock(&mut self) -> bool {
        self.allowed.take().is_some()
    }

    pub(super) fn begin(&mut self, step: Step, now: Duration) {
        self.steps[step as usize].1.get_or_insert(now);
    }

    /// Ends a step; does nothing if it is not under way.
    pub(super) fn end(&mut self, step: Step, now: Duration) {
        let (took, since) = &mut self.steps[step as usize];
        if let Some(since) = since.take() {
            *took = took.saturating_add(now.saturating_sub(since));
        }
    }

    /// Returns the steps that the guest is waiting for.
    pub(super) fn why(&self) -> String {
        let is_under_way = |step: &Step| self.steps[*step as usize].1.is_some();
        let waits: Vec<_> =
            Step::ALL.into_iter().filter(is_under_way).map(Step::under_way).collect();
        waits.join(", and ")
    }

    /// Returns how long each step took; a step still under way counts up to now.
    pub(super) fn report(mut self, now: Duration) -> report::Standstill {
        Step::ALL.into_iter().for_each(|step| self.end(step, now));
        let seconds = |step: Step| self.steps[step as usize].0.as_secs_f64();
        report::Standstill {
            pause_seconds: seconds(Step::Pause),
            flush_seconds: seconds(Step::Flush),
            save_seconds: seconds(Step::Save),
            send_seconds: seconds(Step::Send),
            ready_seconds: seconds(Step::Ready),
            record_seconds: seconds(Step::Record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_that_still_hangs_is_no_step_of_the_next_pause() {
        let second = Duration::from_secs(1);
        let mut standstill = Standstill::default();
        standstill.allow(second, Duration::ZERO);
        standstill.begin(Step::Flush, Duration::ZERO);
        assert!(standstill.stop_clock());

        standstill.allow(second, 5 * second);
        standstill.begin(Step::Pause, 5 * second);
        assert_eq!(standstill.why(), "the guest was still being paused");
        standstill.begin(Step::Flush, 6 * second);
        standstill.end(Step::Flush, 8 * second);
        assert_eq!(standstill.report(9 * second).flush_seconds, 2.0);
    }
}
