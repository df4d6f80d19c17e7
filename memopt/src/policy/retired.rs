//! Keys that a policy had once, and what has taken their place.

use std::fmt;

use crate::settings::{Fault, Fields};

/// What decides instead of a key that is gone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instead {
    /// The preset.
    Preset,
    /// Nothing: the same holds for every policy.
    Fixed,
    /// Another key.
    Key(&'static str),
}

use Instead::{Fixed, Key, Preset};

/// Of one table: the key, and what has taken its place.
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

pub(super) const PAIN: Retired = &[
    ("allocation-stalls", Preset),
    ("direct-reclaim", Preset),
    ("swapping", Preset),
    ("stale-after", Key("balloon.timeout")),
];

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

/// Refuses the keys that a table had once: says of the first in the file what to write instead, and
/// which others there are.
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

/// All of them, with their tables.
#[cfg(test)]
pub(super) const ALL: [(&str, Retired); 6] = [
    ("host", HOST),
    ("balloon", BALLOON),
    ("pain", PAIN),
    ("merge", MERGE),
    ("huge", HUGE),
    ("verify", VERIFY),
];
