//! Forecasts a migration from measurements.
//!
//! [`estimate`] runs the source's own state machine ([`crate::source::Source`]) against a simulated
//! guest and a simulated link (`course`), so a forecast follows the same rules as a migration: when
//! another round pays, when the guest is paused, what is done about a stall. `writes` is the
//! simulated guest, and `chunks` what is counted of the real one. Nothing here uses a clock, a
//! socket or a file; [`crate::session::estimate`] makes the measurements.

mod chunks;
mod course;
#[cfg(test)]
mod tests;
mod writes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::chunks::ChunkCounts;
use self::writes::Order;
use crate::limits::Limits;
use crate::report::Estimated;
use crate::source::SourceConfig;
use crate::stall::OnStall;

/// Guests that sweep through their memory that are simulated, beside one that writes at random
/// places.
const SWEEPS: u32 = 8;
/// The part of its rate to which a link may fall, for the longest downtime: estimates of the total
/// time are off by a fifth (docs/performance.md).
const SLOWER_LINK: f64 = 0.8;
/// A bandwidth limit below this multiple of the measured rate has determined it.
const LIMITED: f64 = 1.1;

/// What was measured of a guest, of its host, and of the path to the destination. Base units:
/// seconds, bytes, pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Whether the guest ran; its user may have paused it.
    pub is_running: bool,
    /// Pages of memory.
    pub memory_pages: u64,
    /// Share of memory that holds only zeros, 0 to 1, by a random sample.
    pub zero_ratio: f64,
    /// Share of the other pages that lz4 shrinks by a tenth or more, 0 to 1, by the same sample.
    pub compressible_ratio: f64,
    /// Time to read a page and to find that it is zero.
    pub zero_page_seconds: f64,
    /// Pages of the disks that are copied.
    pub disk_pages: u64,
    /// Those of them that occupy space.
    pub disk_content_pages: u64,
    /// Distinct pages that the guest wrote in windows that began together, the shortest first.
    pub written: Vec<Written>,
    /// Time to start the dirty log.
    pub log_seconds: f64,
    /// Time to read the dirty log once.
    pub collect_seconds: f64,
    /// The dry run of the pause.
    pub dry_run: DryRun,
    /// The path to the destination.
    pub path: Path,
}

/// The pages that a guest wrote within a time. A guest that writes the same pages again and again
/// has written hardly more of them after a longer time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Written {
    /// Length of the time.
    pub seconds: f64,
    /// Distinct pages, of memory and of copied disks.
    pub pages: u64,
    /// Those of them that are in chunks of 256 KiB whose pages the guest writes again and again: at
    /// least half of what it wrote there in the first second, it wrote again in the next; 0 from
    /// earlier releases.
    #[serde(default)]
    pub hot_pages: u64,
}

/// How long the steps of a hand-over take that do not depend on memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DryRun {
    /// Pausing the guest and saving its state.
    pub pause_and_save_seconds: f64,
    /// How long the guest was paused for that; 0 if its user had paused it.
    pub stood_seconds: f64,
    /// Flushing the disks right after another flush.
    pub flush_seconds: f64,
    /// Making a new record durable.
    pub record_seconds: f64,
    /// Making a change of a record durable; 0 from earlier releases.
    #[serde(default)]
    pub record_change_seconds: f64,
}

/// The path to the destination's node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Path {
    /// Whether data was sent to measure the rate. If not, the node there is of an earlier version,
    /// and the rate is the bandwidth limit.
    pub is_measured: bool,
    /// Time to connect.
    pub connect_seconds: f64,
    /// Round-trip time without load.
    pub round_trip_seconds: f64,
    /// Time until the node answers the first request on a new connection: the round trip, and what
    /// both hosts take to handle a message; 0 from earlier releases.
    #[serde(default)]
    pub answer_seconds: f64,
    /// Bytes of frames per second, as the guest's memory was read, encoded and sent.
    pub bytes_per_second: f64,
    /// Bytes of frames for a page that is not zero, after compression if that is on.
    pub page_bytes: f64,
    /// Share of the packets that were lost, 0 to 1.
    pub lost_ratio: f64,
}

impl Path {
    /// Returns whether the limit of `bandwidth` bytes per second is what determined the rate, so
    /// that nothing is queued behind it.
    fn is_limited_by(&self, bandwidth: Option<u64>) -> bool {
        bandwidth.is_some_and(|limit| limit as f64 <= self.bytes_per_second * LIMITED)
    }
}

/// A forecast, with the measurements behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// What was measured.
    pub measured: Measured,
    /// The downtime limit, as far as it may be raised.
    pub downtime_limit_seconds: f64,
    /// Whether rounds bring the downtime within this limit without anything being done to the
    /// guest.
    pub converges: bool,
    /// How the migration would go as it was asked for.
    pub forecast: Forecast,
    /// What would move a guest whose migration does not converge.
    pub alternatives: Vec<Forecast>,
    /// How the migration would go without its time limit, if it would end well then and does not
    /// with it.
    #[serde(default)]
    pub without_timeout: Option<Forecast>,
    /// At what share of its present writes, below 1, the migration would converge: at another time.
    /// None if it converges, or would not even if the guest wrote nothing; and from earlier
    /// releases.
    #[serde(default)]
    pub converging_share: Option<f64>,
}

