//! The threads of a guest's process that start before it is confined, and do once what an incoming
//! guest needs. The maker ends before the guest runs; the opener ends when it has read the guest's
//! boot files, and the hand-over does not wait for that.

use std::sync::Arc;

use anyhow::Result;

use super::maker::Maker;
use super::opener::Opener;
use crate::confinement::ArrivingDisks;
use crate::disk_places::DiskPlaces;

/// The threads of an incoming guest.
#[derive(Debug, Clone)]
pub(super) struct Unconfined {
    /// Creates the disks that are copied with the guest.
    pub(super) maker: Arc<Maker>,
    /// Opens the files that the guest boots from after a reset.
    pub(super) opener: Arc<Opener>,
}

impl Unconfined {
    /// Starts the threads in a process that is not confined yet, for a guest with these disks.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(disks: &ArrivingDisks) -> Result<Self> {
        let places = DiskPlaces::new(disks.folders.clone(), Vec::new());
        let maker = Arc::new(Maker::start(&disks.paths, &places)?);
        Ok(Self { maker, opener: Arc::new(Opener::start()?) })
    }
}
