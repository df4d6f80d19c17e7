//! Decides when runs begin and end. See [`Scheduler`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::entry::Tally;
use self::entry::{Entry, Origin};
use super::entry::{Overlap, Schedule};
use super::notice::{Due, Lost, Notice, Punctuality, Trigger};

mod entry;

/// The longest time between two reads of the clock.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A longer time than this between two reads is reported.
const ASLEEP: Duration = Duration::from_secs(150);
/// A clock that is off by more than this was set. A thousandth of the elapsed time is added, as
/// clocks are slewed by up to half of that.
const SET_SECONDS: i64 = 2;
/// How far a clock may be set back without any time occurring again: the same as in cron (cron(8)
/// of Vixie).
const BACK_MAX_SECONDS: u64 = 3 * 3600;
/// How far back times are counted as missed while no node ran.
const ABSENCE_MAX_SECONDS: u64 = 7 * 86_400;
/// The most times that [`Scheduler::next`] returns.
pub const NEXT_MAX: usize = 1000;

/// A point in time, on both of the host's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The host's clock, as time since the Unix epoch.
    pub wall: Duration,
    /// Time since the host booted, including time asleep (`CLOCK_BOOTTIME`).
    pub uptime: Duration,
}

/// The input of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Only time has passed.
    Elapsed,
    /// The current run has ended.
    Ended,
    /// An operator requests a run.
    ManualWanted,
}

/// A future time of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upcoming {
    /// The due time, in Unix seconds.
    pub tick: u64,
    /// The schedule's name.
    pub schedule: String,
}

/// Decides when runs begin and end: one at a time on a host.
///
/// The caller supplies the time ([`Self::handle`], after [`Self::wait`] at the latest); the
/// scheduler has no clock. It decides each time of a schedule once: the schedule runs, or a notice
/// says that it missed that time.
///
/// - A run is due at its time and ends when its window, measured from that time, is over; a run
///   that begins late has less time. Once it has begun, its end is measured by the uptime, which
///   cannot be set.
/// - When several times have passed, the last one counts and the others are missed.
/// - Setting the clock forward, and host sleep, count as an absence. Setting it back by up to three
///   hours makes no time occur again. If it is set back by more, it was wrong before, and
///   scheduling restarts at the new time.
#[derive(Debug)]
pub struct Scheduler {
    entries: Vec<Entry>,
    running: Option<Running>,
    seen: Moment,
}

#[derive(Debug)]
struct Running {
    trigger: Trigger,
    /// The uptime at which the window is over; absent if the run has no window, or `Notice::End`
    /// was sent.
    deadline: Option<Duration>,
}

/// A due time to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    tick: u64,
    index: usize,
    /// The first of the times that are missed together with this one if it is missed, and their
    /// number including it.
    first: u64,
    count: u64,
    origin: Origin,
}

impl Scheduler {
    /// Creates a scheduler of `schedules`. `last_ticks` has, by name, the last time that was
    /// decided, in Unix seconds: what was due between that and now was missed. Schedules not in it
    /// begin now.
    #[must_use]
    pub fn new(schedules: Vec<Schedule>, last_ticks: &BTreeMap<String, u64>, now: Moment) -> Self {
        let wall = now.wall.as_secs();
        let enter = |schedule: Schedule| {
            let last = last_ticks.get(&schedule.name).copied().unwrap_or(wall);
            let is_wrong = last > wall.saturating_add(BACK_MAX_SECONDS);
            let after = if is_wrong { wall } else { last };
            Entry::new(schedule, after.max(wall.saturating_sub(ABSENCE_MAX_SECONDS)))
        };
        Self { entries: schedules.into_iter().map(enter).collect(), running: None, seen: now }
    }

