//! The threads of a guest's process that are started before it is confined and do what a guest that
//! arrives needs once. The maker ends before the guest runs; the opener when it has read the
//! guest's boot files, for which the hand-over does not wait.

use std::sync::Arc;

use anyhow::Result;

use super::maker::Maker;
use super::opener::Opener;
use crate::confinement::ArrivingDisks;
use crate::disk_places::DiskPlaces;

/// The threads of a guest that arrives.
#[derive(Debug, Clone)]
pub(super) struct Unconfined {
    /// Makes the disks that come along.
    pub(super) maker: Arc<Maker>,
    /// Opens what the guest boots from again.
    pub(super) opener: Arc<Opener>,
}

impl Unconfined {
    /// Starts them in a process that is not confined yet, for a guest with these disks.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn start(disks: &ArrivingDisks) -> Result<Self> {
        let places = DiskPlaces::new(disks.folders.clone(), Vec::new());
        let maker = Arc::new(Maker::start(&disks.paths, &places)?);
        Ok(Self { maker, opener: Arc::new(Opener::start()?) })
    }
}
