//! Exclusive control of ksmd's settings: one process per host, with the original values restored at
//! the end.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::error::KsmError;
use super::journal::{Entry, Journal};
use super::knob::{Foreign, Knob, Set};
use crate::observe::{KsmKnobs, ObserveError, Sources, ksm_knobs};

const FOLDER: &str = "sys/kernel/mm/ksm";

/// Changes ksmd's settings, and restores them: on request, on drop, and when the next process opens
/// the journal of one that was killed.
///
/// A setting's original value is in the journal, on disk, before the setting is changed. A setting
/// that another process has changed since then is foreign: it is reported, and neither written
/// again nor restored.
#[derive(Debug)]
pub struct Control {
    sources: Sources,
    journal: Journal,
    /// Foreign settings, left alone until the next `restore`.
    taken: Vec<Knob>,
    /// Released when this is dropped.
    _locks: [File; 2],
}

/// The result of restoring the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Settings that have their original values again.
    pub restored: Vec<Set>,
    /// Settings that another process changed in the meantime, which were left alone.
    pub foreign: Vec<Foreign>,
}

impl Control {
    /// Takes control of ksmd's settings, and restores those that a killed process left changed. The
    /// journal is at `journal`, in a folder that outlives this process; a lock file is created
    /// beside it.
    ///
    /// # Errors
    /// [`KsmError::Driven`] if another process has control, [`KsmError::Damaged`] if the journal
    /// cannot be read, [`KsmError::Observe`] on a kernel without KSM, [`KsmError::Write`] or
    /// [`KsmError::Journal`] if a setting cannot be restored.
    pub fn open(sources: &Sources, journal: &Path) -> Result<(Self, Restored), KsmError> {
        ksm_knobs(sources)?;
        let locks = [lock_beside(journal)?, lock_folder(sources)?];
        let boot = sources.read("proc/sys/kernel/random/boot_id")?;
        let journal = Journal::open(journal, boot.trim())?;
        let taken = Vec::new();
        let mut control = Self { sources: sources.clone(), journal, taken, _locks: locks };
        let restored = control.restore()?;
        Ok((control, restored))
    }

    /// Writes settings, in order. Settings that already have the wanted value are not touched.
    /// Settings that another process changed after they were written here, by this process or an
    /// earlier one, are left alone and reported once.
    ///
    /// # Errors
    /// [`KsmError::Value`] for a value that the knob cannot have, [`KsmError::Unmerged`] if merging
    /// is forbidden on this host, [`KsmError::Observe`], [`KsmError::Write`] or
    /// [`KsmError::Journal`] if a setting or the journal cannot be read or written. What was
    /// written before the error is restored on drop.
    pub fn apply(&mut self, sets: &[Set]) -> Result<Vec<Foreign>, KsmError> {
        let mut foreign = Vec::new();
        for Set { knob, value } in sets.iter().copied() {
            if !knob.allows(value) {
                return Err(KsmError::Value { knob, value });
            }
            if self.taken.contains(&knob) {
                continue;
            }
            let current = self.current(knob)?;
            if self.is_theirs(knob, current) {
                foreign.push(self.leave(knob, current)?);
            } else if current == value {
                // Nothing to change, and so nothing to restore.
            } else if knob == Knob::Run && current > 1 {
                return Err(KsmError::Unmerged);
            } else {
                self.journal.note(knob, current, value)?;
                // Flushing the journal takes time, in which another process may have written the
                // knob.
                let now = self.current(knob)?;
                if now == current {
                    self.write(knob, value)?;
                    self.journal.settle(knob);
                } else {
                    foreign.push(self.leave(knob, now)?);
                }
            }
        }
        Ok(foreign)
    }

    /// Returns whether another process has changed a setting that was written here.
    fn is_theirs(&self, knob: Knob, current: u64) -> bool {
        self.journal.entry(knob).is_some_and(|entry| !entry.is_ours(current))
    }

