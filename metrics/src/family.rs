//! Typed families: a thin layer over the Prometheus vectors that makes labels part of the type.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry};

use crate::definition::{CatalogueError, Definition, Kind, LabelDefinition};
use crate::labels::Labels;

/// What the catalogue needs from a family's type.
pub(crate) trait Family: Sized {
    /// The kind in the `# TYPE` line.
    const KIND: Kind;
    /// The labels, in order.
    const LABELS: &'static [LabelDefinition];
    /// Creates the family and registers it.
    fn register(registry: &Registry, definition: &Definition) -> Result<Self, CatalogueError>;
}

fn label_names(definition: &Definition) -> Vec<&'static str> {
    definition.labels.iter().map(|label| label.name).collect()
}

fn registered<V: Collector + Clone + 'static>(
    registry: &Registry,
    definition: &Definition,
    made: prometheus::Result<V>,
) -> Result<V, CatalogueError> {
    made.and_then(|vector| registry.register(Box::new(vector.clone())).map(|()| vector))
        .map_err(|cause| CatalogueError { name: definition.name, cause })
}

/// A family of counters with labels `L`.
#[derive(Debug)]
pub struct Counter<L> {
    vector: CounterVec,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Counter<L> {
    /// Adds one to the counter with these labels.
    pub fn inc(&self, labels: &L) {
        self.add(labels, 1.0);
    }

    /// Adds `amount`. A negative or non-finite amount counts as zero.
    pub fn add(&self, labels: &L, amount: f64) {
        // The type of `labels` fixes their number, so the lookup cannot fail.
        if let Ok(counter) = self.vector.get_metric_with_label_values(&labels.values()) {
            counter.inc_by(if amount.is_finite() { amount.max(0.0) } else { 0.0 });
        }
    }

    /// Returns the count so far.
    #[must_use]
    pub fn get(&self, labels: &L) -> f64 {
        self.vector.get_metric_with_label_values(&labels.values()).map_or(0.0, |c| c.get())
    }
}

impl<L: Labels> Family for Counter<L> {
    const KIND: Kind = Kind::Counter;
    const LABELS: &'static [LabelDefinition] = L::DEFINITIONS;
    fn register(registry: &Registry, definition: &Definition) -> Result<Self, CatalogueError> {
        let options = Opts::new(definition.name, definition.help);
        let made = CounterVec::new(options, &label_names(definition));
        Ok(Self { vector: registered(registry, definition, made)?, labels: PhantomData })
    }
}

/// A family of gauges with labels `L`.
#[derive(Debug)]
pub struct Gauge<L> {
    vector: GaugeVec,
    labels: PhantomData<fn(L)>,
}

impl<L: Labels> Gauge<L> {
    /// Sets the value.
    pub fn set(&self, labels: &L, value: f64) {
        if let Ok(gauge) = self.vector.get_metric_with_label_values(&labels.values()) {
            gauge.set(value);
        }
    }
}

impl<L: Labels> Family for Gauge<L> {
    const KIND: Kind = Kind::Gauge;
    const LABELS: &'static [LabelDefinition] = L::DEFINITIONS;
    fn register(registry: &Registry, definition: &Definition) -> Result<Self, CatalogueError> {
        let options = Opts::new(definition.name, definition.help);
        let made = GaugeVec::new(options, &label_names(definition));
        Ok(Self { vector: registered(registry, definition, made)?, labels: PhantomData })
    }
}

/// The upper bounds of a histogram's buckets.
pub trait Buckets {
    /// The bounds, ascending, in the metric's unit; `+Inf` is added automatically.
    const BOUNDS: &'static [f64];
}

/// Bounds for a guest's downtime: a millisecond to ten seconds.
#[derive(Debug)]
pub struct DowntimeBuckets;

impl Buckets for DowntimeBuckets {
    const BOUNDS: &'static [f64] =
        &[0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0];
}

/// Bounds for a whole migration or run: a tenth of a second to an hour.
#[derive(Debug)]
pub struct DurationBuckets;

impl Buckets for DurationBuckets {
    const BOUNDS: &'static [f64] =
        &[0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
}

/// Bounds for the error of an estimate, a share: 0.5 is off by a factor of two.
#[derive(Debug)]
pub struct ErrorBuckets;

impl Buckets for ErrorBuckets {
    const BOUNDS: &'static [f64] = &[0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 0.9];
}

/// Bounds for a wait for a page: a tenth of a millisecond to half a minute.
#[derive(Debug)]
pub struct PageWaitBuckets;

impl Buckets for PageWaitBuckets {
    const BOUNDS: &'static [f64] = &migrate::waits::BOUNDS_SECONDS;
}

/// A family of histograms with labels `L` and bounds `B`.
#[derive(Debug)]
pub struct Histogram<L, B> {
    vector: HistogramVec,
    labels: PhantomData<fn(L, B)>,
}

impl<L: Labels, B: Buckets> Histogram<L, B> {
    /// Adds one observation.
    pub fn observe(&self, labels: &L, value: f64) {
        if let Ok(histogram) = self.vector.get_metric_with_label_values(&labels.values()) {
            histogram.observe(value);
        }
    }

