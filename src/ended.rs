//! How guests ended: a small file for each of the last ones, for people who ask afterwards.
//!
//! The files are `ended/NAME.json` in the state folder, written by a guest's process as its last act. A process that is killed writes
//! none. The next guest of the same name removes the file when it starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::names::GuestName;

/// Files that are kept; beyond, the oldest goes.
const FILES_MAX: usize = 100;

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// In what way a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// It switched itself off.
    PoweredOff,
    /// It reset itself, and was not to start over.
    Reset,
    /// Somebody ended it.
    Destroyed,
    /// It could not go on.
    Crashed,
    /// It runs on another host.
    Moved,
    /// It is in a file.
    Saved,
    /// This copy of it was given up.
    Discarded,
}

/// A guest that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The name that it had on this host.
    pub(crate) name: GuestName,
    /// Its identity.
    pub(crate) uuid: uuid::Uuid,
    /// When its process began here, in milliseconds since 1970; 0 when that is not known.
    #[serde(default)]
    pub(crate) began_unix_ms: u64,
    /// When it ended, in milliseconds since 1970.
    pub(crate) ended_unix_ms: u64,
    /// In what way.
    pub(crate) how: How,
    /// The same for people, as the end of the sentence "web-1 ...".
    pub(crate) reason: String,
}

impl Ended {
    /// How long ago that was.
    pub(crate) fn age(&self) -> Duration {
        let at = UNIX_EPOCH + Duration::from_millis(self.ended_unix_ms);
        SystemTime::now().duration_since(at).unwrap_or_default()
    }
}

/// The folder of these files.
#[derive(Debug, Clone)]
pub(crate) struct EndedGuests {
    folder: PathBuf,
}

impl EndedGuests {
    /// Those in `folder`, whether or not it exists.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Remembers how a guest ended.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn write(&self, ended: &Ended) -> Result<()> {
        durable::write_json(&self.file(&ended.name), ended)?;
        self.forget_oldest();
        Ok(())
    }

    /// Forgets how the last guest of this name ended: it is about another one from now on.
    pub(crate) fn forget(&self, name: &GuestName) {
        // There may be none, and one that cannot be removed misleads nobody but people who ask after a guest that was killed.
        let _removed = fs::remove_file(self.file(name));
    }

    /// How the last guest of this name ended, if that is known.
    pub(crate) fn read(&self, name: &GuestName) -> Option<Ended> {
        read(&self.file(name))
    }

    /// All that are known, by name.
    pub(crate) fn list(&self) -> Vec<Ended> {
        let mut all: Vec<Ended> = self.files().iter().filter_map(|path| read(path)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn file(&self, name: &GuestName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
    }

    fn forget_oldest(&self) {
        let mut files = self.files();
        if files.len() <= FILES_MAX {
            return;
        }
        files.sort_by_key(|path| {
            fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH)
        });
        for path in &files[..files.len() - FILES_MAX] {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "cannot remove how an old guest ended");
            }
        }
    }
}

/// A file that cannot be read is none: it is there to help, not to be in the way.
fn read(path: &Path) -> Option<Ended> {
    serde_json::from_slice(&regular_file::read(path, FILE_BYTES_MAX).ok()?).ok()
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
        }
    }

    #[test]
    fn the_last_end_of_a_name_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        assert_eq!(guests.read(&"web".parse().unwrap()), None);
        guests.write(&ended("web")).unwrap();
        let crashed = Ended { how: How::Crashed, ..ended("web") };
        guests.write(&crashed).unwrap();
        assert_eq!(guests.read(&"web".parse().unwrap()), Some(crashed.clone()));
        assert_eq!(guests.list(), [crashed]);
    }

    #[test]
    fn damaged_and_huge_files_are_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        fs::write(folder.path().join("web.json"), "{").unwrap();
        fs::File::create(folder.path().join("big.json")).unwrap().set_len(1 << 40).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU)
            .unwrap();
        assert_eq!(guests.list(), []);
    }

    #[test]
    fn only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let guests = EndedGuests::in_folder(folder.path().to_owned());
        for number in 0..FILES_MAX + 5 {
            guests.write(&ended(&format!("g{number}"))).unwrap();
        }
        assert_eq!(guests.list().len(), FILES_MAX);
    }
}
