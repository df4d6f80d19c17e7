//! Keys that a policy had once, and what has taken their place.

use crate::settings::{Fault, Fields};

/// What decides instead of a key that is gone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instead {
    /// The preset.
    Preset,
    /// Nothing: it is the same for everybody.
    Always(&'static str),
    /// Another key.
    Key(&'static str),
}

use Instead::{Always, Key, Preset};

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
    ("dead-band", Always("1%")),
    ("fast", Always("1m")),
    ("slow", Preset),
    ("cooldown", Preset),
    ("stuck-after", Key("balloon.timeout")),
    ("idle-tax", Always("75%")),
    ("turns-within", Always("30m")),
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
    ("survey-age", Always("30m")),
    ("passes", Always("3")),
    ("flat", Always("1%")),
    ("switch-gain", Always("1.5")),
    ("domain-stay", Always("1h")),
];

pub(super) const HUGE: Retired = &[("hot-written", Always("6.25%")), ("chunks-max", Preset)];

pub(super) const VERIFY: Retired =
    &[("enough", Always("50%")), ("tries", Always("2")), ("bench", Always("1h"))];

/// Refuses the keys that a table had once, with what to write instead.
pub(super) fn refuse(table: &Fields<'_, '_>, retired: Retired) -> Result<(), Fault> {
    let written = retired.iter().find(|(key, _)| table.is_written(key));
    let Some((key, instead)) = written else { return Ok(()) };
    let what = match instead {
        Preset => "is decided by `preset` now: take the line out".to_owned(),
        Always(value) => format!("is always {value} now: take the line out"),
        Key(other) => format!("is called `{other}` now"),
    };
    Err(table.fault(key, &what))
}
