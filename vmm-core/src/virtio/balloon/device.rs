//! The balloon device.
//!
//! The device may drop pages but need not, so requests whose pages cannot be dropped are answered
//! like the others, and logged once. A driver that names addresses outside RAM breaks the queue.
//! Pages in the balloon are dropped whatever the poison value: the driver rewrites them when it
//! takes them back. Reported pages come back unwritten, so they are only dropped while the driver
//! expects pages of zeros (5.5.6.7).

use std::ops::Range;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{self, Values};
use super::hints::{HintProgress, Hints};
use super::queues::{self, Role};
use super::state::SavedBalloon;
use super::statistics::{self, Statistics};
use super::{feature, pages};
use crate::memory::GuestRam;
use crate::virtio::DeviceError;
use crate::virtio::device::{Device, DeviceKind, Progress, Rings};
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Entries of each queue. Linux does not report pages to a queue of less than 32.
const QUEUE_SIZE: u16 = 128;
/// Most pages in an inflate request. Linux sends 256; a longer request breaks the queue.
const PFNS_MAX: usize = 4096;
/// Inflate requests served before the thread checks for other work. A pause waits for at most this
/// many, that is for 16,384 system calls in the worst case, about 20 ms.
const INFLATE_BATCH: usize = 4;
/// Most bytes of one hint that count. `HINT_BATCH` is the number of hints served per turn: a hint
/// costs no system call.
const HINT_BYTES_MAX: u64 = REPORT_BYTES_MAX;
const HINT_BATCH: usize = 64;
/// Deflate requests served per turn; they are only answered.
const DEFLATE_BATCH: usize = 64;
/// Most bytes dropped for one report; the rest is kept. Linux reports up to 128 MiB at a time.
const REPORT_BYTES_MAX: u64 = 256 << 20;
/// Reports served per turn.
const REPORT_BATCH: usize = 4;

/// Memory that the host got back since the device was created on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes dropped by inflating the balloon; a page counts each time it is inflated.
    pub inflated_bytes: u64,
    /// Bytes dropped by free page reporting; a page counts each time it is reported.
    pub reported_bytes: u64,
}

/// Statistics of a guest, with their timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestStatistics {
    /// The values that the guest sent.
    pub(crate) values: Statistics,
    /// When the guest sent them.
    pub(crate) at: Instant,
}

impl GuestStatistics {
    /// Returns the time since the guest sent them.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// State of a balloon, in pages of 4096 bytes; see [`crate::Vm::balloon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BalloonReport {
    /// Whether the guest has a driver that is ready.
    pub(crate) has_driver: bool,
    /// Whether the driver reports free pages and they can be dropped.
    pub(crate) reporting: bool,
    /// Whether the driver sends statistics.
    pub(crate) sends_statistics: bool,
    /// Whether the driver answers a migration's request for free pages, and the answer is useful.
    pub(crate) gives_hints: bool,
    /// Pages that the driver must give up.
    pub(crate) target_pages: u32,
    /// Who set the target.
    pub(crate) set_by: SetBy,
    /// Pages that the driver claims to have given up: any value, from a hostile driver.
    pub(crate) actual_pages: u32,
    /// Memory that was dropped on this host.
    pub(crate) discarded: Discarded,
    /// The last statistics, if any.
    pub(crate) statistics: Option<GuestStatistics>,
}

/// The way in which a driver can tell the device about free pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FreePages {
    /// Free page reporting; a driver that does not support it can use hinting.
    #[default]
    Reported,
    /// Free page hinting only: the driver names free pages on request.
    Hinted,
}

/// Who set a balloon's target. It is saved with the guest and migrates with it: an optimizer that
/// takes memory gives it back later, but does not change a target that an operator has set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SetBy {
    /// An operator, or the target was never set.
    #[default]
    Operator,
    /// The optimizer of a host's memory.
    Optimizer,
}

/// A balloon of a guest; see the module.
#[derive(Debug, Default)]
pub(crate) struct BalloonDevice {
    free_pages: FreePages,
    config: Values,
    set_by: SetBy,
    /// Features that the driver has accepted; `None` until it is ready.
    features: Option<u64>,
    /// Head of the request in whose buffer the driver sent its last statistics.
    held: Option<u16>,
    /// True while new statistics are wanted.
    asked: bool,
    statistics: Option<GuestStatistics>,
    hints: Hints,
    discarded: Discarded,
    /// Whether pages that cannot be dropped were logged; only the first ones are.
    warned: bool,
}

impl BalloonDevice {
    /// Creates a balloon that learns of free pages in this way.
    pub(crate) fn new(free_pages: FreePages) -> Self {
        Self { free_pages, ..Self::default() }
    }

