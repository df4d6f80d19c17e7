//! What memory optimization counts for Prometheus, and what scrapes show of its last look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memopt::ksm::End;
use memopt::ledger::Ledger;
use memopt::plan::Action;
use memopt::policy::Policy;
use memopt::schedule::{Lost, Missed, Scheduler, Trigger};
use memopt::situation::Situation;
use memopt::verify::Outcome;
use metrics::{
    DensityCounted, DensitySample, LookSample, MissedReason, RunOutcome, RunTrigger,
    ScheduleSample, WindowEnd,
};

use super::types::RunEnd;
use crate::clock::{unix_ms, uptime};

/// What was seen longer ago is not shown as if it were so now.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// Counts, and keeps what is shown.
#[derive(Debug)]
pub(super) struct Tally {
    counted: Arc<DensityCounted>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    look: Option<Look>,
    /// When the last run ended well.
    last_success: Option<SystemTime>,
    /// Times at which schedules did not run, since lighter.toml was read.
    missed: BTreeMap<String, BTreeMap<MissedReason, u64>>,
}

#[derive(Debug)]
struct Look {
    sample: LookSample,
    at: SystemTime,
    uptime: Duration,
}

impl Tally {
    /// Counts with `counted`; `last_success` (in Unix seconds) is when the last run that is known of ended well.
    pub(super) fn new(counted: Arc<DensityCounted>, last_success: Option<u64>) -> Self {
        let last_success = last_success.map(unix_time);
        Self { counted, shown: Mutex::new(Shown { last_success, ..Shown::default() }) }
    }

    /// The host and all guests were looked at.
    pub(super) fn looked(&self, situation: &Situation, ledger: &Ledger, policy: &Policy) {
        self.counted.looks.inc(&());
        let sample = LookSample::new(situation, ledger, policy);
        let at = unix_time(situation.unix_seconds);
        self.shown().look = Some(Look { sample, at, uptime: situation.uptime });
    }

    /// They could not be.
    pub(super) fn look_failed(&self) {
        self.counted.looks_failed.inc(&());
    }

    /// A plan was made.
    pub(super) fn planned(&self) {
        self.counted.plans.inc(&());
    }

    /// A run began.
    pub(super) fn run_began(&self, trigger: &Trigger) {
        self.counted.runs_started.inc(&(of_trigger(trigger),));
    }

    /// A run was wanted or due, and could not begin.
    pub(super) fn run_not_begun(&self, trigger: &Trigger) {
        self.counted.runs_not_begun.inc(&(of_trigger(trigger),));
    }

    /// A run ended.
    pub(super) fn run_ended(&self, trigger: &Trigger, end: RunEnd, took: Duration) {
        let trigger = of_trigger(trigger);
        self.counted.runs_ended.inc(&(trigger, of_end(end)));
        self.counted.run_duration.observe(&(trigger,), took.as_secs_f64());
        if end.is_success() {
            self.shown().last_success = Some(unix_time(unix_ms() / 1000));
        }
    }

    /// A step was done.
    pub(super) fn step_done(&self, action: &Action) {
        self.counted.steps.inc(&(action.actuator(),));
    }

    /// A step could not be done.
    pub(super) fn step_failed(&self, action: &Action) {
        self.counted.steps_failed.inc(&(action.actuator(),));
    }

    /// A step was checked.
    pub(super) fn verified(&self, outcome: &Outcome) {
        let labels = (outcome.actuator,);
        self.counted.verifications.inc(&(labels.0, outcome.verdict));
        // What is not a counter's to count is left out by it.
        self.counted.expected.add(&labels, outcome.expected_bytes as f64);
        self.counted.verified.add(&labels, outcome.returned_bytes as f64);
        self.counted.given.add(&labels, -(outcome.returned_bytes as f64));
    }

    /// The pages of so many guests were looked at.
    pub(super) fn surveyed(&self, count: usize) {
        self.counted.surveys.add(&(), count as f64);
    }

    /// Looks at the pages of so many guests came to nothing.
    pub(super) fn surveys_failed(&self, count: usize) {
        self.counted.surveys_failed.add(&(), count as f64);
    }

    /// A guest got memory back, outside of any run.
    pub(super) fn relieved(&self) {
        self.counted.reliefs.inc(&());
    }

    /// It should have, and could not.
    pub(super) fn relief_failed(&self) {
        self.counted.reliefs_failed.inc(&());
    }

    /// The schedules are others from now on.
    pub(super) fn scheduled_anew(&self) {
        self.shown().missed.clear();
    }

