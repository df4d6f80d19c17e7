//! All metrics of lighter: their names, kinds, units, labels and help texts, and the exporter.
//!
//! `catalogue.rs` is the only list ([`Counted`] and [`Scraped`]), with memory optimization in
//! `density/`. Everything else is derived from it: the typed handles that the program records with,
//! the text that Prometheus scrapes, the reference in `docs/metrics.md`, and [`never_moved`], which
//! finds metrics that stay zero.
//!
//! There are two kinds of family. [`Counted`] lives as long as the process and only grows.
//! [`Scraped`] is rebuilt from one [`Snapshot`] at every scrape, so the series of a guest disappear
//! with it. [`Exporter`] holds both and renders text exposition 0.0.4.
//!
//! If `migrate` or `memopt` has a type for the value of a label or sample, that type is used here.
//! This crate is the only user of the `prometheus` crate. Start reading at `catalogue.rs`.

mod audit;
mod catalogue;
mod definition;
mod density;
mod entries;
mod exporter;
mod family;
mod fill;
mod labels;
mod number;
mod reference;
mod snapshot;

pub use audit::{ExpositionError, Sample, never_moved, parse_samples};
pub use catalogue::{Counted, Scraped, definitions, density_definitions};
pub use definition::{CatalogueError, Definition, Kind, LabelDefinition, LabelValues, Unit};
pub use density::{
    DensityCounted, DensityGuest, DensitySample, DensityScraped, Finding, InspectionSample,
    MissedReason, PageSize, RunOutcome, RunTrigger, ScheduleName, ScheduleSample, Stall,
    SurveySample, WindowEnd,
};
pub use exporter::{CONTENT_TYPE, Exporter, RenderError};
pub use family::{
    Buckets, Counter, Distribution, DowntimeBuckets, DurationBuckets, ErrorBuckets, Gauge,
    Histogram, PageWaitBuckets,
};
pub use labels::{
    BuildRevision, BuildVersion, Encoding, EstimateFigure, FailureReason, FixedLabel, GuestName,
    GuestState, GuestUuid, Label, Labels, NetDevice, RefusalReason,
};
pub use reference::markdown;
pub use snapshot::{
    DepartedSample, GuestSample, HostMemory, MigrationSample, NetworkFlow, NetworkSample, Snapshot,
    Traffic,
};
