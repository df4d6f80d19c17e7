//! The settings' original values, on disk before the first change.
//!
//! Each entry holds a knob's original value and the two values that it may have been given here:
//! the last one written, and the one about to be written. After a crash, a knob that has one of
//! these two is restored. A knob that has any other value was changed by another process in the
//! meantime, and is left alone. A journal of an earlier boot is ignored: the kernel starts with its
//! defaults.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::KsmError;
use super::knob::Knob;
use crate::json;

/// The largest journal that is read, in bytes; the ones written here are below 1 KiB.
const BYTES_MAX: u64 = 16 << 10;

/// The only format version so far.
const VERSION: u32 = 1;

/// The changed knobs, in the order of each knob's first change.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    /// The `/proc/sys/kernel/random/boot_id` of the boot that the entries are from.
    boot: String,
    entries: Vec<Entry>,
}

/// One changed knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) knob: Knob,
    pub(super) original: u64,
    /// The value last written here.
    pub(super) written: u64,
    /// The value about to be written, or written already.
    pub(super) next: u64,
}

impl Entry {
    /// Returns whether `value` may have been written here.
    pub(super) const fn is_ours(&self, value: u64) -> bool {
        value == self.written || value == self.next
    }
}

impl Journal {
    /// Opens the journal at `path`, which need not exist. A journal of another boot counts as
    /// empty.
    pub(super) fn open(path: &Path, boot: &str) -> Result<Self, KsmError> {
        let empty = Content { version: VERSION, boot: boot.to_owned(), entries: Vec::new() };
        let content = match regular_file::read(path, BYTES_MAX) {
            Ok(bytes) => {
                let content = parse(&bytes).map_err(|cause| damaged(path, cause))?;
                if content.boot == boot { content } else { empty }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => empty,
            Err(error) => return Err(damaged(path, error.to_string())),
        };
        Ok(Self { path: path.to_owned(), content })
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.content.entries
    }

    pub(super) fn entry(&self, knob: Knob) -> Option<&Entry> {
        self.content.entries.iter().find(|entry| entry.knob == knob)
    }

    /// Records on disk that `knob`, whose value is `current`, is about to be set to `next`.
    pub(super) fn note(&mut self, knob: Knob, current: u64, next: u64) -> Result<(), KsmError> {
        let entries = &mut self.content.entries;
        match entries.iter_mut().find(|entry| entry.knob == knob) {
            Some(entry) => (entry.written, entry.next) = (current, next),
            None => entries.push(Entry { knob, original: current, written: current, next }),
        }
        self.write()
    }

    /// Records, in memory only, that `knob` has been set. After a crash the entry therefore allows
    /// both the old value and the new one, which does no harm.
    pub(super) fn settle(&mut self, knob: Knob) {
        if let Some(entry) = self.content.entries.iter_mut().find(|entry| entry.knob == knob) {
            entry.written = entry.next;
        }
    }

    /// Removes `knob` on disk; the last removal deletes the file.
    pub(super) fn forget(&mut self, knob: Knob) -> Result<(), KsmError> {
        self.content.entries.retain(|entry| entry.knob != knob);
        self.write()
    }

    fn write(&self) -> Result<(), KsmError> {
        let written = match self.content.entries.is_empty() {
            true => self.remove(),
            false => json::replace(&self.path, &self.content),
        };
        let file = || self.path.display().to_string();
        written.map_err(|cause| KsmError::Journal { file: file(), cause })
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => regular_file::sync_folder_of(&self.path),
        }
    }
}

fn damaged(path: &Path, cause: String) -> KsmError {
    KsmError::Damaged { file: path.display().to_string(), cause }
}

/// Parses and validates a journal. Whatever the bytes, every entry returned has a value that can be
/// written back to its knob.
fn parse(bytes: &[u8]) -> Result<Content, String> {
    let content: Content = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if content.version != VERSION {
        return Err(format!(
            "it has version {}, and this lighter knows {VERSION}",
            content.version
        ));
    }
    for (nth, entry) in content.entries.iter().enumerate() {
        let Entry { knob, original, .. } = *entry;
        if !knob.allows(original) {
            return Err(format!("{knob} cannot be {original}"));
        }
        if content.entries[..nth].iter().any(|earlier| earlier.knob == knob) {
            return Err(format!("it names {knob} twice"));
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_survive_a_crash_and_are_removed_after_the_last_restore() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ksm.json");
        let mut journal = Journal::open(&path, "boot").unwrap();
        journal.note(Knob::Run, 0, 1).unwrap();
        journal.note(Knob::PagesToScan, 100, 500).unwrap();
        journal.note(Knob::PagesToScan, 500, 900).unwrap();

        let mut after = Journal::open(&path, "boot").unwrap();
        assert_eq!(after.content, journal.content);
        let entry = after.entry(Knob::PagesToScan).unwrap();
        assert_eq!((entry.original, entry.written, entry.next), (100, 500, 900));
        assert!(entry.is_ours(500) && entry.is_ours(900) && !entry.is_ours(100));
        after.forget(Knob::Run).unwrap();
        after.forget(Knob::PagesToScan).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_boot_started_with_the_kernels_own_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ksm.json");
        Journal::open(&path, "yesterday").unwrap().note(Knob::Run, 0, 1).unwrap();
        assert!(Journal::open(&path, "today").unwrap().entries().is_empty());
    }

    #[test]
    fn a_file_that_is_not_a_journal_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ksm.json");
        let entry = r#"{"knob":"run","original":0,"written":0,"next":1}"#;
        let journal =
            |entries: &str| format!(r#"{{"version":1,"boot":"b","entries":[{entries}]}}"#);
        for bad in [
            String::new(),
            "{".to_owned(),
            journal(entry).replace("\"version\":1", "\"version\":2"),
            journal(&format!("{entry},{entry}")),
            journal(&entry.replace("\"original\":0", "\"original\":2")),
            journal(&entry.replace("run", "merge_across_nodes")),
            journal(&entry.replace("\"next\":1", "\"next\":-1")),
            " ".repeat(BYTES_MAX as usize + 1),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = Journal::open(&path, "b").unwrap_err();
            assert!(matches!(error, KsmError::Damaged { .. }), "{bad}: {error}");
            assert!(error.to_string().contains("ksm.json"));
        }
        fs::write(&path, journal(entry)).unwrap();
        assert_eq!(Journal::open(&path, "b").unwrap().entries().len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_journal_or_are_refused(
            text in r#"(\{"version":1,"boot":"b","entries":\[)?.{0,200}"#
        ) {
            let _ = parse(text.as_bytes());
        }
    }
}
