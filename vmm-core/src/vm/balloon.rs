//! The balloon as the guest's owner sees it: in bytes of memory that the guest keeps, not of memory
//! that it gives up.

use std::time::Duration;

use super::{RunState, Vm};
use crate::error::{Error, Result};
use crate::memory::MEMORY_BYTES_MIN;
use crate::virtio::DeviceError;
use crate::virtio::balloon::{Discarded, HintProgress, PAGE_BYTES, SetBy, Statistics};

/// How a guest's balloon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Whether the guest has a driver for it; without one, nothing happens.
    pub has_driver: bool,
    /// Whether the guest reports free pages that are then given back to the host.
    pub reporting: bool,
    /// Whether the guest sends statistics.
    pub sends_statistics: bool,
    /// Whether the guest says which pages are free when a migration asks: for guests that do not
    /// report.
    pub gives_hints: bool,
    /// Memory that the guest has without a balloon, in bytes.
    pub memory_bytes: u64,
    /// Memory that it shall keep, in bytes.
    pub target_bytes: u64,
    /// Who has set that.
    pub set_by: SetBy,
    /// Memory that it says to have kept, in bytes: more than the target while it is on its way
    /// there, when it has none to give, or when it took some back because it ran out of it.
    pub actual_bytes: u64,
    /// Memory that was given back, in this process. How much of it the guest uses again, only the
    /// host's page tables know.
    pub discarded: Discarded,
    /// What the guest said last of its memory, and how long ago; none of it can be trusted.
    pub statistics: Option<(Statistics, Duration)>,
}

impl Vm {
    /// How the balloon stands.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`].
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

    /// Asks the guest for new statistics; see [`BalloonStatus::statistics`] for their coming. A
    /// guest that is paused answers when it runs.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`].
    pub fn ask_balloon_statistics(&self) -> Result<()> {
        let asked = self.machine.bus.on_balloon(|balloon, _| balloon.ask())?;
        Ok(asked.ok_or(DeviceError::NoBalloon)?)
    }

    /// Asks the guest which of its pages are free. It takes all of them until [`Vm::end_hints`],
    /// and may write any of them again at any time: only a dirty log that watched *every* page
    /// before this call can tell which hints still hold. Nothing happens when
    /// [`BalloonStatus::gives_hints`] is false.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`].
    pub fn begin_hints(&self) -> Result<()> {
        let asked = self.machine.bus.on_balloon(|balloon, rings| balloon.begin_hints(rings))?;
        Ok(asked.ok_or(DeviceError::NoBalloon)?)
    }

    /// How far the guest is.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`].
    pub fn hint_progress(&self) -> Result<HintProgress> {
        let progress = self.machine.bus.on_balloon(|balloon, _| balloon.hint_progress())?;
        Ok(progress.ok_or(DeviceError::NoBalloon)?)
    }

    /// Lets the guest have its free pages back, and returns those that it named: a word for each
    /// chunk of memory, or none at all when it was not asked, or was reset meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`].
    pub fn end_hints(&self) -> Result<Vec<u64>> {
        let words = self.machine.bus.on_balloon(|balloon, rings| balloon.end_hints(rings))?;
        Ok(words.ok_or(DeviceError::NoBalloon)?)
    }

    /// Has the guest keep no more than `bytes` of its memory, rounded down to whole pages; all of
    /// it to empty the balloon. What the guest does is up to it: see
    /// [`BalloonStatus::actual_bytes`].
    ///
    /// # Errors
    /// [`DeviceError::NoBalloon`]; [`DeviceError::BalloonTarget`] for more memory than the guest
    /// has, or less than a guest can have; [`Error::WrongState`] when the guest has ended.
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
