//! The definition of a metric as data, and the rules that every entry follows.

/// How a metric behaves over time, in Prometheus' terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and restarts at zero with its process or migration.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets, with their sum.
    Histogram,
}

impl Kind {
    /// Returns the word in the `# TYPE` line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The unit of a metric: always a base unit, named at the end of the metric's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes; the name ends in `_bytes`.
    Bytes,
    /// Bytes per second.
    BytesPerSecond,
    /// Seconds of a duration; the name ends in `_seconds`.
    Seconds,
    /// Seconds since 1970-01-01 00:00 UTC.
    Timestamp,
    /// Pages of 4096 bytes.
    Pages,
    /// A number of things; the name says which.
    Count,
    /// A share, 0 to 1.
    Ratio,
    /// 1 for the series that holds, 0 for the others of its set.
    State,
    /// Always 1; the labels carry the information.
    Info,
}

impl Unit {
    /// Returns how a name with this unit ends, before a counter's `_total`; empty if any name is
    /// allowed.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Bytes => "_bytes",
            Self::BytesPerSecond => "_bytes_per_second",
            Self::Seconds => "_seconds",
            Self::Timestamp => "_timestamp_seconds",
            Self::Pages => "_pages",
            Self::Ratio => "_ratio",
            Self::Info => "_info",
            Self::Count | Self::State => "",
        }
    }

    /// Returns the unit as the reference prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes per second",
            Self::Seconds => "seconds",
            Self::Timestamp => "Unix time in seconds",
            Self::Pages => "pages of 4096 bytes",
            Self::Count => "count",
            Self::Ratio => "0 to 1",
            Self::State => "0 or 1",
            Self::Info => "always 1",
        }
    }
}

/// The values that a label can have; every label is bounded by one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelValues {
    /// Exactly these values.
    Fixed(&'static [&'static str]),
    /// One per guest on this host.
    PerGuest,
    /// One per schedule of lighter.toml.
    PerSchedule,
    /// One per build of the program.
    PerBuild,
}

/// One label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelDefinition {
    /// The label's name.
    pub name: &'static str,
    /// The values that it can have.
    pub values: LabelValues,
}

/// One metric of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// The full name, with prefix and unit.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The base unit.
    pub unit: Unit,
    /// The labels in the order in which values are given.
    pub labels: &'static [LabelDefinition],
    /// One or two sentences for users of a dashboard; ends with a full stop.
    pub help: &'static str,
}

/// A family that cannot be registered, because the catalogue has a mistake.
#[derive(Debug, thiserror::Error)]
#[error("metric {name} cannot be registered: {cause}; correct its entry in the catalogue")]
pub struct CatalogueError {
    /// The metric's name.
    pub name: &'static str,
    /// The error of the Prometheus library.
    pub cause: prometheus::Error,
}
