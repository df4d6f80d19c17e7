//! What the check program in the Linux guest says about itself, a line each second on the serial console.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host::{Host, wait};

/// How far the guest's time of day may seem to wander from the host's in a test: a line takes tens of milliseconds on its
/// way through an emulated kernel and a serial port.
pub(crate) const CLOCK_ERROR_MS: i64 = 250;

/// How far two clocks that the program reads one after the other may seem apart, for the same reason.
const READING_MS: i64 = 50;

/// A line each second, on a busy machine.
const LINE_PATIENCE: Duration = Duration::from_secs(120);

/// The console of a Linux guest on one host.
#[derive(Debug)]
pub(crate) struct Witness {
    console: PathBuf,
    pages: u64,
}

/// One line: numbers by name; see `tests/guest/README.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line(BTreeMap<String, i64>);

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

    fn get(&self, name: &str) -> i64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no `{name}` in {self:?}"))
    }

    /// It is the same guest, later: its loop and its clocks went on, both clocks by the same time, no page is bad and no
    /// timer is lost.
    #[track_caller]
    pub(crate) fn follows(&self, earlier: &Self) {
        for name in ["tick", "mono_ms", "real_ms", "timers", "written"] {
            assert!(
                self.get(name) >= earlier.get(name),
                "{name} went back: {earlier:?} then {self:?}"
            );
        }
        let passed = |name: &str| self.get(name) - earlier.get(name);
        let apart = passed("mono_ms") - passed("real_ms");
        assert!(
            apart.abs() <= READING_MS,
            "its clocks are {apart} ms apart: {earlier:?} then {self:?}"
        );
        self.is_sound();
    }

    #[track_caller]
    fn is_sound(&self) {
        assert_eq!(self.get("errors"), 0, "bad pages: {self:?}");
        let lost = self.get("expected") - self.get("timers");
        assert!((0..=1).contains(&lost), "{lost} timers lost: {self:?}");
    }
}

impl Witness {
    /// The guest `name` on `host`, whose check program looks after so many pages.
    pub(crate) fn of(host: &Host, name: &str, pages: u64) -> Self {
        Self { console: host.state_dir().join("guests").join(name).join("console.log"), pages }
    }

    /// All that the console has shown.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The newest whole line, if there is one yet.
    pub(crate) fn last_line(&self) -> Option<Line> {
        let console = self.console();
        let whole = &console[..=console.rfind('\n')?];
        whole.lines().rev().find_map(Line::parse)
    }

    /// The next line that comes, sound.
    #[track_caller]
    pub(crate) fn line(&self) -> Line {
        let before = self.last_line();
        let line = wait::within(LINE_PATIENCE, "linux says how it is", || match self.last_line() {
            Some(line) if Some(&line) != before.as_ref() => Ok(line),
            _ => Err(self.console()),
        });
        line.is_sound();
        line
    }

    /// The last of three lines, and how far the host's time of day is ahead of the guest's, in milliseconds: the least of
    /// three, since a delay on the way only adds.
    #[track_caller]
    pub(crate) fn testify(&self) -> (Line, i64) {
        let lines = [(); 3].map(|()| {
            let line = self.line();
            (host_ms() - line.get("real_ms"), line)
        });
        let least = lines.iter().map(|(ahead, _)| *ahead).min().expect("three lines");
        let [.., (_, last)] = lines;
        (last, least)
    }

    /// Every page has been checked against its stamp and rewritten since `earlier`, and none was bad.
    #[track_caller]
    pub(crate) fn has_checked_all_since(&self, earlier: &Line) {
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