    /// Returns the state of the balloon.
    pub(crate) fn report(&self) -> BalloonReport {
        BalloonReport {
            has_driver: self.features.is_some(),
            reporting: self.has(feature::REPORTING) && self.may_drop_reported(),
            sends_statistics: self.has(feature::STATISTICS),
            gives_hints: self.gives_hints(),
            target_pages: self.config.target_pages,
            set_by: self.set_by,
            actual_pages: self.config.actual_pages,
            discarded: self.discarded,
            statistics: self.statistics,
        }
    }

    /// Sets how many pages the driver must give up, and tells the driver.
    pub(crate) fn set_target(&mut self, pages: u32, by: SetBy, rings: &Rings<'_>) {
        self.config.target_pages = pages;
        self.set_by = by;
        rings.change_config(|bytes| {
            if let Some(place) = bytes.first_chunk_mut() {
                *place = pages.to_le_bytes();
            }
        });
    }

    /// Requests new statistics; the request is sent when the statistics queue is processed next.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    /// Asks the driver which pages are free, if it can answer. A driver that reports free pages is
    /// not asked: those pages are zeros already, and a guest that clears pages on allocation would
    /// populate them for nothing.
    pub(crate) fn begin_hints(&mut self, rings: &Rings<'_>) {
        if self.gives_hints() {
            self.hints.begin(rings.ram());
            self.send_hint_command(rings);
        }
    }

    /// Returns the progress of the driver's hints.
    pub(crate) fn hint_progress(&self) -> HintProgress {
        self.hints.progress()
    }

    /// Tells the driver to take its pages back. Returns the pages that it named, as one word for
    /// each chunk, or nothing if no command was active.
    pub(crate) fn end_hints(&mut self, rings: &Rings<'_>) -> Vec<u64> {
        if !self.hints.is_asking() {
            return Vec::new();
        }
        let words = self.hints.end();
        self.send_hint_command(rings);
        words
    }

    fn send_hint_command(&mut self, rings: &Rings<'_>) {
        let command = self.hints.command();
        self.config.hint_command = command;
        rings.change_config(|bytes| Values::set_hint_command(bytes, command));
    }

    fn gives_hints(&self) -> bool {
        self.has(feature::HINTS) && !self.has(feature::REPORTING) && self.may_drop_reported()
    }

    fn has(&self, feature: u64) -> bool {
        self.features.is_some_and(|features| features & feature != 0)
    }

    fn may_drop_reported(&self) -> bool {
        !self.has(feature::PAGE_POISON) || self.config.poison == 0
    }

    fn inflate(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let ram = rings.ram();
        rings.serve(index, INFLATE_BATCH, |chain, memory| {
            let len = chain.readable.bytes();
            if len > (PFNS_MAX * pages::PFN_BYTES) as u64 {
                return Err(QueueError::TooLong);
            }
            let mut bytes = vec![0; len as usize];
            chain.readable.read(memory, &mut bytes).map_err(|_| QueueError::Buffer)?;
            let dropped = self.drop_pages(ram, &pages::of_pfns(&bytes))?;
            self.discarded.inflated_bytes += dropped;
            Ok(0)
        })
    }

