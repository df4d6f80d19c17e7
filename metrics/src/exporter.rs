//! Renders the page that Prometheus scrapes.

use std::sync::Arc;
use std::time::SystemTime;

use migrate::Phase;
use migrate::progress::Role;
use prometheus::{Registry, TextEncoder};

use crate::catalogue::{Counted, Scraped};
use crate::definition::CatalogueError;
use crate::density::{self, DensityCounted, DensityScraped};
use crate::fill;
use crate::labels::{
    BuildRevision, BuildVersion, EstimateFigure, FailureReason, FixedLabel, GuestName,
    RefusalReason,
};
use crate::snapshot::Snapshot;

/// The `Content-Type` of the text that [`Exporter::render`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Why a page could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The catalogue has a mistake.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The encoder refused a family.
    #[error("the metrics cannot be encoded: {0}")]
    Encode(prometheus::Error),
}

/// The counters of a running node, and the renderer of its page.
#[derive(Debug)]
pub struct Exporter {
    registry: Registry,
    counted: Counted,
    density: Arc<DensityCounted>,
    build: (BuildVersion, BuildRevision),
    started: SystemTime,
}

impl Exporter {
    /// Creates an exporter with all counters at zero. `version` and `revision` identify the build,
    /// `started` is when the node began.
    ///
    /// # Errors
    /// [`CatalogueError`] if the catalogue has a mistake; the crate's tests rule that out.
    pub fn new(version: &str, revision: &str, started: SystemTime) -> Result<Self, CatalogueError> {
        let registry = Registry::new();
        let counted = Counted::register(&registry)?;
        show_zeros(&counted);
        let density = Arc::new(DensityCounted::register(&registry)?);
        density::show_zeros(&density);
        let build = (BuildVersion(version.to_owned()), BuildRevision(revision.to_owned()));
        Ok(Self { registry, counted, density, build, started })
    }

    /// Returns the counters to record with.
    #[must_use]
    pub fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Returns the counters of memory optimization.
    #[must_use]
    pub fn density(&self) -> &Arc<DensityCounted> {
        &self.density
    }

    /// Renders the page for one snapshot, in text exposition format 0.0.4.
    ///
    /// # Errors
    /// [`RenderError`] if the catalogue has a mistake; the crate's tests rule that out.
    pub fn render(&self, snapshot: &Snapshot) -> Result<String, RenderError> {
        let registry = Registry::new();
        let scraped = Scraped::register(&registry)?;
        fill::node(&scraped, &self.build, self.started, snapshot);
        for guest in &snapshot.guests {
            fill::guest(&scraped, guest);
        }
        for departed in &snapshot.departed {
            fill::migration(&scraped, &GuestName(departed.guest.clone()), &departed.migration);
        }
        let density = DensityScraped::register(&registry)?;
        density::fill(&density, &snapshot.density);
        let mut families = self.registry.gather();
        families.extend(registry.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).map_err(RenderError::Encode)
    }
}

/// Creates every series at the start: a counter that appears with its first failure hides that
/// failure from `increase()`.
fn show_zeros(counted: &Counted) {
    for direction in Role::EVERY {
        counted.migrations_started.add(&(*direction,), 0.0);
        counted.migrations_completed.add(&(*direction,), 0.0);
        counted.completed_downtime.touch(&(*direction,));
        counted.completed_duration.touch(&(*direction,));
    }
    for phase in Phase::EVERY {
        counted.migrations_cancelled.add(&(*phase,), 0.0);
        for reason in FailureReason::EVERY {
            counted.migrations_failed.add(&(*phase, *reason), 0.0);
        }
    }
    for figure in EstimateFigure::EVERY {
        counted.estimate_error.touch(&(*figure,));
    }
    counted.admissions.add(&(), 0.0);
    counted.guests_failed.add(&(), 0.0);
    for reason in RefusalReason::EVERY {
        counted.admissions_refused.add(&(*reason,), 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::GuestState;
    use crate::snapshot::GuestSample;

    fn guest(name: &str) -> GuestSample {
        GuestSample {
            name: name.into(),
            uuid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".into(),
            state: GuestState::Running,
            started: SystemTime::UNIX_EPOCH,
            memory_bytes: 512 << 20,
            vcpus: 2,
            resident_bytes: None,
            proportional_bytes: None,
            longest_stall: None,
            networks: Vec::new(),
            migration: None,
        }
    }

    fn exporter() -> Exporter {
        Exporter::new("1.0.0", "abc", SystemTime::UNIX_EPOCH).expect("a sound catalogue")
    }

    #[test]
    fn series_of_a_vanished_guest_vanish() {
        let exporter = exporter();
        let both = Snapshot { guests: vec![guest("web-1"), guest("web-2")], ..Snapshot::default() };
        let one = Snapshot { guests: vec![guest("web-2")], ..Snapshot::default() };
        assert!(exporter.render(&both).expect("page").contains("guest=\"web-1\""));
        let after = exporter.render(&one).expect("page");
        assert!(!after.contains("guest=\"web-1\"") && after.contains("guest=\"web-2\""));
    }

    #[test]
    fn counters_persist_between_pages() {
        let exporter = exporter();
        exporter.counted().admissions_refused.inc(&(RefusalReason::Memory,));
        exporter.render(&Snapshot::default()).expect("page");
        exporter.counted().admissions_refused.inc(&(RefusalReason::Memory,));
        let page = exporter.render(&Snapshot::default()).expect("page");
        assert!(page.contains("lighter_admissions_refused_total{reason=\"memory\"} 2"), "{page}");
        assert!(page.contains("lighter_admissions_refused_total{reason=\"kvm\"} 0"), "{page}");
    }

    #[test]
    fn hostile_guest_name_cannot_forge_a_series() {
        let sample = guest("a\"} 1\nlighter_forged 1\n#");
        let snapshot = Snapshot { guests: vec![sample], ..Snapshot::default() };
        let page = exporter().render(&snapshot).expect("page");
        assert!(!page.lines().any(|line| line.starts_with("lighter_forged")), "{page}");
    }
}
