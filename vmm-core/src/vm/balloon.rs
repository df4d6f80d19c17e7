//! The balloon from the view of the guest's owner: in bytes of memory that the guest keeps, not of
//! memory that it gives up.

use std::time::Duration;

use super::{RunState, Vm};
use crate::error::{Error, Result};
use crate::memory::MEMORY_BYTES_MIN;
use crate::virtio::DeviceError;
use crate::virtio::balloon::{Discarded, HintProgress, PAGE_BYTES, SetBy, Statistics};

/// State of a guest's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Whether the guest has a driver for it; without a driver, nothing happens.
    pub has_driver: bool,
    /// Whether the guest reports free pages, which then go back to the host.
    pub reporting: bool,
    /// Whether the guest sends statistics.
    pub sends_statistics: bool,
    /// Whether the guest lists its free pages when a migration asks: for guests that do not report
    /// them.
    pub gives_hints: bool,
    /// Memory of the guest without a balloon, in bytes.
    pub memory_bytes: u64,
    /// Memory that the guest is to keep, in bytes.
    pub target_bytes: u64,
    /// Who set the target.
    pub set_by: SetBy,
    /// Memory that the guest claims to have kept, in bytes. It exceeds the target while the balloon
    /// inflates, if the guest cannot give up more, or if it took some back because it ran out of
    /// memory.
    pub actual_bytes: u64,
    /// Memory that was given back, in this process. Only the host's page tables show how much of it
    /// the guest uses again.
    pub discarded: Discarded,
    /// The guest's last statistics, and their age; none of them can be trusted.
    pub statistics: Option<(Statistics, Duration)>,
}

impl Vm {
    /// Returns the state of the balloon.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none.
    pub fn balloon(&self) -> Result<BalloonStatus> {
        let report = self.machine.bus.on_balloon(|balloon, _| balloon.report())?;
        let report = report.ok_or(DeviceError::NoBalloon)?;
        let memory_bytes = self.ram().bytes();
        let kept = |pages: u32| memory_bytes.saturating_sub(u64::from(pages) * PAGE_BYTES);
        Ok(BalloonStatus {
            has_driver: report.has_driver,
            reporting: report.reporting,
            sends_statistics: report.sends_statistics,
            gives_hints: report.gives_hints,
            memory_bytes,
            target_bytes: kept(report.target_pages),
            set_by: report.set_by,
            actual_bytes: kept(report.actual_pages),
            discarded: report.discarded,
            statistics: report.statistics.map(|given| (given.values, given.age())),
        })
    }

    /// Asks the guest for new statistics, which appear in [`BalloonStatus::statistics`]. A paused
    /// guest answers when it runs.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none.
    pub fn ask_balloon_statistics(&self) -> Result<()> {
        let asked = self.machine.bus.on_balloon(|balloon, _| balloon.ask())?;
        Ok(asked.ok_or(DeviceError::NoBalloon)?)
    }

    /// Asks the guest which of its pages are free. The guest sets all of them aside until
    /// [`Vm::end_hints`], but may write any of them again at any time: only a dirty log that
    /// covered *every* page before this call shows which hints still hold. Does nothing if
    /// [`BalloonStatus::gives_hints`] is false.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none.
    pub fn begin_hints(&self) -> Result<()> {
        let asked = self.machine.bus.on_balloon(|balloon, rings| balloon.begin_hints(rings))?;
        Ok(asked.ok_or(DeviceError::NoBalloon)?)
    }

    /// Returns how far the guest has come with its hints.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none.
    pub fn hint_progress(&self) -> Result<HintProgress> {
        let progress = self.machine.bus.on_balloon(|balloon, _| balloon.hint_progress())?;
        Ok(progress.ok_or(DeviceError::NoBalloon)?)
    }

    /// Lets the guest use its free pages again, and returns those that it listed: a word for each
    /// chunk of memory, or no words if it was not asked, or was reset meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none.
    pub fn end_hints(&self) -> Result<Vec<u64>> {
        let words = self.machine.bus.on_balloon(|balloon, rings| balloon.end_hints(rings))?;
        Ok(words.ok_or(DeviceError::NoBalloon)?)
    }

    /// Sets the memory that the guest is to keep to `bytes`, rounded down to whole pages; its whole
    /// memory empties the balloon. The guest need not comply: see [`BalloonStatus::actual_bytes`].
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`] if the guest has none; [`DeviceError::BalloonTarget`] for more
    /// memory than the guest has, or less than a guest can have; [`Error::WrongState`] if the guest
    /// has ended.
    pub fn set_balloon_target(&self, bytes: u64, by: SetBy) -> Result<()> {
        let _control = self.control();
        if self.run_state() == RunState::Stopped {
            let (action, state) = ("set the balloon", RunState::Stopped);
            return Err(Error::WrongState { action, state });
        }
        let max = self.ram().bytes();
        if !(MEMORY_BYTES_MIN..=max).contains(&bytes) {
            return Err(DeviceError::BalloonTarget { bytes, min: MEMORY_BYTES_MIN, max }.into());
        }
        let pages = u32::try_from((max - bytes).div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        let set = self
            .machine
            .bus
            .on_balloon(move |balloon, rings| balloon.set_target(pages, by, rings))?;
        Ok(set.ok_or(DeviceError::NoBalloon)?)
    }
}

#[cfg(test)]
mod tests;