    fn take_reported(
        &mut self,
        index: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, QueueError> {
        let ram = rings.ram();
        rings.serve(index, REPORT_BATCH, |chain, _| {
            if self.may_drop_reported() {
                let ranges = pages::within(chain.writable.pieces(), REPORT_BYTES_MAX);
                self.discarded.reported_bytes += self.drop_pages(ram, &ranges)?;
            }
            Ok(0)
        })
    }

    /// Records the pages that the driver names. A readable buffer holds a command's id; a writable
    /// buffer is free memory, which is not written.
    fn take_hints(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let ram = rings.ram();
        rings.serve(index, HINT_BATCH, |mut chain, memory| {
            if let Some(word) = chain.readable.take_front(size_of::<u32>() as u64) {
                let mut id = [0; size_of::<u32>()];
                word.read(memory, &mut id).map_err(|_| QueueError::Buffer)?;
                self.hints.on_command(u32::from_le_bytes(id));
            }
            let ranges = pages::within(chain.writable.pieces(), HINT_BYTES_MAX);
            self.hints.on_pages(ram, &ranges);
            Ok(0)
        })
    }

    /// Drops the pages, all of which must be RAM; returns how many bytes the host got back.
    fn drop_pages(&mut self, ram: &GuestRam, ranges: &[Range<u64>]) -> Result<u64, QueueError> {
        if !ranges.iter().all(|range| ram.contains(range)) {
            return Err(QueueError::Buffer);
        }
        let mut dropped = 0;
        // What is pinned stays as it is, which its guest must expect of such pages.
        let ranges = if ram.is_pinned() { &[] } else { ranges };
        for range in ranges {
            match ram.discard(range) {
                Ok(bytes) => dropped += bytes,
                Err(error) if !std::mem::replace(&mut self.warned, true) => {
                    tracing::warn!(%error, "a guest's free memory cannot be given back to the host");
                }
                Err(_) => {}
            }
        }
        Ok(dropped)
    }

    /// Holds one buffer of statistics until new ones are wanted. Further buffers stay in the queue,
    /// so a driver causes no more work than the host asks for.
    fn exchange_statistics(
        &mut self,
        index: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, QueueError> {
        if self.asked
            && let Some(head) = self.held.take()
        {
            self.asked = false;
            rings.give_back(index, head, 0)?;
        }
        if self.held.is_none()
            && let Some(chain) = rings.take(index)?
        {
            self.held = Some(chain.head);
            self.asked = false;
            let values = read_statistics(chain, rings)?;
            self.statistics = Some(GuestStatistics { values, at: rings.now() });
        }
        Ok(Progress::Idle)
    }
}

fn read_statistics(mut chain: Chain, rings: &Rings<'_>) -> Result<Statistics, QueueError> {
    let len = chain.readable.bytes().min(statistics::BYTES_MAX as u64);
    let mut bytes = vec![0; len as usize];
    let pairs = chain.readable.take_front(len).ok_or(QueueError::Buffer)?;
    pairs.read(rings.ram().memory(), &mut bytes).map_err(|_| QueueError::Buffer)?;
    Ok(Statistics::from_bytes(&bytes))
}

impl Device for BalloonDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let always = feature::STATISTICS | feature::DEFLATE_ON_OOM | feature::PAGE_POISON;
        let free_pages = match self.free_pages {
            FreePages::Reported => feature::REPORTING | feature::HINTS,
            FreePages::Hinted => feature::HINTS,
        };
        always | free_pages
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; queues::COUNT]
    }

    fn config(&self) -> ConfigSpace {
        self.config.space()
    }

    fn activate(&mut self, features: u64) {
        self.features = Some(features);
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let is_set_up = |index| rings.is_set_up(index);
        match self.features.and_then(|features| queues::role(index, features, is_set_up)) {
            Some(Role::Inflate) => self.inflate(index, rings),
            Some(Role::Deflate) => rings.serve(index, DEFLATE_BATCH, |_, _| Ok(0)),
            Some(Role::Statistics) => self.exchange_statistics(index, rings),
            Some(Role::Hints) => self.take_hints(index, rings),
            Some(Role::Reporting) => self.take_reported(index, rings),
            None => Ok(Progress::Idle),
        }
    }

    /// Takes over the fields that the driver writes; the target and the hint command are the
    /// device's.
    fn config_written(&mut self, rings: &mut Rings<'_>) {
        let mut bytes = [0; config::BYTES];
        rings.read_config(&mut bytes);
        let Values { target_pages, hint_command, .. } = self.config;
        self.config = Values { target_pages, hint_command, ..Values::from_bytes(&bytes) };
    }

    /// Ends a hint command that was begun on another host: its requester is not here to end it.
    fn resumed(&mut self, rings: &mut Rings<'_>) {
        if std::mem::take(&mut self.hints.owes_done) {
            self.send_hint_command(rings);
        }
    }

    /// Keeps the target: it applies to the next driver too.
    fn reset(&mut self) {
        self.config = Values { target_pages: self.config.target_pages, ..Values::default() };
        self.features = None;
        self.held = None;
        self.asked = false;
        self.statistics = None;
        self.hints.forget();
    }

    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        let Values { target_pages, actual_pages, poison, .. } = self.config;
        let (held, hint_id, set_by) = (self.held, self.hints.id(), self.set_by);
        let saved = SavedBalloon { target_pages, actual_pages, poison, held, hint_id, set_by };
        saved.to_bytes().map_err(DeviceError::Config)
    }

    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        let SavedBalloon { target_pages, actual_pages, poison, held, hint_id, set_by } =
            SavedBalloon::from_bytes(state)?;
        if held.is_some_and(|head| head >= QUEUE_SIZE) {
            return Err("it keeps a buffer that its queue has no place for".to_owned());
        }
        self.hints = Hints::after(hint_id)?;
        let hint_command = self.hints.command();
        self.config = Values { target_pages, actual_pages, hint_command, poison };
        (self.held, self.set_by) = (held, set_by);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
