//! The file: its tables, how it is opened, and a wall around the store that panics do not pass.
//!
//! redb checks what it reads and yet asserts here and there; a damaged file must cost the history
//! and not the node. So every call of it is inside [`guarded`], and what has panicked is not used
//! again.

use std::any::Any;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Database, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Fault, HistoryError};
use super::limits::Limits;
use super::run::State;
use crate::schedule::Trigger;

/// The format of the tables and of what is in them.
pub(super) const FORMAT: u64 = 1;
/// Numbers by name: see the keys below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The format.
pub(super) const META_FORMAT: &str = "format";
/// The number of the next run.
pub(super) const META_NEXT: &str = "next-run";
/// Bytes of all runs.
pub(super) const META_BYTES: &str = "bytes";
/// [`Head`]s by run, as JSON.
pub(super) const HEADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");
/// Plans by run, as JSON.
pub(super) const PLANS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("plans");
/// Deeds by run and place, as JSON.
pub(super) const DEEDS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("actions");

/// The last time of each schedule that was decided on, by its name, in Unix seconds.
pub(super) const TICKS: TableDefinition<'_, &str, u64> = TableDefinition::new("ticks");

/// Memory that the store may keep of the file.
const CACHE_BYTES: usize = 4 << 20;

/// A run without its plan and its deeds, as it is in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) trigger: Trigger,
    pub(super) started: u64,
    pub(super) ended: Option<u64>,
    pub(super) state: State,
    pub(super) actions: u32,
    pub(super) expected_bytes: i64,
    pub(super) verified_bytes: i64,
    pub(super) outcome: Option<Value>,
    pub(super) errors: Vec<String>,
    /// Bytes of its plan and its deeds.
    pub(super) bytes: u64,
}

/// Calls the store; a panic of it is a damaged file.
pub(super) fn guarded<T>(
    path: &Path,
    body: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, HistoryError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|fault| fault.at(path.to_owned())),
        Err(panic) => {
            Err(HistoryError::Damaged { path: path.to_owned(), cause: panic_text(panic.as_ref()) })
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("its store gave up ({})", text.unwrap_or("for no reason that it tells"))
}

/// Opens or makes the file at `path` and checks all of it, checksums too. Also tells whether
/// something had to be repaired.
pub(super) fn open(path: &Path, limits: &Limits) -> Result<(Database, bool), HistoryError> {
    let io = |cause| HistoryError::Io { path: path.to_owned(), cause };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let mut open = || {
        let file = regular_file::open(path, &mut options).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok((file, length))
    };
    let (mut file, mut length) = open()?;
    if length == 0 {
        make(path)?;
        (file, length) = open()?;
    }
    if length > limits.file_bytes_max() {
        let cause = format!("it has {length} bytes, more than any history");
        return Err(HistoryError::Damaged { path: path.to_owned(), cause });
    }
    guarded(path, || {
        let mut database = Database::builder().set_cache_size(CACHE_BYTES).create_file(file)?;
        let is_whole = database.check_integrity()?;
        Ok((database, !is_whole))
    })
}

/// Puts a history without runs at `path`: at once, so that a full disk or a power cut leaves none
/// that is damaged.
fn make(path: &Path) -> Result<(), HistoryError> {
    let new = path.with_added_extension("new");
    let made = guarded(path, || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        drop(Database::builder().create_file(regular_file::open(&new, &mut options)?)?);
        std::fs::rename(&new, path)?;
        Ok(regular_file::sync_folder_of(path)?)
    });
    if made.is_err() {
        // It would take room on a full disk.
        let _ = std::fs::remove_file(&new);
    }
    made
}

/// Makes the tables where there are none, and refuses those of another format.
pub(super) fn prepare(path: &Path, write: &WriteTransaction) -> Result<(), Fault> {
    let mut meta = write.open_table(META)?;
    let found = meta.get(META_FORMAT)?.map(|format| format.value());
    match found {
        Some(FORMAT) => {}
        None if meta.first()?.is_none() => {
            meta.insert(META_FORMAT, FORMAT)?;
            meta.insert(META_NEXT, 1)?;
            meta.insert(META_BYTES, 0)?;
        }
        other => {
            return Err(Fault::Wanted(HistoryError::OtherFormat {
                path: path.to_owned(),
                found: other.map_or_else(|| "none".to_owned(), |format| format.to_string()),
                known: FORMAT.to_string(),
            }));
        }
    }
    write.open_table(HEADS)?;
    write.open_table(PLANS)?;
    write.open_table(DEEDS)?;
    write.open_table(TICKS)?;
    Ok(())
}
