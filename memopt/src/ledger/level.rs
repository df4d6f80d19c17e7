//! The host's memory shortage level.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::HostPolicy;
use crate::situation::Host;

/// The host's memory shortage level.
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
    /// The host has enough memory: only the goal asks for more.
    #[default]
    Green,
    /// Memory is getting short: balloons are inflated whatever the goal says.
    Amber,
    /// The host is about to swap or kill: reserves are taken too, in larger steps.
    Red,
}

impl Level {
    /// Returns the level after a sample of `host`. It worsens at once, and improves only when the
    /// bound is passed by the hysteresis.
    #[must_use]
    pub fn next(self, host: &Host, policy: &HostPolicy) -> Self {
        let free = host.available_bytes as f64 / host.total_bytes.max(1) as f64;
        let stall = host.pressure.map_or(0.0, |pressure| pressure.full_10s);
        let margin = |level| if self >= level { policy.hysteresis } else { 0.0 };
        // The stall that ends red is half of the one that starts it: pressure averages fall slowly,
        // and would cross a single bound many times.
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
