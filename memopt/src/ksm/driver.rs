//! The shell around a window: samples ksmd, and writes the settings that the window asks for.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::control::{Control, Restored};
use super::error::KsmError;
use super::window::{End, Outcome, Sample, Window};
use crate::observe::{Sources, ksm, ksmd_time};

/// One window on a host. Dropping it ends the window and restores the settings.
#[derive(Debug)]
pub struct Driver {
    sources: Sources,
    control: Control,
    window: Window,
    restored: Restored,
}

impl Driver {
    /// Creates a driver of `window`, which begins with the first [`Self::step`].
    #[must_use]
    pub fn new(sources: &Sources, control: Control, window: Window) -> Self {
        Self { sources: sources.clone(), control, window, restored: Restored::default() }
    }

    /// Samples ksmd and writes the settings that the window asks for. Call it about once a second,
    /// with any monotonic clock. When it returns an outcome, the settings have been restored,
    /// except those that another process changed in the meantime.
    ///
    /// # Errors
    /// [`KsmError`] if ksmd cannot be sampled or a setting cannot be written. The settings are
    /// restored on drop.
    pub fn step(&mut self, now: Duration) -> Result<Option<Outcome>, KsmError> {
        let sample = self.sample()?;
        let sets = self.window.handle(&sample, now);
        if let Some(foreign) = self.control.apply(&sets)?.into_iter().next() {
            self.window.stop(End::Foreign(foreign), &sample, now);
        }
        self.finish()
    }

    /// Cancels the window.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn call_off(&mut self, now: Duration) -> Result<Option<Outcome>, KsmError> {
        let sample = self.sample()?;
        self.window.stop(End::CalledOff, &sample, now);
        self.finish()
    }

    /// Calls [`Self::step`] every `tick` until the window ends, or until `cancel` receives a
    /// message or loses its last sender. Blocks.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn run(&mut self, tick: Duration, cancel: &Receiver<()>) -> Result<Outcome, KsmError> {
        let began = Instant::now();
        loop {
            if let Some(outcome) = self.step(began.elapsed())? {
                return Ok(outcome);
            }
            if cancel.recv_timeout(tick) != Err(RecvTimeoutError::Timeout)
                && let Some(outcome) = self.call_off(began.elapsed())?
            {
                return Ok(outcome);
            }
        }
    }

    /// Returns which settings were restored at the end of the window.
    #[must_use]
    pub const fn restored(&self) -> &Restored {
        &self.restored
    }

    fn sample(&self) -> Result<Sample, KsmError> {
        let state = ksm(&self.sources)?;
        let mut counters = state.counters;
        // If this is absent, the window estimates the CPU time from the scanned pages.
        counters.cpu = ksmd_time(&self.sources).ok();
        Ok(Sample { ksm: counters, knobs: state.knobs })
    }

    fn finish(&mut self) -> Result<Option<Outcome>, KsmError> {
        let Some(outcome) = self.window.outcome().copied() else { return Ok(None) };
        self.restored = self.control.restore()?;
        Ok(Some(outcome))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::ksm::control::tests::Fixture;
    use crate::ksm::knob::{Foreign, Knob};
    use crate::ksm::{Budget, Options};

    fn driver(fixture: &Fixture) -> Driver {
        let (control, _) = Control::open(&fixture.sources(), &fixture.journal()).unwrap();
        let time = Duration::from_secs(60);
        let budget = Budget { cpu_share: 0.5, cpu_time: time, pages_per_second: 100_000, time };
        Driver::new(&fixture.sources(), control, Window::new(budget, Options::default()))
    }

    #[test]
    fn a_window_over_its_whole_life() {
        let fixture = Fixture::new();
        let mut driver = driver(&fixture);
        assert_eq!(driver.step(Duration::ZERO).unwrap(), None);
        assert_eq!(fixture.get("run"), "1");
        assert_ne!(fixture.get("pages_to_scan"), "100");
        for second in 1..4_u64 {
            fixture.set("full_scans", &second.to_string());
            fixture.set("pages_scanned", &(second * 1000).to_string());
            let outcome = driver.step(Duration::from_secs(second)).unwrap();
            assert_eq!(outcome.map(|outcome| outcome.end), (second == 3).then_some(End::Flat));
        }
        assert_eq!((fixture.get("run"), fixture.get("pages_to_scan")), ("0".into(), "100".into()));
        assert!(!fixture.journal().exists());
    }

    #[test]
    fn ksmtuned_in_between_ends_it_and_keeps_its_setting() {
        let fixture = Fixture::new();
        let mut driver = driver(&fixture);
        driver.step(Duration::ZERO).unwrap();
        fixture.set("pages_to_scan", "1250");
        let end = driver.step(Duration::from_secs(1)).unwrap().unwrap().end;
        assert!(matches!(end, End::Foreign(Foreign { knob: Knob::PagesToScan, found: 1250, .. })));
        assert_eq!((fixture.get("run"), fixture.get("pages_to_scan")), ("0".into(), "1250".into()));
        assert_eq!(driver.restored().foreign.len(), 1);
    }

    #[test]
    fn it_is_cancelled_by_its_caller_or_the_callers_death() {
        for says_so in [true, false] {
            let fixture = Fixture::new();
            let mut driver = driver(&fixture);
            let (sender, cancel) = mpsc::channel();
            if says_so {
                sender.send(()).unwrap();
            } else {
                drop(sender);
            }
            let outcome = driver.run(Duration::from_secs(60), &cancel).unwrap();
            assert_eq!(outcome.end, End::CalledOff);
            assert_eq!(fixture.get("run"), "0");
        }
    }

    #[test]
    fn an_invalid_counter_is_an_error_and_everything_is_restored() {
        let fixture = Fixture::new();
        let mut driver = driver(&fixture);
        driver.step(Duration::ZERO).unwrap();
        fixture.set("pages_sharing", "-3");
        let error = driver.step(Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("pages_sharing"), "{error}");
        drop(driver);
        assert_eq!(fixture.get("run"), "0");
    }
}
