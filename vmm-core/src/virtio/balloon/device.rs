//! The balloon as a device.
//!
//! Dropping pages is up to the device, so what cannot be dropped is answered like the rest, and the
//! log hears of it once. A driver that names what is not RAM breaks the queue. Pages in the balloon
//! are dropped whatever their poison: the driver writes them anew when it takes them back. Reported
//! pages come back as they are, so they are only dropped while a page of zeros is what the driver
//! wants (5.5.6.7).

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
/// Most pages in a request to inflate. Linux sends 256; a longer request breaks the queue.
const PFNS_MAX: usize = 4096;
/// Requests to inflate that are served before the thread looks for other work. A pause waits for so
/// many at most, that is for 16,384 system calls in the worst case, some 20 ms.
const INFLATE_BATCH: usize = 4;
/// Most bytes of one hint that count, and hints that are looked at at a time: a hint costs no
/// system call.
const HINT_BYTES_MAX: u64 = REPORT_BYTES_MAX;
const HINT_BATCH: usize = 64;
/// Requests to deflate that are served at a time; they are only answered.
const DEFLATE_BATCH: usize = 64;
/// Most bytes dropped for one report; the rest stays where it is. Linux reports up to 128 MiB at a
/// time.
const REPORT_BYTES_MAX: u64 = 256 << 20;
/// Reports that are served at a time.
const REPORT_BATCH: usize = 4;

/// Memory that was dropped since the device was created on this host, as far as the host got it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes that were put into the balloon, each time that they were.
    pub inflated_bytes: u64,
    /// Bytes that were reported as free, each time that they were.
    pub reported_bytes: u64,
}

/// Statistics, and when they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestStatistics {
    /// What the guest says.
    pub(crate) values: Statistics,
    /// When it said so.
    pub(crate) at: Instant,
}

impl GuestStatistics {
    /// How long ago it said so.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// How a balloon stands, in pages of 4096 bytes; see [`crate::Vm::balloon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BalloonReport {
    /// Whether the guest has a driver that is ready.
    pub(crate) has_driver: bool,
    /// Whether the driver reports free pages, and they can be dropped.
    pub(crate) reporting: bool,
    /// Whether the driver sends statistics.
    pub(crate) sends_statistics: bool,
    /// Whether the driver says which pages are free when a migration asks, and that is of use.
    pub(crate) gives_hints: bool,
    /// Pages that the driver shall give up.
    pub(crate) target_pages: u32,
    /// Who has set that.
    pub(crate) set_by: SetBy,
    /// Pages that it says to have given up: anything, from a hostile one.
    pub(crate) actual_pages: u32,
    /// What was dropped here.
    pub(crate) discarded: Discarded,
    /// The last statistics.
    pub(crate) statistics: Option<GuestStatistics>,
}

/// What a driver is offered to tell of free pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FreePages {
    /// It reports them as they come; one that cannot names them when it is asked.
    #[default]
    Reported,
    /// It names them when it is asked.
    Hinted,
}

/// Who has set a balloon's target. It goes wherever the guest goes: an optimizer that takes memory
/// gives it back, but leaves what an operator has set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SetBy {
    /// An operator, or nobody yet.
    #[default]
    Operator,
    /// The optimizer of a host's memory.
    Optimizer,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct BalloonDevice {
    free_pages: FreePages,
    config: Values,
    set_by: SetBy,
    /// Those that the driver has accepted; `None` until it is ready.
    features: Option<u64>,
    /// The buffer that the driver has put its last statistics into, by its head.
    held: Option<u16>,
    /// New statistics are wanted.
    asked: bool,
    statistics: Option<GuestStatistics>,
    hints: Hints,
    discarded: Discarded,
    /// The log hears once of what cannot be dropped.
    complained: bool,
}

impl BalloonDevice {
    /// A balloon that learns of free pages in this way.
    pub(crate) fn new(free_pages: FreePages) -> Self {
        Self { free_pages, ..Self::default() }
    }

    /// How it stands.
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

    /// Sets how many pages the driver shall give up, and tells it.
    pub(crate) fn set_target(&mut self, pages: u32, by: SetBy, rings: &Rings<'_>) {
        self.config.target_pages = pages;
        self.set_by = by;
        rings.change_config(|bytes| {
            if let Some(place) = bytes.first_chunk_mut() {
                *place = pages.to_le_bytes();
            }
        });
    }

    /// Asks for new statistics, as soon as the statistics queue is looked at.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    /// Asks the driver which pages are free, if it can tell. Hints are not asked for where pages
    /// are reported: those are zeros already, and a guest that clears what it takes would fill them
    /// for nothing.
    pub(crate) fn begin_hints(&mut self, rings: &Rings<'_>) {
        if self.gives_hints() {
            self.hints.begin(rings.ram());
            self.tell_hint_command(rings);
        }
    }

    /// How far the driver is with its hints.
    pub(crate) fn hint_progress(&self) -> HintProgress {
        self.hints.progress()
    }

    /// Has the driver take its pages back; returns those that it named, a word for each chunk, or
    /// nothing.
    pub(crate) fn end_hints(&mut self, rings: &Rings<'_>) -> Vec<u64> {
        if !self.hints.is_asking() {
            return Vec::new();
        }
        let words = self.hints.end();
        self.tell_hint_command(rings);
        words
    }

    fn tell_hint_command(&mut self, rings: &Rings<'_>) {
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

    /// Notes what the driver names. A buffer to read is a command's id, one to write is free
    /// memory; nothing is written there.
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
        for range in ranges {
            match ram.discard(range) {
                Ok(bytes) => dropped += bytes,
                Err(error) if !std::mem::replace(&mut self.complained, true) => {
                    tracing::warn!(%error, "a guest's free memory cannot be given back to the host");
                }
                Err(_) => {}
            }
        }
        Ok(dropped)
    }

    /// Keeps one buffer of statistics until new ones are wanted. Others wait in the queue: a driver
    /// makes no more work than the host asks for.
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

    /// What is the driver's own is taken over; the target and the command are not.
    fn config_written(&mut self, rings: &mut Rings<'_>) {
        let mut bytes = [0; config::BYTES];
        rings.read_config(&mut bytes);
        let Values { target_pages, hint_command, .. } = self.config;
        self.config = Values { target_pages, hint_command, ..Values::from_bytes(&bytes) };
    }

    /// Whoever asked for hints elsewhere is not here to end them.
    fn resumed(&mut self, rings: &mut Rings<'_>) {
        if std::mem::take(&mut self.hints.owes_done) {
            self.tell_hint_command(rings);
        }
    }

    /// The target stays: the next driver shall keep to it too.
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
