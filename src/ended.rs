//! How the last guests ended, one small file each, and the end of their console output. `lighter
//! ls` shows how they ended. A start consults it, since only this file says that a guest was saved.
//!
//! A guest's process writes `ended/guests/NAME/ended.json` in the state folder just before it
//! exits, and `console.log` beside it; UEFI variables also while the guest runs. It writes in no
//! other guest's folder. A process that is killed writes nothing. The next guest of the same name
//! removes the record when it runs. The first process that finds the folder of a killed one records
//! that it died, and keeps its logs here. Earlier versions wrote `ended/NAME.json`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::names::GuestName;
use crate::units::format_uptime;

/// Most files kept of guests that are neither defined here nor saved; beyond that, the oldest are
/// removed.
const FILES_MAX: usize = 100;

/// How the reason of a guest that was saved begins; the file's path follows.
pub(crate) const SAVED_TO: &str = "was saved to ";

/// Logs that are kept of a guest, the most useful first. A process that ends by itself keeps the
/// first.
pub(crate) const KEPT_LOGS: [&str; 3] = [CONSOLE_LOG, "lighter.log", "console.log.old"];

/// The record of a failure after which the guest was started again.
const FAILED: &str = "failed.json";

/// The kept output of a guest's console.
const CONSOLE_LOG: &str = "console.log";

/// The UEFI variables of a guest with firmware.
const VARIABLES: &str = "uefi-variables.fd";

/// Largest kept output that is read, in bytes.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// Most characters that are added to a record's reason.
const ADDED_CHARACTERS_MAX: usize = 1000;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself, and was configured not to boot again.
    Reset,
    /// A user destroyed it.
    Destroyed,
    /// It could not continue, because of an error.
    Crashed,
    /// It migrated to another host.
    Moved,
    /// It was saved to a file.
    Saved,
    /// This host's copy of it was discarded.
    Discarded,
    /// Its process was killed or crashed, or its host went down.
    Died,
}

impl How {
    /// Whether the guest ended by an error, rather than by its own or a user's decision.
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Self::Crashed | Self::Died)
    }
}

/// A guest that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The guest's name on this host.
    pub(crate) name: GuestName,
    /// UUID of the guest.
    pub(crate) uuid: uuid::Uuid,
    /// When its process started on this host, in milliseconds since 1970; 0 if unknown.
    #[serde(default)]
    pub(crate) began_unix_ms: u64,
    /// When it ended, in milliseconds since 1970; of one that died, when that was found.
    pub(crate) ended_unix_ms: u64,
    /// How it ended.
    pub(crate) how: How,
    /// How it ended, in words: completes the sentence "web-1 ...".
    pub(crate) reason: String,
    /// Bytes that it wrote on its serial console in this process; 0 if unknown.
    #[serde(default)]
    pub(crate) console_bytes: u64,
}

impl Ended {
    /// Returns the file to which the guest was saved, if it was.
    pub(crate) fn saved_to(&self) -> Option<&Path> {
        let file = self.reason.strip_prefix(SAVED_TO).filter(|_| self.how == How::Saved);
        file.map(Path::new)
    }

    /// Whether this is about the guest `uuid` of the process that started at that time, in
    /// milliseconds since 1970.
    pub(crate) fn is_of(&self, uuid: uuid::Uuid, began_unix_ms: u64) -> bool {
        self.uuid == uuid && self.began_unix_ms == began_unix_ms
    }

    /// Formats how long ago the guest ended: "3m 01s ago". Of one that died, only the time at which
    /// that was found is known, such as the host's next boot: "over 3m 01s ago".
    pub(crate) fn ago(&self) -> String {
        let at = UNIX_EPOCH + Duration::from_millis(self.ended_unix_ms);
        let age = format_uptime(SystemTime::now().duration_since(at).unwrap_or_default());
        if self.how == How::Died { format!("over {age} ago") } else { format!("{age} ago") }
    }
}

/// Returns the command that continues the guest `name`, which was saved, by the `reason` of its
/// record.
pub(crate) fn restore_command(name: &GuestName, reason: &str) -> String {
    let file = reason.strip_prefix(SAVED_TO).filter(|file| is_one_word(file));
    format!("lighter restore {} --name {name}", file.unwrap_or("FILE"))
}

/// Whether a shell takes this text, which another process may have written, for one word.
fn is_one_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+,@%".contains(&byte))
}