    /// Creates the series without any observation.
    pub(crate) fn touch(&self, labels: &L) {
        // The lookup creates the series. It cannot fail, since the type fixes the labels.
        let _created = self.vector.get_metric_with_label_values(&labels.values());
    }
}

impl<L: Labels, B: Buckets> Family for Histogram<L, B> {
    const KIND: Kind = Kind::Histogram;
    const LABELS: &'static [LabelDefinition] = L::DEFINITIONS;
    fn register(registry: &Registry, definition: &Definition) -> Result<Self, CatalogueError> {
        let options =
            HistogramOpts::new(definition.name, definition.help).buckets(B::BOUNDS.to_vec());
        let made = HistogramVec::new(options, &label_names(definition));
        Ok(Self { vector: registered(registry, definition, made)?, labels: PhantomData })
    }
}

/// A family of histograms with labels `L` and bounds `B` whose observations another process has
/// counted.
#[derive(Debug)]
pub struct Distribution<L, B> {
    series: Series,
    labels: PhantomData<fn(L, B)>,
}

/// The series of a family, as they are shown.
#[derive(Debug, Clone)]
struct Series {
    desc: Desc,
    metrics: Arc<Mutex<Vec<proto::Metric>>>,
}

impl<L: Labels, B: Buckets> Distribution<L, B> {
    /// Shows a series: how many observations were at most each bound and above the one before, then
    /// how many were above all of them, and the sum of all. Called once for the same labels.
    pub fn set(&self, labels: &L, counts: &[u64], sum: f64) {
        let names = L::DEFINITIONS.iter().map(|label| label.name);
        let mut pairs: Vec<LabelPair> =
            names.zip(labels.values()).map(|(name, value)| pair(name, value)).collect();
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        let mut metric = proto::Metric::from_label(pairs);
        metric.set_histogram(histogram(B::BOUNDS, counts, sum));
        self.series.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(metric);
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn histogram(bounds: &[f64], counts: &[u64], sum: f64) -> proto::Histogram {
    let mut total = 0_u64;
    let mut buckets = Vec::with_capacity(bounds.len());
    for (index, bound) in bounds.iter().enumerate() {
        total = total.saturating_add(counts.get(index).copied().unwrap_or(0));
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(total);
        buckets.push(bucket);
    }
    let above = counts.iter().skip(bounds.len());
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(above.fold(total, |total, count| total.saturating_add(*count)));
    histogram.set_sample_sum(if sum.is_finite() { sum.max(0.0) } else { 0.0 });
    histogram
}

impl Collector for Series {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(self.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone());
        vec![family]
    }
}

impl<L: Labels, B: Buckets> Family for Distribution<L, B> {
    const KIND: Kind = Kind::Histogram;
    const LABELS: &'static [LabelDefinition] = L::DEFINITIONS;
    fn register(registry: &Registry, definition: &Definition) -> Result<Self, CatalogueError> {
        let names = label_names(definition).into_iter().map(str::to_owned).collect();
        let (name, help) = (definition.name.to_owned(), definition.help.to_owned());
        let made = Desc::new(name, help, names, HashMap::new());
        let made = made.map(|desc| Series { desc, metrics: Arc::default() });
        Ok(Self { series: registered(registry, definition, made)?, labels: PhantomData })
    }
}