    /// Replaces the schedules, as [`Self::new`] does. The current run continues and excludes others
    /// until it ends, whether or not its schedule still exists. A schedule of a name that there was
    /// keeps its results, and a run that waits.
    pub fn replace(
        &mut self,
        schedules: Vec<Schedule>,
        last_ticks: &BTreeMap<String, u64>,
        now: Moment,
    ) {
        let running = self.running.take();
        let before = std::mem::take(&mut self.entries);
        *self = Self { running, ..Self::new(schedules, last_ticks, now) };
        for entry in &mut self.entries {
            let earlier = before.iter().find(|it| it.schedule.name == entry.schedule.name);
            let Some(earlier) = earlier else { continue };
            entry.tally = earlier.tally;
            if let Some(tick) = earlier.queued.filter(|_| entry.schedule.enabled) {
                entry.queued = Some(tick);
                entry.after = entry.after.max(tick);
                entry.find_next();
            }
        }
    }

    /// Decides on everything until `now`.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.check_clock(now, &mut notices);
        if event == Event::Ended {
            self.running = None;
        }
        self.end_window(now, &mut notices);
        let mut candidates = self.candidates(now, &mut notices);
        candidates.sort_unstable();
        for candidate in candidates {
            let notice = self.decide(now, candidate);
            notices.extend(notice);
        }
        if event == Event::ManualWanted {
            notices.push(self.begin_manual());
        }
        notices
    }

    /// Returns the current run.
    #[must_use]
    pub fn running(&self) -> Option<&Trigger> {
        self.running.as_ref().map(|running| &running.trigger)
    }

    /// Returns the schedules in file order, with their tallies.
    pub fn schedules(&self) -> impl Iterator<Item = (&Schedule, Tally)> {
        self.entries.iter().map(|entry| (&entry.schedule, entry.tally))
    }

    /// Returns how long the caller may wait until the next [`Self::handle`]: at most half a minute,
    /// since the clock may be set in the meantime.
    #[must_use]
    pub fn wait(&self, now: Moment) -> Duration {
        let ticks = self.entries.iter().filter_map(|entry| entry.next);
        let ticks = ticks.map(|tick| Duration::from_secs(tick).saturating_sub(now.wall));
        let deadline = self.running.as_ref().and_then(|running| running.deadline);
        let deadline = deadline.map(|deadline| deadline.saturating_sub(now.uptime));
        ticks.chain(deadline).fold(WAIT_MAX, Duration::min)
    }

    /// Returns the next `count` due times in order; at most [`NEXT_MAX`].
    #[must_use]
    pub fn next(&self, count: usize) -> Vec<Upcoming> {
        let mut heads: Vec<Option<u64>> = self.entries.iter().map(|entry| entry.next).collect();
        let mut upcoming = Vec::new();
        while upcoming.len() < count.min(NEXT_MAX) {
            let ahead = heads.iter().enumerate();
            let first = ahead.filter_map(|(index, tick)| Some(((*tick)?, index))).min();
            let Some((tick, index)) = first else { break };
            let schedule = &self.entries[index].schedule;
            heads[index] = schedule.cron.after(tick);
            upcoming.push(Upcoming { tick, schedule: schedule.name.clone() });
        }
        upcoming
    }

    /// Reports a clock that was set and a long time without calls. Restarts schedules if the clock
    /// was wrong by hours.
    fn check_clock(&mut self, now: Moment, notices: &mut Vec<Notice>) {
        let passed = now.uptime.saturating_sub(self.seen.uptime);
        if passed > ASLEEP {
            notices.push(Notice::Asleep(passed));
        }
        let expected = self.seen.wall.saturating_add(passed);
        let by_seconds = signed_seconds(expected, now.wall);
        self.seen = now;
        let tolerance = SET_SECONDS.saturating_add(passed.as_secs().cast_signed() / 1000);
        if by_seconds.abs() <= tolerance {
            return;
        }
        let wall = now.wall.as_secs();
        let mut again = Vec::new();
        for entry in &mut self.entries {
            if entry.after > wall.saturating_add(BACK_MAX_SECONDS) {
                entry.after = wall;
                entry.find_next();
                // A queued time that occurs again would run twice.
                entry.queued = entry.queued.filter(|tick| *tick <= wall);
                again.push(entry.schedule.name.clone());
            }
        }
        notices.push(Notice::ClockSet { by_seconds, again });
    }

    fn end_window(&mut self, now: Moment, notices: &mut Vec<Notice>) {
        if let Some(running) = &mut self.running
            && running.deadline.is_some_and(|deadline| deadline <= now.uptime)
        {
            running.deadline = None;
            notices.push(Notice::End(running.trigger.clone()));
        }
    }

    /// Returns one time for each schedule that is queued or due.
    fn candidates(&mut self, now: Moment, notices: &mut Vec<Notice>) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let waiting = entry.queued.take();
            let new = entry.take_passed(now.wall.as_secs());
            if let (Some(tick), Some(_)) = (waiting, new) {
                notices.push(entry.miss(tick, tick, 1, Lost::Superseded));
            }
            let candidate = match (new, waiting) {
                (Some(new), _) => {
                    let is_lost = entry.is_too_late(lag(now, new.last));
                    let (first, count) = match new.before_last {
                        Some(before) if !is_lost => {
                            let others = new.count - 1;
                            notices.push(entry.miss(new.first, before, others, Lost::Superseded));
                            (new.last, 1)
                        }
                        _ => (new.first, new.count),
                    };
                    Candidate { tick: new.last, index, first, count, origin: Origin::Clock }
                }
                (None, Some(tick)) => {
                    Candidate { tick, index, first: tick, count: 1, origin: Origin::Queue }
                }
                (None, None) => continue,
            };
            candidates.push(candidate);
        }
        candidates
    }

    /// Decides one time. A time that stays queued gives no notice.
    fn decide(&mut self, now: Moment, candidate: Candidate) -> Option<Notice> {
        let Candidate { tick, index, first, count, origin } = candidate;
        let entry = &mut self.entries[index];
        let lag = lag(now, tick);
        if origin == Origin::Queue && lag >= entry.schedule.window {
            return Some(entry.miss(first, tick, count, Lost::WindowOver));
        }
        if origin == Origin::Clock && entry.is_too_late(lag) {
            return Some(entry.miss(first, tick, count, Lost::Absent));
        }
        match (&self.running, entry.schedule.overlap) {
            (Some(running), Overlap::Skip) => {
                let running = running.trigger.clone();
                return Some(entry.miss(first, tick, count, Lost::Overlapped(running)));
            }
            (Some(running), Overlap::Queue) => {
                entry.queued = Some(tick);
                let schedule = entry.schedule.name.clone();
                let running = running.trigger.clone();
                let notice = Notice::Queued { schedule, tick, running };
                return (origin == Origin::Clock).then_some(notice);
            }
            (None, _) => {}
        }
        let due = entry.begin(tick, lag, origin);
        let deadline = due.window.map(|window| now.uptime.saturating_add(window));
        self.running = Some(Running { trigger: due.trigger.clone(), deadline });
        Some(Notice::Due(due))
    }

    fn begin_manual(&mut self) -> Notice {
        if let Some(running) = &self.running {
            return Notice::Busy { running: running.trigger.clone() };
        }
        self.running = Some(Running { trigger: Trigger::Manual, deadline: None });
        Notice::Due(Due {
            trigger: Trigger::Manual,
            lag: Duration::ZERO,
            window: None,
            punctuality: Punctuality::OnTime,
        })
    }
}

/// Returns the time since `tick`; zero if the clock was set back in the meantime.
fn lag(now: Moment, tick: u64) -> Duration {
    now.wall.saturating_sub(Duration::from_secs(tick))
}

/// Returns the whole seconds between two times; negative if `to` is earlier.
fn signed_seconds(from: Duration, to: Duration) -> i64 {
    let magnitude = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match to.checked_sub(from) {
        Some(after) => magnitude(after),
        None => -magnitude(from.saturating_sub(to)),
    }
}

#[cfg(test)]
mod tests;