/// The record of how the last guest of a name ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndRecord {
    /// The guest's name on this host.
    pub(crate) name: GuestName,
    /// What the record says, or what is wrong with it and what to do.
    pub(crate) end: Result<Ended, String>,
}

/// The folder of these files.
#[derive(Debug, Clone)]
pub(crate) struct EndedGuests {
    folder: PathBuf,
}

impl EndedGuests {
    /// Uses the files in `folder`, whether or not it exists.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the folder that contains each guest's folder, by name.
    pub(crate) fn places(&self) -> PathBuf {
        self.folder.join("guests")
    }

    /// Returns the folder in which the process of the guest `name` records how it ended.
    pub(crate) fn place(&self, name: &GuestName) -> PathBuf {
        self.places().join(name.as_str())
    }

    /// Returns the path of the UEFI variables that the guest `name` has or, once it has ended, has
    /// left.
    pub(crate) fn variables(&self, name: &GuestName) -> PathBuf {
        self.place(name).join(VARIABLES)
    }

    /// Creates that folder.
    ///
    /// # Errors
    /// If a folder cannot be created.
    pub(crate) fn create_place(&self, name: &GuestName) -> Result<()> {
        for folder in [self.places(), self.place(name)] {
            regular_file::create_folder(&folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        Ok(())
    }

    /// Moves files of earlier versions to where this version has them, then removes the oldest
    /// files if there are too many. Files of guests that are defined here or saved stay.
    pub(crate) fn tidy(&self, is_defined: impl Fn(&GuestName) -> bool) {
        for name in self.in_earlier_files() {
            if let Err(error) = self.put_in_place(&name) {
                let file = self.earlier_file(&name);
                tracing::warn!(file = %file.display(), "cannot put it in its place: {error:#}");
            }
        }
        self.forget_oldest(is_defined);
    }

    /// Moves the file of an earlier version to its new place, unless a later one is there.
    fn put_in_place(&self, name: &GuestName) -> Result<()> {
        let (from, to) = (self.earlier_file(name), self.file(name));
        let at = |path| read(path).map(|ended| ended.ended_unix_ms);
        if at(&to) > at(&from) {
            return Ok(fs::remove_file(from)?);
        }
        self.create_place(name)?;
        fs::rename(&from, &to)?;
        Ok(regular_file::sync_folder_of(&to)?)
    }

    /// Records how a guest ended, and removes the logs of an earlier guest of this name.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, ended: &Ended) -> Result<()> {
        self.remove_logs(&ended.name);
        durable::write_json(&self.file(&ended.name), ended)
    }

    /// Adds `more` to the reason in the record `ended`; the guest's logs stay.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn add_to_reason(&self, ended: &Ended, more: &str) -> Result<()> {
        let more: String = more.chars().take(ADDED_CHARACTERS_MAX).collect();
        let reason = format!("{}; {more}", ended.reason);
        durable::write_json(&self.file(&ended.name), &Ended { reason, ..ended.clone() })
    }

    /// Removes the logs of the last guest of this name, and the record of its failure.
    fn remove_logs(&self, name: &GuestName) {
        for file in KEPT_LOGS.iter().chain([&FAILED]) {
            // It may not exist, and it does no harm if it stays.
            let _removed = fs::remove_file(self.place(name).join(file));
        }
    }

    /// Moves the log at `from`, of the guest `name` whose end is recorded, to where it is kept as
    /// `log`, unless it is empty or the guest's process has kept its own.
    ///
    /// # Errors
    /// If the file cannot be moved.
    pub(crate) fn keep_log(&self, name: &GuestName, log: &str, from: &Path) -> Result<()> {
        let kept = self.place(name).join(log);
        let has_text =
            fs::symlink_metadata(from).is_ok_and(|found| found.is_file() && found.len() > 0);
        if has_text && !kept.exists() {
            fs::rename(from, &kept).with_context(|| format!("cannot keep {}", kept.display()))?;
        }
        Ok(())
    }

    /// Whether there is a record of how the last guest of this name ended, damaged or not.
    pub(crate) fn is_recorded(&self, name: &GuestName) -> bool {
        self.files(name).iter().any(|file| file.exists())
    }

