//! A run that is being changed, within a transaction.

use redb::{ReadableTable as _, ReadableTableMetadata as _, WriteTransaction};

use super::error::{Fault, HistoryError};
use super::json::{from_json, to_json};
use super::limits::{Limits, TICKS_MAX};
use super::run::{RunId, State};
use super::tables::{HEADS, Head, META, META_BYTES, META_NEXT, TICKS};

/// A run that is being changed.
pub(super) struct Draft<'a> {
    pub(super) write: &'a WriteTransaction,
    pub(super) limits: &'a Limits,
    pub(super) id: RunId,
    pub(super) head: Head,
}

impl<'a> Draft<'a> {
    /// The run `id`, which has not ended.
    pub(super) fn of(
        write: &'a WriteTransaction,
        limits: &'a Limits,
        id: RunId,
    ) -> Result<Self, Fault> {
        let heads = write.open_table(HEADS)?;
        let head = heads.get(id.0)?.ok_or(Fault::Wanted(HistoryError::NoSuchRun(id)))?;
        let head: Head = from_json("the record", id, head.value())?;
        match head.state {
            state if state.is_final() => Err(Fault::Wanted(HistoryError::Ended { run: id, state })),
            _ => Ok(Self { write, limits, id, head }),
        }
    }

    /// Takes so many more bytes.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.head.bytes = self.head.bytes.saturating_add(bytes as u64);
        if self.head.bytes > self.limits.run_bytes_max {
            return Err(too_large("a run", format!("{} bytes", self.limits.run_bytes_max)));
        }
        let mut meta = self.write.open_table(META)?;
        let all = meta.get(META_BYTES)?.map_or(0, |bytes| bytes.value());
        meta.insert(META_BYTES, all.saturating_add(bytes as u64))?;
        Ok(())
    }

    /// Puts it into the transaction.
    pub(super) fn save(self) -> Result<(), Fault> {
        let json = to_json("the record", &self.head, usize::MAX).map_err(Fault::Wanted)?;
        self.write.open_table(HEADS)?.insert(self.id.0, json.as_slice())?;
        Ok(())
    }
}

/// The number of a run that begins.
pub(super) fn take_id(write: &WriteTransaction) -> Result<u64, Fault> {
    let mut meta = write.open_table(META)?;
    let next = meta.get(META_NEXT)?.map(|next| next.value());
    let last = write.open_table(HEADS)?.last()?.map(|(id, _)| id.value());
    let id = next.unwrap_or(1).max(last.unwrap_or(0).saturating_add(1));
    meta.insert(META_NEXT, id.saturating_add(1))?;
    Ok(id)
}

/// Marks the runs that nobody has ended: whoever opens a history knows that nobody else is at it.
pub(super) fn end_interrupted(write: &WriteTransaction) -> Result<Vec<RunId>, Fault> {
    let mut heads = write.open_table(HEADS)?;
    let mut interrupted = Vec::new();
    for entry in heads.iter()? {
        let (id, head) = entry?;
        match serde_json::from_slice::<Head>(head.value()) {
            Ok(head) if !head.state.is_final() => interrupted.push((id.value(), head)),
            _ => {}
        }
    }
    for (id, head) in &mut interrupted {
        head.state = State::Interrupted;
        let json = to_json("the record", head, usize::MAX).map_err(Fault::Wanted)?;
        heads.insert(*id, json.as_slice())?;
    }
    Ok(interrupted.into_iter().map(|(id, _)| RunId(id)).collect())
}

/// Remembers the last time of a schedule; of too many schedules, whoever was decided on longest ago
/// is forgotten.
pub(super) fn keep_tick(write: &WriteTransaction, schedule: &str, tick: u64) -> Result<(), Fault> {
    let mut ticks = write.open_table(TICKS)?;
    ticks.insert(schedule, tick)?;
    if ticks.len()? > TICKS_MAX {
        let mut oldest: Option<(u64, String)> = None;
        for entry in ticks.iter()? {
            let (name, tick) = entry?;
            let is_older = oldest.as_ref().is_none_or(|(oldest, _)| tick.value() < *oldest);
            if is_older && name.value() != schedule {
                oldest = Some((tick.value(), name.value().to_owned()));
            }
        }
        if let Some((_, name)) = oldest {
            ticks.remove(name.as_str())?;
        }
    }
    Ok(())
}

/// Too much of something.
pub(super) fn too_large(what: &'static str, max: String) -> Fault {
    Fault::Wanted(HistoryError::TooLarge { what, max })
}
