//! Reads schedules from the `[[schedule]]` tables of `lighter.toml`.
//!
//! ```toml
//! [[schedule]]
//! name = "nightly"
//! cron = "30 2 * * *"                  # minute hour day month weekday, or @daily and the like
//! timezone = "UTC"                     # local (the default), UTC, or a name as Europe/Paris
//! for = "2h"                           # 1h by default
//! goal = "keep 15% headroom"
//! guests = ["tier=batch", "!pinned"]   # every guest by default
//! budget = { cpu = "50%", pages-per-second = 20000, cpu-seconds = 900 }
//! overlap = "queue"                    # or skip
//! missed = "catch-up within 15m"       # skip by default
//! enabled = true
//! ```

use std::time::Duration;

use super::cron::Cron;
use super::entry::{Budget, GoalText, Missing, Overlap, Schedule};
use super::zone::Zone;
use crate::labels::Selector;
use crate::settings::{self, Fault, Fields, SettingsError};
use crate::units::{Span, one_of, parse_duration, parse_share, shortened};

/// The most schedules of one host.
pub const SCHEDULES_MAX: usize = 64;

/// The longest name and the longest goal, in bytes.
const NAME_BYTES_MAX: usize = 48;
const GOAL_BYTES_MAX: usize = 128;
/// The length of a window by default.
const WINDOW: Duration = Duration::from_secs(3600);
/// The valid lengths of a window, in seconds.
const WINDOW_SECONDS: std::ops::RangeInclusive<u64> = 60..=7 * 86_400;

/// Parses the schedules in `text`, the content of the file that messages call `file`. Other tables
/// are ignored here. `check_goal` validates a goal.
///
/// # Errors
/// The first error, with its file, line and field: invalid TOML, an unknown or missing field, a
/// value out of range, a name that is not unique, or too many schedules.
pub fn read(
    text: &str,
    file: &str,
    check_goal: impl Fn(&str) -> Result<(), String>,
) -> Result<Vec<Schedule>, SettingsError> {
    settings::read(text, file, |mut fields| {
        let mut schedules: Vec<Schedule> = Vec::new();
        for mut table in fields.sections("schedule", SCHEDULES_MAX)? {
            let schedule = one(&mut table, &check_goal)?;
            if schedules.iter().any(|other| other.name == schedule.name) {
                let what = format!("another schedule is called `{}` already", schedule.name);
                return Err(table.fault("name", &what));
            }
            table.finish()?;
            schedules.push(schedule);
        }
        Ok(schedules)
    })
}

/// Parses one schedule.
fn one(
    it: &mut Fields<'_, '_>,
    check_goal: impl Fn(&str) -> Result<(), String>,
) -> Result<Schedule, Fault> {
    let name = it.required("name", name)?;
    let zone = it.text("timezone", Zone::find)?;
    let zone = zone.unwrap_or_else(Zone::local);
    let cron = it.required("cron", |text| Cron::parse(text, zone.clone()))?;
    let mut window = WINDOW;
    it.time("for", WINDOW_SECONDS, &mut window)?;
    Ok(Schedule {
        name,
        cron,
        window,
        budget: budget(it.section("budget")?)?,
        goal: it.required("goal", |text| goal(text, &check_goal))?,
        guests: Selector::new(it.texts("guests", str::parse)?.unwrap_or_default()),
        enabled: it.flag("enabled")?.unwrap_or(true),
        overlap: it.text("overlap", overlap)?.unwrap_or_default(),
        missed: it.text("missed", |text| missed(text, window))?.unwrap_or_default(),
    })
}

fn name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && text.bytes().all(fits) && text.len() <= NAME_BYTES_MAX && text != "manual" {
        return Ok(text.to_owned());
    }
    Err(format!(
        "a schedule's name is 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, starting with a letter or a digit, and not `manual`"
    ))
}

fn goal(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<GoalText, String> {
    match text.len() {
        0 => Err("is empty".to_owned()),
        1..=GOAL_BYTES_MAX => check(text).map(|()| GoalText(text.to_owned())),
        _ => Err(format!("is longer than {GOAL_BYTES_MAX} bytes")),
    }
}

fn budget(mut it: Fields<'_, '_>) -> Result<Budget, Fault> {
    let budget = Budget {
        cpu_percent: it.text("cpu", whole_percent)?,
        pages_per_second: it.whole("pages-per-second", 1..=u32::MAX)?,
        cpu_seconds: it.whole("cpu-seconds", 1..=u32::MAX)?,
    };
    it.finish()?;
    Ok(budget)
}

fn whole_percent(text: &str) -> Result<u8, String> {
    let percent = parse_share(text)? * 100.0;
    match percent.round() {
        whole if whole >= 1.0 && (percent - whole).abs() < 1e-9 => Ok(whole as u8),
        _ => Err(format!("`{}` is not a whole number from 1% to 100%", shortened(text))),
    }
}

fn overlap(text: &str) -> Result<Overlap, String> {
    one_of(text, &[Overlap::Queue, Overlap::Skip], |it| match it {
        Overlap::Queue => "queue",
        Overlap::Skip => "skip",
    })
}

fn missed(text: &str, window: Duration) -> Result<Missing, String> {
    match text.split_once("within") {
        None if text == "skip" => Ok(Missing::Skip),
        Some((verb, within)) if verb.trim() == "catch-up" => match parse_duration(within.trim())? {
            within if within <= window => Ok(Missing::CatchUp { within }),
            _ => {
                let window = Span(window);
                Err(format!("it cannot be caught up after its window is over (for = \"{window}\")"))
            }
        },
        _ => Err("write \"skip\" or \"catch-up within 15m\"".to_owned()),
    }
}

#[cfg(test)]
mod tests;
