//! Counters of memory optimization for Prometheus, and what scrapes show of its last inspection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memopt::history::RunEnd;
use memopt::ksm::End;
use memopt::schedule::{Lost, Missed, Trigger};
use memopt::service::{Event, Observer, Published};
use memopt::verify::Outcome;
use metrics::{
    Counter, DensityCounted, DensitySample, InspectionSample, MissedReason, RunOutcome, RunTrigger,
    ScheduleSample, WindowEnd,
};

use crate::clock::{unix_ms, uptime};

/// An inspection older than this is not shown as if it were current.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// Counts events, and keeps what scrapes show.
#[derive(Debug)]
pub(super) struct Tally {
    counted: Arc<DensityCounted>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    inspection: Option<Inspection>,
    /// When the last successful run ended.
    last_success: Option<SystemTime>,
    /// Number of times that schedules did not run, since lighter.toml was read.
    missed: BTreeMap<String, BTreeMap<MissedReason, u64>>,
}

#[derive(Debug)]
struct Inspection {
    sample: InspectionSample,
    at: SystemTime,
    uptime: Duration,
}

impl Observer for Tally {
    fn notice(&self, event: &Event<'_>) {
        let counted = &self.counted;
        match event {
            Event::LastSuccess(at) => self.shown().last_success = Some(unix_time(*at)),
            Event::Inspected { situation, ledger, policy } => {
                counted.inspections.inc(&());
                let sample = InspectionSample::new(situation, ledger, policy);
                let at = unix_time(situation.unix_seconds);
                self.shown().inspection = Some(Inspection { sample, at, uptime: situation.uptime });
            }
            Event::InspectionFailed => counted.inspections_failed.inc(&()),
            Event::Planned => counted.plans.inc(&()),
            Event::RunBegan(trigger) => count(&counted.runs_started, trigger),
            Event::RunNotBegun(trigger) => count(&counted.runs_not_begun, trigger),
            Event::RunEnded { trigger, end, took } => self.run_ended(trigger, *end, *took),
            Event::StepDone(action) => counted.steps.inc(&(action.actuator(),)),
            Event::StepFailed(action) => counted.steps_failed.inc(&(action.actuator(),)),
            Event::Verified(outcome) => self.verified(outcome),
            Event::Surveyed(count) => counted.surveys.add(&(), *count as f64),
            Event::SurveysFailed(count) => counted.surveys_failed.add(&(), *count as f64),
            Event::Relieved => counted.reliefs.inc(&()),
            Event::ReliefFailed => counted.reliefs_failed.inc(&()),
            Event::SchedulesReplaced => self.shown().missed.clear(),
            Event::Missed(missed) => self.missed(missed),
            Event::WindowEnded(end) => counted.windows.inc(&(of_window_end(*end),)),
            Event::Restarted => counted.restarts.inc(&()),
        }
    }
}

impl Tally {
    /// Counts in `counted`.
    pub(super) fn new(counted: Arc<DensityCounted>) -> Self {
        Self { counted, shown: Mutex::default() }
    }

    fn run_ended(&self, trigger: &Trigger, end: RunEnd, took: Duration) {
        let Some(trigger) = of_trigger(trigger) else { return };
        self.counted.runs_ended.inc(&(trigger, of_end(end)));
        self.counted.run_duration.observe(&(trigger,), took.as_secs_f64());
        if end.is_success() {
            self.shown().last_success = Some(unix_time(unix_ms() / 1000));
        }
    }

    fn verified(&self, outcome: &Outcome) {
        let labels = (outcome.actuator,);
        self.counted.verifications.inc(&(labels.0, outcome.verdict));
        // A counter ignores amounts with the wrong sign.
        self.counted.expected.add(&labels, outcome.expected_bytes as f64);
        self.counted.verified.add(&labels, outcome.returned_bytes as f64);
        self.counted.given.add(&labels, -(outcome.returned_bytes as f64));
    }

    fn missed(&self, missed: &Missed) {
        let mut shown = self.shown();
        let reasons = shown.missed.entry(missed.schedule.clone()).or_default();
        *reasons.entry(of_lost(&missed.why)).or_default() += missed.count;
    }