    /// A schedule did not run when it was due.
    pub(super) fn missed(&self, missed: &Missed) {
        let mut shown = self.shown();
        let reasons = shown.missed.entry(missed.schedule.clone()).or_default();
        *reasons.entry(of_lost(&missed.why)).or_default() += missed.count;
    }

    /// What a scrape shows.
    pub(super) fn sample(&self, scheduler: &Scheduler) -> DensitySample {
        let shown = self.shown();
        let is_fresh = |look: &&Look| uptime().saturating_sub(look.uptime) < SHOWN_FOR;
        let now = unix_ms() / 1000;
        let schedules = scheduler.schedules().map(|(schedule, tally)| {
            let next = schedule.enabled.then(|| schedule.cron.after(now)).flatten();
            let missed = shown.missed.get(&schedule.name);
            ScheduleSample {
                name: schedule.name.clone(),
                next: next.map(unix_time),
                lag: (tally.begun > 0).then_some(tally.lag_last),
                runs: tally.begun,
                missed: missed.into_iter().flatten().map(|(why, count)| (*why, *count)).collect(),
            }
        });
        DensitySample {
            looked: shown.look.as_ref().map(|look| look.at),
            look: shown.look.as_ref().filter(is_fresh).map(|look| look.sample.clone()),
            last_success: shown.last_success,
            schedules: schedules.collect(),
            ..DensitySample::default()
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_time(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

fn of_trigger(trigger: &Trigger) -> RunTrigger {
    match trigger {
        Trigger::Manual => RunTrigger::Manual,
        Trigger::Schedule { .. } => RunTrigger::Schedule,
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

/// The label of the end of a window; absent when ksmd could not be driven any more.
pub(super) fn of_window_end(end: Option<End>) -> WindowEnd {
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
    use memopt::schedule::{self, Moment};
    use memopt::verify::Verdict;
    use metrics::{Exporter, Snapshot};

    use super::*;

    fn scheduler(text: &str) -> Scheduler {
        let schedules = schedule::read(text, "lighter.toml", |_| Ok(())).unwrap();
        let now = Moment { wall: Duration::from_millis(unix_ms()), uptime: uptime() };
        Scheduler::new(schedules, &BTreeMap::new(), now)
    }

    fn tally() -> (Exporter, Tally) {
        let exporter = Exporter::new("1", "x", SystemTime::now()).unwrap();
        let tally = Tally::new(Arc::clone(exporter.density()), Some(5));
        (exporter, tally)
    }

    fn page(exporter: &Exporter, tally: &Tally, scheduler: &Scheduler) -> String {
        let density = tally.sample(scheduler);
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
        tally.step_done(&action);
        tally.verified(&outcome(200, 150, Verdict::Partly));
        tally.verified(&outcome(-30, -20, Verdict::Delivered));
        tally.step_failed(&action);
        let page = page(&exporter, &tally, &scheduler(""));
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
        tally.run_ended(&Trigger::Manual, RunEnd::Failed, Duration::from_secs(2));
        has(&page(&exporter, &tally, &scheduler("")), &format!("{name} 5"));
        tally.run_ended(&Trigger::Manual, RunEnd::Exhausted, Duration::from_secs(2));
        let page = page(&exporter, &tally, &scheduler(""));
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
        tally.missed(&missed("night", Lost::Absent));
        tally.missed(&missed("no such schedule any more", Lost::Absent));
        let seen = page(&exporter, &tally, &scheduler(text));
        let name = "lighter_density_schedule_missed_total{reason=";
        has(&seen, &format!("{name}\"absent\",schedule=\"night\"}} 2"));
        has(&seen, &format!("{name}\"overlapped\",schedule=\"night\"}} 0"));
        assert!(!seen.contains("any more") && !seen.contains("schedule_lag"), "{seen}");
        assert!(seen.contains("next_run_timestamp_seconds{schedule=\"night\"}"), "{seen}");
        tally.scheduled_anew();
        let seen = page(&exporter, &tally, &scheduler(text));
        has(&seen, &format!("{name}\"absent\",schedule=\"night\"}} 0"));
    }

    #[test]
    fn what_comes_to_nothing_is_counted() {
        let (exporter, tally) = tally();
        tally.surveys_failed(2);
        tally.relief_failed();
        let page = page(&exporter, &tally, &scheduler(""));
        has(&page, "lighter_density_surveys_failed_total 2");
        has(&page, "lighter_density_reliefs_failed_total 1");
    }
}
