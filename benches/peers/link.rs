//! The link between the two hosts of a contest, as `--links` names it: `loopback`, or the rate of a
//! cable between two network namespaces with its round trip and loss, if any: `100mbit`,
//! `1gbit/1ms`, `1gbit/10ms/0.1%`. `2x100mbit` is two such cables, which lighter uses both; QEMU
//! uses the first.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The longest queue before the link, as the time in which it empties.
pub(crate) const QUEUE: Duration = Duration::from_millis(50);
/// What tbf lets through at once: whole packets as the kernel makes them, before it splits them.
const BURST_BYTES: u64 = 64 << 10;

/// A link between two hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Link {
    /// No cable: both hosts share the loopback device.
    Loopback,
    /// A cable of a limited rate.
    Cable(Cable),
}

/// The properties of a cable, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cable {
    /// How many of them there are, 1 or 2.
    pub(crate) count: usize,
    /// Bits per second of each.
    pub(crate) rate: u64,
    /// Time there and back without load.
    pub(crate) round_trip: Duration,
    /// Share of the packets that are lost, in percent.
    pub(crate) loss_percent: f64,
}

impl Link {
    /// How many ways there are from one host to the other.
    pub(crate) const fn count(&self) -> usize {
        match self {
            Self::Loopback => 1,
            Self::Cable(cable) => cable.count,
        }
    }
}

impl Cable {
    /// Whether packets take time on it, or get lost.
    pub(crate) fn is_long(&self) -> bool {
        !self.round_trip.is_zero() || self.loss_percent > 0.0
    }

    /// The queue, in the words of tc(8), that makes an interface send like this cable.
    pub(crate) fn queue(&self) -> String {
        let (rate, queue_ms) = (self.rate, QUEUE.as_millis());
        format!("tbf rate {rate}bit burst {BURST_BYTES} latency {queue_ms}ms")
    }
}

impl FromStr for Link {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "loopback" {
            return Ok(Self::Loopback);
        }
        let (count, each) = text.strip_prefix("2x").map_or((1, text), |each| (2, each));
        let mut parts = each.split('/');
        let rate = parts.next().unwrap_or_default();
        let rate = match (rate.strip_suffix("gbit"), rate.strip_suffix("mbit")) {
            (Some(number), _) => number.parse::<u64>().map(|number| number * 1_000_000_000),
            (None, Some(number)) => number.parse::<u64>().map(|number| number * 1_000_000),
            (None, None) => {
                bail!("a link is loopback or a rate like 100mbit, 1gbit/10ms/0.1% or 2x100mbit")
            }
        };
        let mut cable = Cable {
            count,
            rate: rate.context("the rate of a link needs a number")?,
            round_trip: Duration::ZERO,
            loss_percent: 0.0,
        };
        for part in parts {
            match (part.strip_suffix("ms"), part.strip_suffix('%')) {
                (Some(number), _) => cable.round_trip = Duration::from_millis(number.parse()?),
                (None, Some(number)) => cable.loss_percent = number.parse()?,
                (None, None) => bail!("{part} is neither a round trip (10ms) nor a loss (0.1%)"),
            }
        }
        Ok(Self::Cable(cable))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Cable(cable) = self else { return f.write_str("loopback") };
        if cable.count > 1 {
            write!(f, "{} x ", cable.count)?;
        }
        write!(f, "{} Mbit/s", cable.rate / 1_000_000)?;
        if !cable.round_trip.is_zero() {
            write!(f, " {} ms", cable.round_trip.as_millis())?;
        }
        if cable.loss_percent > 0.0 {
            write!(f, " {} % lost", cable.loss_percent)?;
        }
        Ok(())
    }
}
