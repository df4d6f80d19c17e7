//! What is thrown away: the oldest runs, a few at a time.

use redb::{ReadableTable as _, ReadableTableMetadata as _, Table, WriteTransaction};

use super::error::Fault;
use super::limits::Limits;
use super::tables::{DEEDS, HEADS, Head, META, META_BYTES, PLANS};

/// Most runs that one transaction throws away: whoever lowers a limit does not wait for all of it
/// at once.
const PRUNED_MAX: usize = 64;

/// Throws away the oldest runs while there are too many, or too large ones. Runs under way stay.
pub(super) fn prune(write: &WriteTransaction, limits: &Limits) -> Result<(), Fault> {
    let mut heads = write.open_table(HEADS)?;
    let mut meta = write.open_table(META)?;
    let mut bytes = meta.get(META_BYTES)?.map_or(0, |bytes| bytes.value());
    let mut runs = heads.len()?;
    let mut gone = Vec::new();
    for entry in heads.iter()?.take(PRUNED_MAX) {
        if runs <= limits.runs_max && bytes <= limits.bytes_max {
            break;
        }
        let (id, head) = entry?;
        // What cannot be read cannot be under way either: opening would have ended it.
        let head = serde_json::from_slice::<Head>(head.value()).ok();
        if head.as_ref().is_some_and(|head| !head.state.is_final()) {
            continue;
        }
        bytes = bytes.saturating_sub(head.map_or(0, |head| head.bytes));
        runs -= 1;
        gone.push(id.value());
    }
    let mut plans = write.open_table(PLANS)?;
    let mut deeds = write.open_table(DEEDS)?;
    for id in gone {
        heads.remove(id)?;
        plans.remove(id)?;
        remove_deeds(&mut deeds, id)?;
    }
    meta.insert(META_BYTES, bytes)?;
    Ok(())
}

fn remove_deeds(deeds: &mut Table<'_, (u64, u32), &'static [u8]>, id: u64) -> Result<(), Fault> {
    deeds.retain_in((id, 0)..=(id, u32::MAX), |_, _| false)?;
    Ok(())
}