    /// Marks a setting as foreign: another process set it to `found`.
    fn leave(&mut self, knob: Knob, found: u64) -> Result<Foreign, KsmError> {
        let ours = self.journal.entry(knob).map_or(found, |entry| entry.written);
        self.taken.push(knob);
        self.journal.forget(knob)?;
        Ok(Foreign { knob, ours, found })
    }

    /// Restores all settings, the last change first.
    ///
    /// # Errors
    /// The first setting that cannot be restored. The others are restored nevertheless, and the
    /// journal keeps the failed one for the next attempt.
    pub fn restore(&mut self) -> Result<Restored, KsmError> {
        let mut restored = Restored::default();
        let mut failed = None;
        let entries: Vec<Entry> = self.journal.entries().to_vec();
        for entry in entries.into_iter().rev() {
            if let Err(error) = self.put_back(&entry, &mut restored) {
                failed.get_or_insert(error);
            }
        }
        self.taken.clear();
        failed.map_or(Ok(restored), Err)
    }

    fn put_back(&mut self, entry: &Entry, restored: &mut Restored) -> Result<(), KsmError> {
        let Entry { knob, original, .. } = *entry;
        let current = self.current(knob)?;
        if !entry.is_ours(current) && current != original {
            restored.foreign.push(Foreign { knob, ours: entry.next, found: current });
        } else if current != original {
            self.write(knob, original)?;
            restored.restored.push(Set { knob, value: original });
        }
        self.journal.forget(knob)
    }

    /// Reads the current settings.
    ///
    /// # Errors
    /// [`KsmError::Observe`] if they cannot be read.
    pub fn knobs(&self) -> Result<KsmKnobs, KsmError> {
        Ok(ksm_knobs(&self.sources)?)
    }

    fn current(&self, knob: Knob) -> Result<u64, KsmError> {
        let absent = || ObserveError::Absent { file: self.file(knob) };
        Ok(knob.of(&self.knobs()?).ok_or_else(absent)?)
    }

    fn write(&self, knob: Knob, value: u64) -> Result<(), KsmError> {
        let text = knob.text(value);
        // Does not create the file: a kernel without the knob has nothing to write to.
        let path = self.sources.path(relative(knob));
        let opened = OpenOptions::new().write(true).truncate(true).open(path);
        let written = opened.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|cause| KsmError::Write { file: self.file(knob), value: text, cause })
    }

    fn file(&self, knob: Knob) -> String {
        self.sources.path(relative(knob)).display().to_string()
    }
}

fn relative(knob: Knob) -> String {
    format!("{FOLDER}/{}", knob.file())
}

impl Drop for Control {
    fn drop(&mut self) {
        match self.restore() {
            Ok(restored) => {
                for foreign in restored.foreign {
                    tracing::warn!("{foreign}: it is left like that");
                }
            }
            Err(error) => tracing::error!("the settings of ksmd are not all put back: {error}"),
        }
    }
}

