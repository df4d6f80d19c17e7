//! What is checked of a guest's disks before it starts, and recorded right before.

use std::path::Path;

use anyhow::Result;

use super::background;
use crate::ended::Ended;
use crate::names::GuestName;
use crate::output;
use crate::saved_disks;
use crate::shared_disks::{self, TakenOver};
use crate::state_dir::StateDir;
use crate::whereabouts::Whereabouts;

/// What is recorded right before a guest starts, once its files and configuration have been
/// checked: a start that fails earlier leaves everything as it was.
#[derive(Debug, Default)]
pub(super) struct BeforeStart {
    /// A guest that belongs to this host from now on, because the user says so.
    claimed: Option<GuestName>,
    /// Disks that it takes over from guests that have left.
    taken: TakenOver,
}

impl BeforeStart {
    /// Checks that no guest on another host may be writing `disks`, and that no guest which was
    /// saved here needs them, but for those whose records are to `pass`. For guests called
    /// `forced`, the user says that they run nowhere. The background process does not ask again.
    ///
    /// # Errors
    /// If a guest may be writing such a disk, or needs it.
    pub(super) fn new<'a>(
        state: &StateDir,
        disks: impl Iterator<Item = &'a Path>,
        forced: Option<&GuestName>,
        pass: impl Fn(&Ended) -> bool,
    ) -> Result<Self> {
        if background::name().is_some() {
            return Ok(Self::default());
        }
        let disks: Vec<_> = disks.collect();
        saved_disks::expect_unneeded(state, &disks, pass)?;
        let taken = shared_disks::expect_free(state, disks.into_iter(), forced)?;
        Ok(Self { claimed: forced.cloned(), taken })
    }

    /// Whether nothing is to be recorded.
    pub(super) fn is_nothing(&self) -> bool {
        self.claimed.is_none() && self.taken.is_empty()
    }

    /// Writes the records. The claim comes first: after a crash in between, the disks are still
    /// refused to other guests, and the user repeats the command.
    ///
    /// # Errors
    /// If the claim cannot be written.
    pub(super) fn record(self, state: &StateDir) -> Result<()> {
        state.create()?;
        if let Some(name) = &self.claimed {
            Whereabouts::claim(state, name)?;
        }
        if let Err(error) = self.taken.record(state) {
            output::note(format_args!(
                "warning: its disks are still recorded to have left with another guest: {error:#}"
            ));
        }
        Ok(())
    }
}