    /// Keeps `output`, the end of the console output of the guest `name`, whose end is recorded.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn keep_console(&self, name: &GuestName, output: &[u8]) -> Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        let path = self.place(name).join(CONSOLE_LOG);
        regular_file::replace_unflushed(&path, output)
            .with_context(|| format!("cannot keep the console's output in {}", path.display()))
    }

    /// Returns the console output of the last guest of this name from byte `from` of its process
    /// on, as far as it is kept.
    pub(crate) fn console_from(&self, name: &GuestName, from: u64) -> Vec<u8> {
        let Some(ended) = self.read(name) else { return Vec::new() };
        let kept = regular_file::read(&self.place(name).join(CONSOLE_LOG), CONSOLE_BYTES_MAX);
        let kept = kept.unwrap_or_default();
        let unseen =
            usize::try_from(ended.console_bytes.saturating_sub(from)).unwrap_or(usize::MAX);
        kept.get(kept.len().saturating_sub(unseen)..).unwrap_or_default().to_vec()
    }

    /// Returns the kept console log of the last guest of this name, or else its process's log.
    pub(crate) fn log_of(&self, name: &GuestName) -> Option<PathBuf> {
        let logs = KEPT_LOGS.map(|log| self.place(name).join(log));
        logs.into_iter().find(|log| log.exists())
    }

    /// Removes temporary files that a crash may have left for the guest `name`, which has ended.
    pub(crate) fn remove_unfinished(&self, name: &GuestName) {
        for file in ["ended.json.new", "console.log.new", "uefi-variables.fd.new"] {
            // It may not exist, and it does no harm if it stays.
            let _removed = fs::remove_file(self.place(name).join(file));
        }
    }

    /// Removes the record of the last guest of this name: the name now belongs to another guest, or
    /// to the same one again. That of a failure stays as [`Self::last_failure`].
    pub(crate) fn forget(&self, name: &GuestName) {
        let file = self.file(name);
        let has_failed = read(&file).is_some_and(|ended| ended.how.is_failure());
        // It may not exist. If it cannot be removed, it misleads only if the new guest is killed
        // and so leaves no record of its own.
        let _removed = match has_failed {
            true => fs::rename(&file, self.place(name).join(FAILED)),
            false => fs::remove_file(&file),
        };
    }

    /// Returns the failure after which the live guest of this name was started again.
    pub(crate) fn last_failure(&self, name: &GuestName) -> Option<Ended> {
        read(&self.place(name).join(FAILED)).filter(|ended| ended.name == *name)
    }

    /// Returns how the last guest of this name ended, if that is known. To show only: errors are
    /// ignored.
    pub(crate) fn read(&self, name: &GuestName) -> Option<Ended> {
        let ended = self.files(name).into_iter().filter_map(|it| read(&it));
        let its = ended.filter(|ended| ended.name == *name);
        its.max_by_key(|ended| ended.ended_unix_ms)
    }

    /// Returns how the last guest of this name ended, for decisions where a second copy would do
    /// harm; `None` if no file says so.
    ///
    /// # Errors
    /// If a file exists and cannot be read, or is about another guest: it may have said that this
    /// guest is elsewhere.
    pub(crate) fn expect(&self, name: &GuestName) -> Result<Option<Ended>> {
        let mut last: Option<Ended> = None;
        for path in self.files(name) {
            let way_out = || {
                format!(
                    "cannot read how {name} ended: {} is damaged; if {name} is neither saved in a file nor on another host, \
                     remove that file",
                    path.display()
                )
            };
            let Some(ended) = read_if_there(&path).with_context(way_out)? else { continue };
            if ended.name != *name {
                let error = anyhow::anyhow!("it is about {}", ended.name);
                return Err(error).with_context(way_out);
            }
            if last.as_ref().is_none_or(|last| last.ended_unix_ms <= ended.ended_unix_ms) {
                last = Some(ended);
            }
        }
        Ok(last)
    }

    /// Returns the record of how the last guest of this name ended, damaged or not; `None` if there
    /// is none, or this user may not see it.
    pub(crate) fn find(&self, name: &GuestName) -> Option<EndRecord> {
        if !self.is_recorded(name) {
            return None;
        }
        let end = match self.expect(name) {
            Ok(ended) => Ok(ended?),
            Err(error) => Err(format!("{error:#}")),
        };
        Some(EndRecord { name: name.clone(), end })
    }

    /// Returns all records, by name.
    pub(crate) fn list(&self) -> Vec<EndRecord> {
        let names: BTreeSet<_> = self.in_places().chain(self.in_earlier_files()).collect();
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    fn file(&self, name: &GuestName) -> PathBuf {
        self.place(name).join("ended.json")
    }

    /// Returns the paths at which a record may be, that of earlier versions first.
    fn files(&self, name: &GuestName) -> [PathBuf; 2] {
        [self.earlier_file(name), self.file(name)]
    }

    /// Returns the path that earlier versions write, some of whose guests may still be live.
    fn earlier_file(&self, name: &GuestName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Names of the guests that have a folder here.
    fn in_places(&self) -> impl Iterator<Item = GuestName> {
        file_names(&self.places()).filter_map(|name| name.parse().ok())
    }

    /// Names of the guests that have a file of an earlier version.
    fn in_earlier_files(&self) -> impl Iterator<Item = GuestName> {
        file_names(&self.folder).filter_map(|name| name.strip_suffix(".json")?.parse().ok())
    }

    fn forget_oldest(&self, is_defined: impl Fn(&GuestName) -> bool) {
        let files = self.in_places().map(|name| (self.file(&name), name));
        let files: Vec<_> = files.filter(|(path, _)| path.exists()).collect();
        if files.len() <= FILES_MAX {
            return;
        }
        // A file that cannot be read may also say that the guest was saved.
        let is_saved = |path: &Path| read(path).is_none_or(|ended| ended.how == How::Saved);
        let forgettable =
            files.into_iter().filter(|(path, name)| !is_defined(name) && !is_saved(path));
        let mut files: Vec<_> = forgettable.collect();
        files.sort_by_key(|(path, _)| {
            fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH)
        });
        for (path, name) in &files[..files.len().saturating_sub(FILES_MAX)] {
            self.remove_logs(name);
            // It may not exist.
            let _removed = fs::remove_file(self.variables(name));
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "cannot remove how an old guest ended");
            }
        }
    }
}

