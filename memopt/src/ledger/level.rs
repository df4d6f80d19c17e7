//! How short of memory the host is.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::HostPolicy;
use crate::situation::Host;

/// How short of memory the host is.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It has enough: only the goal asks for memory.
    #[default]
    Green,
    /// It gets short: balloons shrink whatever the goal says.
    Amber,
    /// It is about to swap or kill: reserves are taken too, in longer steps.
    Red,
}

impl Level {
    /// The level after a look at `host`: worse at once, better only when the bound is passed by the
    /// hysteresis.
    #[must_use]
    pub fn next(self, host: &Host, policy: &HostPolicy) -> Self {
        let free = host.available_bytes as f64 / host.total_bytes.max(1) as f64;
        let stall = host.pressure.map_or(0.0, |pressure| pressure.full_10s);
        let margin = |level| if self >= level { policy.hysteresis } else { 0.0 };
        // Half of what made it red: pressure averages fall slowly, and then pass their bound many
        // times.
        let calm = if self == Self::Red { policy.red_stall / 2.0 } else { policy.red_stall };
        if free < policy.red_below + margin(Self::Red) || stall >= calm {
            Self::Red
        } else if free < policy.amber_below + margin(Self::Amber) {
            Self::Amber
        } else {
            Self::Green
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Green => "green",
            Self::Amber => "amber",
            Self::Red => "red",
        })
    }
}
