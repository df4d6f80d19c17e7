//! Arguments that limit a migration, at its start or on its way.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use migrate::OnStall;

use crate::units::{parse_duration, parse_rate};

/// A choice of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// Never slow the guest down: --downtime 300ms --on-stall wait.
    Gentle,
    /// Slow it down if that is needed: --downtime 300ms --on-stall throttle.
    Balanced,
    /// Move it soon, with a longer pause if needed: --downtime 1s --on-stall force.
    Now,
}

impl Preset {
    /// The downtime limit, unless one is given.
    pub(crate) fn downtime(self) -> Duration {
        match self {
            Self::Gentle | Self::Balanced => Duration::from_millis(300),
            Self::Now => Duration::from_secs(1),
        }
    }

    /// What to do about a stall, unless that is given.
    pub(crate) fn on_stall(self) -> OnStall {
        match self {
            Self::Gentle => OnStall::Wait,
            Self::Balanced => OnStall::Throttle,
            Self::Now => OnStall::Force,
        }
    }
}

/// Reads what to do about a stall.
pub(crate) fn on_stall() -> impl TypedValueParser<Value = OnStall> {
    let values = OnStall::ALL.map(|value| PossibleValue::new(value.name()).help(help_of(value)));
    PossibleValuesParser::new(values).map(|name| named(&name).unwrap_or_default())
}

fn help_of(value: OnStall) -> &'static str {
    match value {
        OnStall::Throttle => "Slow the guest down, step by step",
        OnStall::Force => "Hand it over with a longer pause than --downtime",
        OnStall::Postcopy => "Hand it over before its memory; a host that dies then loses it",
        OnStall::Cancel => "Give up; the guest continues here",
        OnStall::Wait => "Go on until it writes less, or until --timeout",
    }
}

fn named(name: &str) -> Option<OnStall> {
    OnStall::ALL.into_iter().find(|value| value.name() == name)
}

/// Reads a limit in time, which a guest's process is told in milliseconds.
pub(super) fn time_limit(text: &str) -> Result<Duration> {
    let limit = parse_duration(text)?;
    if limit < Duration::from_millis(1) {
        bail!("`{text}` is too short: give 1ms or more");
    }
    Ok(limit)
}

/// A new limit for a migration that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Longest planned pause.
    Downtime(Duration),
    /// Most to which that is raised.
    DowntimeMax(Duration),
    /// Time limit of the whole migration.
    Timeout(Duration),
    /// Most bytes per second; `None` for no limit.
    Bandwidth(Option<u64>),
    /// What to do about a stall.
    OnStall(OnStall),
}

impl Setting {
    /// Reads `KEY=VALUE`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let Some((key, value)) = text.split_once('=') else {
            bail!("`{text}` is not KEY=VALUE, as in downtime=1s");
        };
        Ok(match key.trim() {
            "downtime" => Self::Downtime(time_limit(value)?),
            "downtime-max" => Self::DowntimeMax(time_limit(value)?),
            "timeout" => Self::Timeout(time_limit(value)?),
            "bandwidth" if value == "none" => Self::Bandwidth(None),
            "bandwidth" => Self::Bandwidth(Some(parse_rate(value)?)),
            "on-stall" => match named(value) {
                Some(value) => Self::OnStall(value),
                None => {
                    bail!("`{value}` is not one of {}", OnStall::ALL.map(OnStall::name).join(", "))
                }
            },
            key => bail!(
                "`{key}` cannot be set: downtime, downtime-max, timeout, bandwidth and on-stall can"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_keys_with_values() {
        let second = Duration::from_secs(1);
        for (text, setting) in [
            ("downtime=1s", Setting::Downtime(second)),
            ("downtime-max=1s", Setting::DowntimeMax(second)),
            ("timeout=2m", Setting::Timeout(120 * second)),
            ("bandwidth=1Gbit/s", Setting::Bandwidth(Some(125_000_000))),
            ("bandwidth=none", Setting::Bandwidth(None)),
            ("on-stall=force", Setting::OnStall(OnStall::Force)),
        ] {
            assert_eq!(Setting::parse(text).unwrap(), setting);
        }
        for (text, word) in [
            ("downtime", "KEY=VALUE"),
            ("downtime=0s", "too short"),
            ("downtime-max=none", "time with a unit"),
            ("on-stall=pray", "throttle, force, postcopy, cancel, wait"),
            ("compress=off", "cannot be set"),
            ("bandwidth=fast", "number"),
        ] {
            let error = format!("{:#}", Setting::parse(text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
