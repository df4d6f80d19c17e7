//! The report of the check program in a Linux guest: one line per second on the serial console.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Host, wait};

/// How far the guest's clocks may appear to drift in a test: a line takes tens of milliseconds
/// through an emulated kernel and a serial port, and longer when the machine is busy.
const CLOCK_ERROR_MS: i64 = 400;

/// Lines from which the clocks are read. A delay can only make a reading larger, so the smallest
/// reading is the most accurate.
const READINGS: usize = 4;

/// Limit of the wait for a line. The program prints one per second, but the machine may be busy.
const LINE_PATIENCE: Duration = Duration::from_secs(120);

/// The console of a Linux guest on one host.
#[derive(Debug)]
pub struct CheckConsole {
    console: PathBuf,
    pages: u64,
}

/// One line of the report: numbers by name; see `tests/guest/README.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(BTreeMap<String, i64>);

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let fields = text.trim().strip_prefix("check ")?;
        let field = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let line = Self(fields.split(' ').map(field).collect::<Option<_>>()?);
        line.0.contains_key("output_us").then_some(line)
    }

    /// The number called `name`.
    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no `{name}` in {self:?}"))
    }

    /// Whether the guest has rebooted since `earlier`, according to its own clocks. A restore or a
    /// migration is not a reboot: both clocks continue.
    pub fn is_of_a_later_boot_than(&self, earlier: &Self) -> bool {
        let booted_ms = |line: &Self| line.get("real_ms") - line.get("mono_ms");
        booted_ms(self) > booted_ms(earlier) + 10 * CLOCK_ERROR_MS
    }

    /// Asserts that this line is from the same guest at a later time: its loop and its clocks have
    /// advanced, no page is bad and no timer is lost.
    #[track_caller]
    pub fn follows(&self, earlier: &Self) {
        for name in ["tick", "mono_ms", "real_ms", "timers", "written"] {
            let went_on = self.get(name) >= earlier.get(name);
            assert!(went_on, "{name} went back: {earlier:?} then {self:?}");
        }
        self.is_sound();
    }

    #[track_caller]
    fn is_sound(&self) {
        assert_eq!(self.get("errors"), 0, "bad pages: {self:?}");
        // A count above the expected one is not a loss: the program reads its clock before it
        // counts its timers.
        let lost = self.get("expected") - self.get("timers");
        assert!(lost <= 1, "{lost} timers lost: {self:?}");
    }
}

/// The guest's clocks, compared with each other and with the host's.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// How far the host's time of day is ahead of the guest's, in milliseconds.
    host_ahead_ms: i64,
    /// The guest's time of day at which its monotonic clock was zero, in milliseconds.
    monotonic_start_ms: i64,
}

impl Clocks {
    /// The clocks according to a line that has just arrived.
    fn of(line: &Line) -> Self {
        let (real_ms, mono_ms) = (line.get("real_ms"), line.get("mono_ms"));
        Self { host_ahead_ms: host_ms() - real_ms, monotonic_start_ms: real_ms - mono_ms }
    }

    /// The smaller of each reading.
    fn least(self, other: Self) -> Self {
        Self {
            host_ahead_ms: self.host_ahead_ms.min(other.host_ahead_ms),
            monotonic_start_ms: self.monotonic_start_ms.min(other.monotonic_start_ms),
        }
    }

    /// How much time the guest's time of day has lost since `before` against the host's clock, and
    /// how much more its monotonic clock has lost, in milliseconds.
    fn lost_since(self, before: Self) -> [i64; 2] {
        let lost_ms = self.host_ahead_ms - before.host_ahead_ms;
        [lost_ms, self.monotonic_start_ms - before.monotonic_start_ms]
    }
}

impl CheckConsole {
    /// The guest `name` on `host`, whose check program checks `pages` pages.
    pub fn of(host: &Host, name: &str, pages: u64) -> Self {
        Self { console: host.state_dir().join("guests").join(name).join("console.log"), pages }
    }

    /// Everything that the guest has written to its console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The newest whole line; `None` if there is none yet.
    pub fn last_line(&self) -> Option<Line> {
        let console = self.console();
        let whole = &console[..=console.rfind('\n')?];
        whole.lines().rev().find_map(Line::parse)
    }

    /// Waits for the next line, and asserts that it reports no bad pages and no lost timers.
    #[track_caller]
    pub fn line(&self) -> Line {
        let before = self.last_line();
        let line = wait::within(LINE_PATIENCE, "linux says how it is", || match self.last_line() {
            Some(line) if Some(&line) != before.as_ref() => Ok(line),
            _ => Err(self.console()),
        });
        line.is_sound();
        line
    }

    /// Reads lines until `READINGS` in a row have not improved the clock readings. Returns the
    /// last line and the best readings.
    #[track_caller]
    pub fn read_clocks(&self) -> (Line, Clocks) {
        let mut last = self.line();
        let (mut clocks, mut calm) = (Clocks::of(&last), 0);
        while calm < READINGS {
            last = self.line();
            let seen = clocks.least(Clocks::of(&last));
            let is_new = clocks.lost_since(seen).iter().any(|ms| *ms > CLOCK_ERROR_MS / 4);
            (clocks, calm) = (seen, if is_new { 0 } else { calm + 1 });
        }
        (last, clocks)
    }

    /// Asserts that neither clock has lost or gained time since `before`, and returns the last
    /// line. Keeps reading lines, because a busy machine may delay several of them.
    #[track_caller]
    pub fn keeps_time_since(&self, before: Clocks) -> Line {
        let (mut last, mut clocks) = self.read_clocks();
        wait::within(LINE_PATIENCE, "its clocks have lost no time, in milliseconds", || {
            let lost_ms = clocks.lost_since(before);
            if lost_ms.iter().all(|ms| ms.abs() < CLOCK_ERROR_MS) {
                return Ok(last.clone());
            }
            last = self.line();
            clocks = clocks.least(Clocks::of(&last));
            Err(lost_ms)
        })
    }

    /// Waits until every page has been checked against its stamp and rewritten since `earlier`;
    /// asserts that none was bad.
    #[track_caller]
    pub fn has_checked_all_since(&self, earlier: &Line) {
        let enough = earlier.get("written") + self.pages as i64;
        wait::within(LINE_PATIENCE, "linux has checked all its pages", || {
            let line = self.last_line().ok_or_else(|| self.console())?;
            line.is_sound();
            wait::holds(line.get("written") >= enough, format!("{line:?}"))
        });
    }
}

fn host_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as i64
}
