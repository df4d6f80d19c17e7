//! Refuses to start a guest on a disk that a guest on another host may be writing.
//!
//! The lock on a block device does not reach other hosts, and names do not help: a guest may be
//! restored or defined under another name. So this goes by the disk: `departures` records with
//! which shared disks a guest has left.

use std::path::Path;

use anyhow::{Result, bail};

use crate::departures::{Departure, Noted, about};
use crate::other_host::{Occasion, OtherHost};
use crate::state_dir::StateDir;
use crate::verbs::session::block_on;
use crate::whereabouts::Whereabouts;

/// Refuses each of `disks`, which a guest would write here, if a guest that has left with it may be
/// writing it elsewhere. Asks the hosts to which that guest has moved.
///
/// # Errors
/// If such a guest is on another host, or that cannot be determined; the message says how to use
/// the disk anyway.
pub(crate) fn expect_free<'a>(
    state: &StateDir,
    disks: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    let departures = state.departures().with_shared_disks();
    for disk in disks {
        for Noted { file, departure } in about(&departures, disk) {
            if let Some(why) = why_elsewhere(state, departure)? {
                bail!(
                    "disk {} belongs to the guest {}, which {why}: two guests that write one disk destroy its content. If that guest \
                     runs nowhere, `rm {}`",
                    disk.display(),
                    departure.guest,
                    file.display()
                );
            }
        }
    }
    Ok(())
}

/// Returns where the guest may be that left with `departure`: completes the sentence "web-1 ...".
/// `None` if it is back, or gone.
fn why_elsewhere(state: &StateDir, departure: &Departure) -> Result<Option<String>> {
    let guest = &departure.guest;
    let mut records = state.records()?.of(guest.as_str(), Some(departure.uuid))?;
    records.retain(|record| record.guest_uuid == departure.uuid);
    let Some(why) = Whereabouts::by_records(&records).elsewhere() else { return Ok(None) };
    let asked = async { Ok(OtherHost::ask_by(state, guest, &records, Occasion::Elsewhere).await) };
    Ok(match block_on(asked)? {
        Some(other) if other.is_gone() => None,
        Some(other) => Some(format!("{why}; {}", other.says())),
        None => Some(why),
    })
}
