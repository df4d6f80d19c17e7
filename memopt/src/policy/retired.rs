//! Retired policy keys, and what replaced them.

use std::fmt;

use crate::settings::{Fault, Fields};

/// What replaced a retired key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instead {
    /// The preset decides the value.
    Preset,
    /// The value is fixed, the same for every policy.
    Fixed,
    /// The key has this name now.
    Key(&'static str),
}

use Instead::{Fixed, Key, Preset};

/// The retired keys of one table, each with its replacement.
pub(super) type Retired = &'static [(&'static str, Instead)];

pub(super) const HOST: Retired = &[
    ("red-below", Preset),
    ("red-stall", Preset),
    ("hysteresis", Preset),
    ("cow-reserve", Preset),
];

pub(super) const BALLOON: Retired = &[
    ("step-max", Preset),
    ("red-factor", Preset),
    ("dead-band", Fixed),
    ("fast", Fixed),
    ("slow", Preset),
    ("cooldown", Preset),
    ("stuck-after", Key("balloon.timeout")),
    ("idle-tax", Fixed),
    ("turns-within", Fixed),
];

/// The table that `[pressure]` replaced.
pub(super) const PAIN: Retired = &[
    ("major-faults", Key("pressure.major-faults")),
    ("allocation-stalls", Preset),
    ("direct-reclaim", Preset),
    ("swapping", Preset),
    ("stale-after", Key("balloon.timeout")),
];

pub(super) const PRESSURE: Retired =
    &[("allocation-stalls", Preset), ("direct-reclaim", Preset), ("swapping", Preset)];

pub(super) const MERGE: Retired = &[
    ("split-share", Preset),
    ("join-share", Preset),
    ("leave-share", Preset),
    ("cold-written", Preset),
    ("survey-age", Fixed),
    ("passes", Fixed),
    ("flat", Fixed),
    ("switch-gain", Fixed),
    ("domain-stay", Fixed),
];

pub(super) const HUGE: Retired = &[("hot-written", Fixed), ("chunks-max", Preset)];

pub(super) const VERIFY: Retired = &[("enough", Fixed), ("tries", Fixed), ("bench", Fixed)];

/// Refuses retired keys in a table. The error says what to write instead of the first one in the
/// file, and lists the others.
pub(super) fn refuse(table: &Fields<'_, '_>, retired: Retired) -> Result<(), Fault> {
    let written = retired.iter().filter(|(key, _)| table.is_written(key));
    let mut written: Vec<_> =
        written.map(|(key, instead)| (table.fault(key, &instead.to_string()), key)).collect();
    written.sort_by_key(|(fault, _)| fault.at.start);
    let mut written = written.into_iter();
    let Some((mut first, _)) = written.next() else { return Ok(()) };
    let others: Vec<String> = written.map(|(_, key)| format!("`{key}`")).collect();
    if !others.is_empty() {
        first.what = format!("{} (also gone: {})", first.what, others.join(", "));
    }
    Err(first)
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preset => f.write_str("is decided by `preset` now: take the line out"),
            Fixed => f.write_str("is fixed now, the same for every policy: take the line out"),
            Key(other) => write!(f, "is called `{other}` now"),
        }
    }
}

/// All retired keys, by table.
#[cfg(test)]
pub(super) const ALL: [(&str, Retired); 7] = [
    ("host", HOST),
    ("balloon", BALLOON),
    ("pain", PAIN),
    ("pressure", PRESSURE),
    ("merge", MERGE),
    ("huge", HUGE),
    ("verify", VERIFY),
];