    /// Returns what a scrape shows, together with what the service has `published`.
    pub(super) fn sample(&self, published: Published) -> DensitySample {
        let shown = self.shown();
        let is_fresh = |last: &&Inspection| uptime().saturating_sub(last.uptime) < SHOWN_FOR;
        let now = unix_ms() / 1000;
        let schedules = published.schedules.into_iter().map(|(schedule, tally)| {
            let next = schedule.enabled.then(|| schedule.cron.after(now)).flatten();
            let missed = shown.missed.get(&schedule.name);
            let missed = missed.into_iter().flatten().map(|(why, count)| (*why, *count)).collect();
            ScheduleSample {
                name: schedule.name,
                next: next.map(unix_time),
                lag: (tally.begun > 0).then_some(tally.lag_last),
                runs: tally.begun,
                missed,
            }
        });
        DensitySample {
            inspected_at: shown.inspection.as_ref().map(|last| last.at),
            inspection: shown.inspection.as_ref().filter(is_fresh).map(|last| last.sample.clone()),
            last_success: shown.last_success,
            schedules: schedules.collect(),
            is_running: published.is_running,
            are_settings_invalid: published.are_settings_invalid,
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_time(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

/// Returns what started a run; `None` for relief, which is not a run and is counted separately.
fn of_trigger(trigger: &Trigger) -> Option<RunTrigger> {
    match trigger {
        Trigger::Manual => Some(RunTrigger::Manual),
        Trigger::Schedule { .. } => Some(RunTrigger::Schedule),
        Trigger::Relief => None,
    }
}

fn count(runs: &Counter<(RunTrigger,)>, trigger: &Trigger) {
    if let Some(trigger) = of_trigger(trigger) {
        runs.inc(&(trigger,));
    }
}

fn of_end(end: RunEnd) -> RunOutcome {
    match end {
        RunEnd::Reached => RunOutcome::Reached,
        RunEnd::Exhausted => RunOutcome::Exhausted,
        RunEnd::WindowOver => RunOutcome::WindowOver,
        RunEnd::Cancelled => RunOutcome::Cancelled,
        RunEnd::Failed => RunOutcome::Failed,
    }
}

fn of_lost(why: &Lost) -> MissedReason {
    match why {
        Lost::Absent => MissedReason::Absent,
        Lost::Superseded => MissedReason::Superseded,
        Lost::Overlapped(_) => MissedReason::Overlapped,
        Lost::WindowOver => MissedReason::WindowOver,
    }
}

/// Returns the label for the end of a merge window; `None` means that ksmd could not be controlled
/// any more.
fn of_window_end(end: Option<End>) -> WindowEnd {
    match end {
        Some(End::Flat) => WindowEnd::Flat,
        Some(End::TimeUsed) => WindowEnd::TimeUsed,
        Some(End::CpuTimeUsed) => WindowEnd::CpuTimeUsed,
        Some(End::NothingToMerge) => WindowEnd::NothingToMerge,
        Some(End::Foreign(_)) => WindowEnd::Foreign,
        Some(End::CalledOff) => WindowEnd::CalledOff,
        None => WindowEnd::Failed,
    }
}

#[cfg(test)]
mod tests {
    use memopt::schedule;
    use memopt::step::Action;
    use memopt::verify::Verdict;
    use metrics::{Exporter, Snapshot};

    use super::*;

    fn scheduled(text: &str) -> Published {
        let schedules = schedule::read(text, "lighter.toml", |_| Ok(())).unwrap();
        let schedules =
            schedules.into_iter().map(|schedule| (schedule, schedule::Tally::default()));
        Published { schedules: schedules.collect(), ..Published::default() }
    }

    fn tally() -> (Exporter, Tally) {
        let exporter = Exporter::new("1", "x", SystemTime::now()).unwrap();
        let tally = Tally::new(Arc::clone(exporter.density()));
        tally.notice(&Event::LastSuccess(5));
        (exporter, tally)
    }

    fn page(exporter: &Exporter, tally: &Tally, schedules: &str) -> String {
        let density = tally.sample(scheduled(schedules));
        exporter.render(&Snapshot { density, ..Snapshot::default() }).unwrap()
    }

    #[track_caller]
    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|other| other == line), "no {line} in {page}");
    }

    #[test]
    fn steps_are_counted_by_what_came_back_and_by_what_was_given() {
        let (exporter, tally) = tally();
        let action = Action::SetBalloon { guest: "web".to_owned(), from_bytes: 300, to_bytes: 100 };
        let outcome = |expected_bytes, returned_bytes, verdict| Outcome {
            guest: Some("web".to_owned()),
            actuator: action.actuator(),
            action: action.clone(),
            expected_bytes,
            returned_bytes,
            share: None,
            verdict,
            reason: String::new(),
        };
        tally.notice(&Event::StepDone(&action));
        tally.notice(&Event::Verified(&outcome(200, 150, Verdict::Partly)));
        tally.notice(&Event::Verified(&outcome(-30, -20, Verdict::Delivered)));
        tally.notice(&Event::StepFailed(&action));
        let page = page(&exporter, &tally, "");
        for line in [
            "lighter_density_steps_total{actuator=\"balloon\"} 1",
            "lighter_density_steps_failed_total{actuator=\"balloon\"} 1",
            "lighter_density_verifications_total{actuator=\"balloon\",verdict=\"partly\"} 1",
            "lighter_density_expected_bytes_total{actuator=\"balloon\"} 200",
            "lighter_density_verified_bytes_total{actuator=\"balloon\"} 150",
            "lighter_density_given_bytes_total{actuator=\"balloon\"} 20",
            "lighter_density_steps_total{actuator=\"merge\"} 0",
        ] {
            has(&page, line);
        }
    }

    #[test]
    fn the_last_success_is_that_of_a_run_that_did_its_work() {
        let (exporter, tally) = tally();
        let name = "lighter_density_last_success_timestamp_seconds";
        let took = Duration::from_secs(2);
        tally.notice(&Event::RunEnded { trigger: &Trigger::Manual, end: RunEnd::Failed, took });
        has(&page(&exporter, &tally, ""), &format!("{name} 5"));
        tally.notice(&Event::RunEnded { trigger: &Trigger::Manual, end: RunEnd::Exhausted, took });
        let page = page(&exporter, &tally, "");
        assert!(!page.contains(&format!("{name} 5")), "{page}");
        has(&page, "lighter_density_run_duration_seconds_count{trigger=\"manual\"} 2");
    }

    #[test]
    fn what_did_not_run_is_counted_for_as_long_as_it_is_scheduled() {
        let (exporter, tally) = tally();
        let text = "[[schedule]]\nname = \"night\"\ncron = \"0 3 * * *\"\ngoal = \"max density\"\n";
        let missed = |schedule: &str, why| Missed {
            schedule: schedule.to_owned(),
            first: 1,
            last: 2,
            count: 2,
            why,
        };
        tally.notice(&Event::Missed(&missed("night", Lost::Absent)));
        tally.notice(&Event::Missed(&missed("no such schedule any more", Lost::Absent)));
        let seen = page(&exporter, &tally, text);
        let name = "lighter_density_schedule_missed_total{reason=";
        has(&seen, &format!("{name}\"absent\",schedule=\"night\"}} 2"));
        has(&seen, &format!("{name}\"overlapped\",schedule=\"night\"}} 0"));
        assert!(!seen.contains("any more") && !seen.contains("schedule_lag"), "{seen}");
        assert!(seen.contains("next_run_timestamp_seconds{schedule=\"night\"}"), "{seen}");
        tally.notice(&Event::SchedulesReplaced);
        let seen = page(&exporter, &tally, text);
        has(&seen, &format!("{name}\"absent\",schedule=\"night\"}} 0"));
    }

    #[test]
    fn failed_surveys_and_restarts_are_counted() {
        let (exporter, tally) = tally();
        tally.notice(&Event::SurveysFailed(2));
        tally.notice(&Event::ReliefFailed);
        tally.notice(&Event::Restarted);
        let page = page(&exporter, &tally, "");
        has(&page, "lighter_density_surveys_failed_total 2");
        has(&page, "lighter_density_reliefs_failed_total 1");
        has(&page, "lighter_density_restarts_total 1");
    }
}
