//! Every metric of lighter in one place: its name, kind, unit, labels and help, and the exporter.
//!
//! `catalogue.rs` is the one list ([`Counted`] and [`Scraped`]), with memory optimization in
//! `density/`; everything else is derived from it: the typed handles that the program records with,
//! the text that Prometheus scrapes, the reference in `docs/metrics.md`, and [`never_moved`], which
//! finds metrics that nothing moves.
//!
//! There are two kinds of family. [`Counted`] lives as long as the process and only grows.
//! [`Scraped`] is filled afresh from one [`Snapshot`] at every scrape, so the series of a guest
//! that has left go with it. [`Exporter`] holds both and renders text exposition 0.0.4.
//!
//! Where `migrate` or `memopt` has a type for what a label or a sample says, it is that type. This
//! crate is the only user of the `prometheus` crate. Start reading at `catalogue.rs`.

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
pub use family::{Buckets, Counter, DowntimeBuckets, DurationBuckets, Gauge, Histogram};
pub use labels::{
    BuildRevision, BuildVersion, Encoding, FailureReason, FixedLabel, GuestName, GuestState,
    GuestUuid, Label, Labels, NetDevice, RefusalReason,
};
pub use reference::markdown;
pub use snapshot::{
    DepartedSample, GuestSample, HostMemory, MigrationSample, NetworkFlow, NetworkSample, Snapshot,
    Traffic,
};