/// How a migration would go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// What is done if the migration stalls.
    pub on_stall: OnStall,
    /// Whether the guest arrives.
    pub arrives: bool,
    /// Duration of the migration, until the guest has arrived or the migration is given up; none
    /// if neither is in sight.
    pub total_seconds: Option<f64>,
    /// Downtime of a guest that arrives.
    pub downtime_seconds: Option<f64>,
    /// The longest downtime that may come of it, depending on the order in which the guest writes
    /// its pages; none from earlier releases.
    #[serde(default)]
    pub downtime_seconds_max: Option<f64>,
    /// Bytes sent over the data streams.
    pub wire_bytes: u64,
    /// Rounds, including the last one.
    pub rounds: u32,
    /// The most that the guest is slowed down: the share of the time that its vCPUs rest.
    pub throttle_percent: u8,
    /// Whether it is handed over although the downtime is above its limit.
    pub forced: bool,
    /// Why it does not arrive.
    pub why_not: Option<String>,
}

impl Forecast {
    /// Returns the figures that a migration is compared with; none if the guest does not arrive.
    pub fn figures(&self) -> Option<Estimated> {
        let total_seconds = self.total_seconds.filter(|_| self.arrives)?;
        let downtime_seconds = self.downtime_seconds?;
        Some(Estimated { total_seconds, downtime_seconds, wire_bytes: self.wire_bytes })
    }
}

/// Forecasts a migration as `config` asks for it, with at most `bandwidth` bytes per second.
pub fn estimate(measured: Measured, config: &SourceConfig, bandwidth: Option<u64>) -> Estimate {
    let wanted = config.limits.on_stall;
    let slower = on_slower_link(&measured, bandwidth);
    let by = |config: &SourceConfig, on_stall| {
        let of = |measured: &Measured| {
            in_any_order(|order| course::forecast(measured, config, bandwidth, (on_stall, order)))
        };
        let forecast = of(&measured);
        let slower = slower.as_ref().and_then(|slower| of(slower).downtime_seconds_max);
        let longest =
            forecast.downtime_seconds_max.map(|longest| longest.max(slower.unwrap_or_default()));
        Forecast { downtime_seconds_max: longest, ..forecast }
    };
    let forecast = by(config, wanted);
    let may_lack_time = !forecast.arrives && config.limits.total.is_some();
    let without_timeout = may_lack_time.then(|| {
        let limits = Limits { total: None, ..config.limits };
        by(&SourceConfig { limits, ..config.clone() }, wanted)
    });
    let without_timeout = without_timeout.filter(|forecast| forecast.arrives);
    let arrives = |measured: &Measured| {
        let by_itself = (OnStall::Wait, Order::Random);
        course::forecast(measured, config, bandwidth, by_itself).arrives
    };
    let converges = arrives(&measured);
    let others = [OnStall::Throttle, OnStall::Force, OnStall::Postcopy].into_iter();
    let alternatives = match converges {
        true => Vec::new(),
        false => {
            others.filter(|on_stall| *on_stall != wanted).map(|other| by(config, other)).collect()
        }
    };
    let downtime_limit_seconds = config.limits.downtime_ceiling().as_secs_f64();
    let converging_share =
        if converges { None } else { converging_share(measured.clone(), arrives) };
    Estimate {
        measured,
        downtime_limit_seconds,
        converges,
        forecast,
        alternatives,
        without_timeout,
        converging_share,
    }
}

/// Returns what would have been measured on a slower link; none if a limit, which does not change,
/// is what determines the rate.
fn on_slower_link(measured: &Measured, bandwidth: Option<u64>) -> Option<Measured> {
    if measured.path.is_limited_by(bandwidth) {
        return None;
    }
    let bytes_per_second = measured.path.bytes_per_second * SLOWER_LINK;
    Some(Measured { path: Path { bytes_per_second, ..measured.path }, ..measured.clone() })
}

/// Returns the forecast with the median downtime for guests that write in several orders, with the
/// longest downtime of all. If a guest that writes at random places does not arrive, it is that
/// guest's.
fn in_any_order(forecast: impl Fn(Order) -> Forecast) -> Forecast {
    let at_random = forecast(Order::Random);
    if !at_random.arrives {
        return at_random;
    }
    let sweep = |step: u32| {
        let ahead = (f64::from(step) + 0.5) / f64::from(SWEEPS);
        forecast(Order::Sweep { ahead })
    };
    let sweeps = (0..SWEEPS).map(sweep).filter(|other| other.arrives);
    let mut all: Vec<_> = sweeps.chain([at_random]).collect();
    let downtime = |forecast: &Forecast| forecast.downtime_seconds.unwrap_or_default();
    all.sort_by(|one, other| downtime(one).total_cmp(&downtime(other)));
    let longest = all.last().and_then(|forecast| forecast.downtime_seconds);
    let median = all.swap_remove(all.len() / 2);
    Forecast { downtime_seconds_max: longest, ..median }
}

/// Returns the largest share of what the guest writes at which it `arrives`, to one part in 128;
/// none if it would not even if it wrote nothing.
fn converging_share(mut measured: Measured, arrives: impl Fn(&Measured) -> bool) -> Option<f64> {
    let written = std::mem::take(&mut measured.written);
    let mut arrives_at = |share: f64| {
        let part = |pages: u64| (pages as f64 * share) as u64;
        let less = |window: &Written| Written {
            pages: part(window.pages),
            hot_pages: part(window.hot_pages),
            ..*window
        };
        measured.written = written.iter().map(less).collect();
        arrives(&measured)
    };
    if !arrives_at(0.0) {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..7 {
        let middle = f64::midpoint(low, high);
        if arrives_at(middle) { low = middle } else { high = middle }
    }
    Some(low)
}
