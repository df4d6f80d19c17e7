//! Schedules as they are written: the `[[schedule]]` tables of `lighter.toml`.
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

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::cron::Cron;
use super::entry::{Budget, GoalText, Missing, Overlap, Schedule};
use super::fields::{Fields, Place, unknown};
use super::quantity;
use super::selector::Selector;
use super::zone::Zone;

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 256 << 10;
/// Most schedules of one host.
pub const SCHEDULES_MAX: usize = 64;

/// The name of the tables.
const TABLES: &str = "schedule";
/// The keys of a schedule.
const KEYS: [&str; 10] =
    ["name", "cron", "timezone", "for", "goal", "guests", "budget", "enabled", "overlap", "missed"];
/// The keys of its budget.
const BUDGET_KEYS: [&str; 3] = ["cpu", "pages-per-second", "cpu-seconds"];
/// The longest name and the longest goal, in bytes.
const NAME_BYTES_MAX: usize = 48;
const GOAL_BYTES_MAX: usize = 128;
/// The shortest window, the usual one and the longest.
const WINDOW_MIN: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(3600);
const WINDOW_MAX: Duration = Duration::from_secs(7 * 86_400);

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {}{what}", if .field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct FileError {
    /// The file, as it was called.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The key, as `schedule[0].cron`; empty where there is none.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

/// Reads the schedules in `text`, the content of a file called `file`. Tables of the names `others` are somebody else's to read;
/// `check_goal` says what is wrong with a goal.
///
/// # Errors
/// The first thing that is wrong: with TOML itself, a key that nobody knows or that is missing, a value out of its range, a name
/// that is taken, or too many schedules.
pub fn read(
    file: &str,
    text: &str,
    others: &[&str],
    check_goal: impl Fn(&str) -> Result<(), String>,
) -> Result<Vec<Schedule>, FileError> {
    let place = Place { file, text };
    if text.len() > FILE_BYTES_MAX {
        return Err(place.fault(0..0, "", format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    let root = DeTable::parse(text).map_err(|error| {
        let what = error.message().trim_end().replace('\n', ": ");
        place.fault(error.span().unwrap_or_default(), "", what)
    })?;
    let root = root.get_ref();
    let known: Vec<&str> = others.iter().copied().chain([TABLES]).collect();
    if let Some((key, _)) = root.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
        return Err(place.fault(key.span(), "", unknown(key.get_ref(), &known)));
    }
    let Some((key, tables)) = root.iter().find(|(key, _)| key.get_ref() == TABLES) else {
        return Ok(Vec::new());
    };
    let DeValue::Array(tables) = tables.get_ref() else {
        return Err(place.fault(
            key.span(),
            TABLES,
            "write [[schedule]], in two pairs of brackets",
        ));
    };
    let mut schedules: Vec<Schedule> = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let (fields, schedule) = one(place, index, table, &check_goal)?;
        if schedules.iter().any(|other| other.name == schedule.name) {
            let what = format!("another schedule is called `{}` already", schedule.name);
            return Err(fields.fault("name", what));
        }
        if schedules.len() == SCHEDULES_MAX {
            return Err(
                fields.fault("name", format!("a host has at most {SCHEDULES_MAX} schedules"))
            );
        }
        schedules.push(schedule);
    }
    Ok(schedules)
}

/// Reads one schedule.
fn one<'a, 'i>(
    place: Place<'a>,
    index: usize,
    table: &'a Spanned<DeValue<'i>>,
    check_goal: impl Fn(&str) -> Result<(), String>,
) -> Result<(Fields<'a, 'i>, Schedule), FileError> {
    let fields = Fields::new(place, format!("{TABLES}[{index}]"), table, &KEYS)?;
    let name = fields.required("name")?;
    check_name(name).map_err(|what| fields.fault("name", what))?;
    let zone =
        fields.read("timezone", |name| Zone::find(name).map_err(|error| error.to_string()))?;
    let cron = Cron::parse(fields.required("cron")?, zone.unwrap_or_else(Zone::local));
    let window = window(&fields)?;
    let guests = fields.texts("guests")?.unwrap_or_default();
    let schedule = Schedule {
        name: name.to_owned(),
        cron: cron.map_err(|error| fields.fault("cron", error.to_string()))?,
        window,
        budget: budget(place, index, &fields)?,
        goal: goal(&fields, check_goal)?,
        guests: Selector::parse(guests)
            .map_err(|error| fields.fault("guests", error.to_string()))?,
        enabled: fields.switch("enabled")?.unwrap_or(true),
        overlap: fields.read("overlap", overlap)?.unwrap_or_default(),
        missed: missed(&fields, window)?,
    };
    Ok((fields, schedule))
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.bytes().all(fits) && name.len() <= NAME_BYTES_MAX && name != "manual" {
        return Ok(());
    }
    Err(format!(
        "a schedule's name is 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, starting with a letter or a digit, and not `manual`"
    ))
}

fn goal(
    fields: &Fields<'_, '_>,
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<GoalText, FileError> {
    let goal = fields.required("goal")?;
    let length = match goal.len() {
        0 => Err("it is empty".to_owned()),
        1..=GOAL_BYTES_MAX => Ok(()),
        _ => Err(format!("it is longer than {GOAL_BYTES_MAX} bytes")),
    };
    length.and_then(|()| check(goal)).map_err(|what| fields.fault("goal", what))?;
    Ok(GoalText(goal.to_owned()))
}

fn window(fields: &Fields<'_, '_>) -> Result<Duration, FileError> {
    let window = fields.read("for", |text| quantity::duration(text, WINDOW_MAX))?.unwrap_or(WINDOW);
    if window < WINDOW_MIN {
        let what = format!("a window is at least {} long", quantity::shown(WINDOW_MIN));
        return Err(fields.fault("for", what));
    }
    Ok(window)
}

fn budget(place: Place<'_>, index: usize, fields: &Fields<'_, '_>) -> Result<Budget, FileError> {
    let Some(table) = fields.value("budget") else { return Ok(Budget::default()) };
    let fields = Fields::new(place, format!("{TABLES}[{index}].budget"), table, &BUDGET_KEYS)?;
    Ok(Budget {
        cpu_percent: fields.read("cpu", quantity::percent)?,
        pages_per_second: fields.count("pages-per-second")?,
        cpu_seconds: fields.count("cpu-seconds")?,
    })
}

fn overlap(text: &str) -> Result<Overlap, String> {
    match text {
        "queue" => Ok(Overlap::Queue),
        "skip" => Ok(Overlap::Skip),
        _ => Err("write \"queue\" or \"skip\"".to_owned()),
    }
}

fn missed(fields: &Fields<'_, '_>, window: Duration) -> Result<Missing, FileError> {
    let read = |text: &str| match text.split_once("within") {
        None if text == "skip" => Ok(Missing::Skip),
        Some((verb, within)) if verb.trim() == "catch-up" => {
            let within = quantity::duration(within, WINDOW_MAX)?;
            if within > window {
                let window = quantity::shown(window);
                return Err(format!(
                    "it cannot be caught up after its window is over (for = \"{window}\")"
                ));
            }
            Ok(Missing::CatchUp { within })
        }
        _ => Err("write \"skip\" or \"catch-up within 15m\"".to_owned()),
    };
    Ok(fields.read("missed", read)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