/// Returns the names of the entries of `folder`; none if it cannot be listed.
fn file_names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Reads the file at `path`; `None` if it does not exist or cannot be read, since callers only
/// display the record or tidy up, and a damaged file must not stop them.
fn read(path: &Path) -> Option<Ended> {
    read_if_there(path).ok()?
}

fn read_if_there(path: &Path) -> Result<Option<Ended>> {
    match regular_file::read(path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => Ok(Some(serde_json::from_slice(&text?)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str) -> Ended {
        Ended {
            name: name.parse().unwrap(),
            uuid: uuid::Uuid::nil(),
            began_unix_ms: 0,
            ended_unix_ms: 0,
            how: How::PoweredOff,
            reason: "powered off".to_owned(),
            console_bytes: 0,
        }
    }

    fn record(ended: Ended) -> EndRecord {
        EndRecord { name: ended.name.clone(), end: Ok(ended) }
    }

    #[test]
    fn the_last_end_of_a_name_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        let web = "web".parse().unwrap();
        guests.create_place(&web).unwrap();
        assert_eq!(guests.read(&web), None);
        guests.write(&ended("web")).unwrap();
        let crashed = Ended { how: How::Crashed, ..ended("web") };
        guests.write(&crashed).unwrap();
        assert_eq!(guests.read(&web), Some(crashed.clone()));
        assert_eq!(guests.list(), [record(crashed)]);
    }

    #[test]
    fn a_guest_that_died_did_so_before_that_was_found() {
        let ended_unix_ms = crate::clock::unix_ms().saturating_sub(2 * 86_400_000 + 60_000);
        for (how, expected) in [(How::Died, "over 2d 0h ago"), (How::Crashed, "2d 0h ago")] {
            assert_eq!(Ended { how, ended_unix_ms, ..ended("web") }.ago(), expected);
        }
    }

    #[test]
    fn a_reader_of_the_console_gets_what_it_has_not_seen_when_the_guest_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        let web = "web".parse().unwrap();
        let unseen = |from| String::from_utf8(guests.console_from(&web, from)).unwrap();
        assert_eq!(unseen(0), "");
        guests.create_place(&web).unwrap();
        // Of 100 bytes, the last 10 are kept.
        guests.write(&Ended { console_bytes: 100, ..ended("web") }).unwrap();
        guests.keep_console(&web, b"0123456789").unwrap();
        for (from, expected) in [(0, "0123456789"), (97, "789"), (100, ""), (101, "")] {
            assert_eq!(unseen(from), expected, "{from}");
        }
        guests.write(&ended("web")).unwrap();
        assert_eq!((guests.log_of(&web), unseen(0)), (None, String::new()), "of an earlier guest");
    }

    #[test]
    fn damaged_and_huge_files_are_listed_with_their_faults() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        fs::write(folder.path().join("web.json"), "{").unwrap();
        fs::File::create(folder.path().join("big.json")).unwrap().set_len(1 << 40).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU)
            .unwrap();
        let listed = guests.list();
        let names: Vec<_> = listed.iter().map(|record| record.name.as_str()).collect();
        assert_eq!(names, ["big", "pipe", "web"]);
        for EndRecord { name, end } in listed {
            assert_eq!(guests.read(&name), None);
            let fault = end.unwrap_err();
            assert!(fault.contains(&format!("{name}.json is damaged")), "{fault}");
        }
        for name in ["web", "big", "pipe"] {
            let error = guests.expect(&name.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}.json is damaged")), "{error}");
            assert!(error.contains("remove that file"), "{error}");
        }
        assert_eq!(guests.expect(&"db".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_guests_file_cannot_describe_another_guest() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        let [web, db] = ["web", "db"].map(|name| name.parse().unwrap());
        guests.create_place(&web).unwrap();
        durable::write_json(&guests.file(&web), &ended("db")).unwrap();
        assert_eq!((guests.read(&web), guests.read(&db)), (None, None));
        let error = format!("{:#}", guests.expect(&web).unwrap_err());
        assert!(error.contains("it is about db"), "{error}");
        assert_eq!(guests.list(), [EndRecord { name: web, end: Err(error) }]);
    }

    #[test]
    fn files_of_earlier_versions_are_read_and_moved() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        let [web, other]: [GuestName; 2] = ["web", "web.json"].map(|name| name.parse().unwrap());
        durable::write_json(&guests.earlier_file(&web), &ended("web")).unwrap();
        assert_eq!(guests.list(), [record(ended("web"))]);
        guests.tidy(|_| false);
        assert_eq!(guests.list(), [record(ended("web"))]);
        assert!(guests.file(&web).exists() && !guests.earlier_file(&web).exists());
        for (earlier_unix_ms, expected_unix_ms) in [(7, 7), (3, 7)] {
            let earlier = Ended { ended_unix_ms: earlier_unix_ms, ..ended("web") };
            durable::write_json(&guests.earlier_file(&web), &earlier).unwrap();
            let latest = |guests: &EndedGuests| guests.read(&web).unwrap().ended_unix_ms;
            assert_eq!(latest(&guests), expected_unix_ms);
            let expected = guests.expect(&web).unwrap().unwrap();
            assert_eq!(expected.ended_unix_ms, expected_unix_ms);
            guests.tidy(|_| false);
            assert_eq!(latest(&guests), expected_unix_ms);
            assert!(!guests.earlier_file(&web).exists());
        }
        // A guest's name may end in `.json`, as those files do.
        guests.create_place(&other).unwrap();
        guests.write(&ended("web.json")).unwrap();
        let names: Vec<_> = guests.list().into_iter().map(|record| record.name).collect();
        assert_eq!(names, [web, other]);
    }

    #[test]
    fn only_so_many_are_kept_but_for_guests_that_are_defined_or_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        for number in 0..FILES_MAX + 8 {
            let mut ended = ended(&format!("g{number}"));
            if number == 1 {
                ended.how = How::Saved;
            }
            guests.create_place(&ended.name).unwrap();
            guests.write(&ended).unwrap();
            if number == 2 {
                fs::write(guests.file(&ended.name), "{").unwrap();
            }
            // Writing is faster than the resolution of some file systems' timestamps.
            let written = UNIX_EPOCH + Duration::from_secs(number as u64);
            fs::File::open(guests.file(&ended.name)).unwrap().set_modified(written).unwrap();
        }
        guests.tidy(|name| name.as_str() == "g0");
        let left = |number| guests.file(&format!("g{number}").parse().unwrap()).exists();
        assert!((0..3).all(left), "defined, in a file, and not to be told");
        assert!(!(3..8).any(left));
        assert!((8..FILES_MAX + 8).all(left));
    }
}