/// Keeps other processes from using this journal.
fn lock_beside(journal: &Path) -> Result<File, KsmError> {
    let mut path = journal.as_os_str().to_owned();
    path.push(".lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = journal.display().to_string();
    let opened = regular_file::open(Path::new(&path), &mut options);
    let opened = opened.map_err(|cause| KsmError::Journal { file, cause })?;
    try_lock(opened, Path::new(&path))
}

/// Keeps other processes on this host from driving ksmd, whatever their journals: this locks the
/// folder of the settings itself, which does not affect programs that ignore the lock. A process in
/// another network namespace may have a `/sys` of its own, and thus a lock of its own.
fn lock_folder(sources: &Sources) -> Result<File, KsmError> {
    let folder = sources.path(FOLDER);
    let file = folder.display().to_string();
    let opened = fs::File::open(&folder);
    try_lock(opened.map_err(|cause| ObserveError::Read { file, cause })?, &folder)
}

fn try_lock(opened: File, path: &Path) -> Result<File, KsmError> {
    let file = path.display().to_string();
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => Err(KsmError::Driven { file }),
        Err(TryLockError::Error(cause)) => Err(KsmError::Journal { file, cause }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A /sys and /proc made of plain files with the kernel's defaults.
    pub(in crate::ksm) struct Fixture {
        folder: tempfile::TempDir,
    }

    impl Fixture {
        pub(in crate::ksm) fn new() -> Self {
            let fixture = Self { folder: tempfile::tempdir().unwrap() };
            fs::create_dir_all(fixture.root().join(FOLDER)).unwrap();
            fs::create_dir_all(fixture.root().join("proc/sys/kernel/random")).unwrap();
            fs::write(fixture.root().join("proc/sys/kernel/random/boot_id"), "a-boot\n").unwrap();
            for (file, text) in [
                ("run", "0"),
                ("pages_to_scan", "100"),
                ("sleep_millisecs", "20"),
                ("smart_scan", "1"),
                ("use_zero_pages", "0"),
                ("advisor_mode", "[none] scan-time"),
            ] {
                fixture.set(file, text);
            }
            for file in ["shared", "sharing", "unshared", "volatile", "scanned"] {
                fixture.set(&format!("pages_{file}"), "0");
            }
            fixture.set("full_scans", "0");
            fixture
        }

        pub(in crate::ksm) fn root(&self) -> &Path {
            self.folder.path()
        }

        pub(in crate::ksm) fn set(&self, file: &str, text: &str) {
            fs::write(self.root().join(FOLDER).join(file), format!("{text}\n")).unwrap();
        }

        pub(in crate::ksm) fn get(&self, file: &str) -> String {
            let text = fs::read_to_string(self.root().join(FOLDER).join(file)).unwrap();
            text.trim().to_owned()
        }

        pub(in crate::ksm) fn sources(&self) -> Sources {
            Sources::at(self.root())
        }

        pub(in crate::ksm) fn journal(&self) -> PathBuf {
            self.root().join("ksm.json")
        }

        fn open(&self) -> Result<(Control, Restored), KsmError> {
            Control::open(&self.sources(), &self.journal())
        }
    }

    fn sets(sets: &[(Knob, u64)]) -> Vec<Set> {
        sets.iter().map(|(knob, value)| Set::new(*knob, *value)).collect()
    }

    #[test]
    fn changed_settings_are_restored_on_release() {
        let fixture = Fixture::new();
        let (mut control, restored) = fixture.open().unwrap();
        assert_eq!(restored, Restored::default());
        let wanted = sets(&[(Knob::PagesToScan, 700), (Knob::SmartScan, 1), (Knob::Run, 1)]);
        assert_eq!(control.apply(&wanted).unwrap(), []);
        assert_eq!((fixture.get("run"), fixture.get("pages_to_scan")), ("1".into(), "700".into()));
        assert!(fixture.journal().exists());
        drop(control);
        assert_eq!((fixture.get("run"), fixture.get("pages_to_scan")), ("0".into(), "100".into()));
        assert!(!fixture.journal().exists());
    }

    #[test]
    fn the_next_driver_restores_the_settings_of_a_killed_one() {
        let fixture = Fixture::new();
        let (mut control, _) = fixture.open().unwrap();
        control.apply(&sets(&[(Knob::SleepMillisecs, 50), (Knob::Run, 1)])).unwrap();
        let journal = fs::read(fixture.journal()).unwrap();
        drop(control);
        // As if the process had been killed.
        fs::write(fixture.journal(), journal).unwrap();
        fixture.set("sleep_millisecs", "50");
        fixture.set("run", "1");

        let (_control, restored) = fixture.open().unwrap();
        assert_eq!(restored.restored, sets(&[(Knob::Run, 0), (Knob::SleepMillisecs, 20)]));
        assert_eq!((fixture.get("run"), fixture.get("sleep_millisecs")), ("0".into(), "20".into()));
    }

    #[test]
    fn settings_changed_by_others_are_kept() {
        let fixture = Fixture::new();
        let (mut control, _) = fixture.open().unwrap();
        control.apply(&sets(&[(Knob::PagesToScan, 700), (Knob::Run, 1)])).unwrap();
        fixture.set("pages_to_scan", "1250");
        let foreign = Foreign { knob: Knob::PagesToScan, ours: 700, found: 1250 };
        let again = sets(&[(Knob::PagesToScan, 900)]);
        assert_eq!(control.apply(&again).unwrap(), [foreign]);
        assert_eq!(control.apply(&again).unwrap(), [], "told once");
        assert_eq!(fixture.get("pages_to_scan"), "1250");

        // A setting is foreign even if the other process wrote the original value back.
        control.apply(&sets(&[(Knob::SleepMillisecs, 50)])).unwrap();
        fixture.set("sleep_millisecs", "20");
        let foreign = Foreign { knob: Knob::SleepMillisecs, ours: 50, found: 20 };
        assert_eq!(control.apply(&sets(&[(Knob::SleepMillisecs, 60)])).unwrap(), [foreign]);

        fixture.set("run", "2");
        let restored = control.restore().unwrap();
        assert_eq!(restored.foreign, [Foreign { knob: Knob::Run, ours: 1, found: 2 }]);
        assert_eq!((fixture.get("run"), fixture.get("pages_to_scan")), ("2".into(), "1250".into()));
    }

    #[test]
    fn an_unmerged_host_is_left_unchanged() {
        let fixture = Fixture::new();
        fixture.set("run", "2");
        let (mut control, _) = fixture.open().unwrap();
        let error = control.apply(&sets(&[(Knob::Run, 1)])).unwrap_err();
        assert!(matches!(error, KsmError::Unmerged), "{error}");
        assert_eq!(fixture.get("run"), "2");
    }

    #[test]
    fn two_drivers_are_refused_with_one_journal_or_with_two() {
        let fixture = Fixture::new();
        let (control, _) = fixture.open().unwrap();
        let other = fixture.root().join("other.json");
        for journal in [fixture.journal(), other.clone()] {
            let error = Control::open(&fixture.sources(), &journal).unwrap_err();
            assert!(matches!(error, KsmError::Driven { .. }), "{error}");
        }
        drop(control);
        Control::open(&fixture.sources(), &other).unwrap();
    }

    #[test]
    fn a_damaged_journal_changes_nothing() {
        let fixture = Fixture::new();
        fs::write(fixture.journal(), "{}").unwrap();
        fixture.set("run", "1");
        assert!(matches!(fixture.open().unwrap_err(), KsmError::Damaged { .. }));
        assert_eq!(fixture.get("run"), "1");
        assert!(fixture.journal().exists());
    }

    #[test]
    fn nothing_is_written_that_the_journal_cannot_hold() {
        let fixture = Fixture::new();
        let folder = fixture.root().join("gone");
        fs::create_dir(&folder).unwrap();
        let (mut control, _) = Control::open(&fixture.sources(), &folder.join("ksm.json")).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let error = control.apply(&sets(&[(Knob::Run, 1)])).unwrap_err();
        assert!(matches!(error, KsmError::Journal { .. }), "{error}");
        assert_eq!(fixture.get("run"), "0");
    }

    #[test]
    fn knobs_and_kernels_are_named_when_they_do_not_fit() {
        let fixture = Fixture::new();
        let (mut control, _) = fixture.open().unwrap();
        let error = control.apply(&sets(&[(Knob::Run, 2)])).unwrap_err();
        assert_eq!(error.to_string(), "run cannot be 2");
        fs::remove_file(fixture.root().join(FOLDER).join("smart_scan")).unwrap();
        let error = control.apply(&sets(&[(Knob::SmartScan, 0)])).unwrap_err();
        assert!(error.to_string().contains("ksm/smart_scan"), "{error}");
    }
}
