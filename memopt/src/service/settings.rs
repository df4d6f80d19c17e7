//! `lighter.toml`: the policy and the schedules of this host. An invalid file changes nothing: its
//! last valid content still applies. If it was never valid, nothing is taken from guests.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::policy::{Goal, Policy};
use crate::schedule::{self, Schedule};
use crate::settings::{FILE_BYTES_MAX, SettingsError};

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The policy, which limits what may be done.
    pub policy: Policy,
    /// The schedules of automatic runs.
    pub schedules: Vec<Schedule>,
}

impl Settings {
    /// Reads `text`, the content of the file called `name` in messages.
    ///
    /// # Errors
    /// If the text is invalid; the error names the file, the line and the field.
    pub fn parse(text: &str, name: &str) -> Result<Self, SettingsError> {
        let policy = Policy::parse(text, name)?;
        let check_goal =
            |goal: &str| goal.parse::<Goal>().map(drop).map_err(|error| error.to_string());
        let schedules = schedule::read(text, name, check_goal)?;
        Ok(Self { policy, schedules })
    }
}

/// Identifies a version of the file: its inode, the time when its content or permissions last
/// changed, and its length; or the error that prevents reading them.
type Stamp = Result<(u64, (i64, i64), u64), ErrorKind>;

/// The file, and its last valid content.
#[derive(Debug)]
pub(super) struct SettingsFile {
    path: PathBuf,
    /// Stamp of the file when it was last read, valid or not.
    stamp: Stamp,
    /// The settings that apply.
    pub(super) settings: Settings,
    /// Whether the file was valid once or does not exist, so that `settings` are what the operator
    /// wants.
    is_known: bool,
    /// Why the current content of the file is not applied.
    pub(super) error: Option<String>,
}

/// The result of reading the file again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The file has not changed.
    None,
    /// The file has changed, and its new content applies.
    New,
    /// The file is invalid, and the previous settings still apply.
    Wrong,
}

impl SettingsFile {
    /// Reads the file at `path`. Without a file, the default policy applies and nothing is
    /// scheduled.
    pub(super) fn open(path: &Path) -> Self {
        let stamp = stamp(path);
        let (settings, error) = match read(path) {
            Ok(settings) => (settings, None),
            Err(error) => (Settings::default(), Some(error)),
        };
        Self { path: path.to_owned(), stamp, settings, is_known: error.is_none(), error }
    }

    /// Returns the policy by which memory may be taken.
    ///
    /// # Errors
    /// If the file has been invalid since it was first read.
    pub(super) fn policy(&self) -> Result<Policy, String> {
        if self.is_known {
            return Ok(self.settings.policy.clone());
        }
        let error = self.error.clone().unwrap_or_default();
        Err(format!("{error}; until it is right, nothing is taken from guests"))
    }

    /// Reads the file again if it has changed.
    pub(super) fn refresh(&mut self) -> Change {
        let now = stamp(&self.path);
        if now == self.stamp {
            return Change::None;
        }
        self.stamp = now;
        match read(&self.path) {
            Ok(settings) => {
                (self.error, self.is_known) = (None, true);
                self.settings = settings;
                Change::New
            }
            Err(error) => {
                self.error = Some(error);
                Change::Wrong
            }
        }
    }

    /// Returns the path of the file, if it exists.
    pub(super) fn path(&self) -> Option<&Path> {
        (self.stamp != Err(ErrorKind::NotFound)).then_some(self.path.as_path())
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).map_err(|error| error.kind())?;
    Ok((file.ino(), (file.ctime(), file.ctime_nsec()), file.len()))
}

fn read(path: &Path) -> Result<Settings, String> {
    let name = path.display().to_string();
    let text = match regular_file::read_text(path, FILE_BYTES_MAX as u64) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("cannot read {name}: {error}")),
    };
    Settings::parse(&text, &name).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: &str =
        "[[schedule]]\nname = \"night\"\ncron = \"0 3 * * *\"\ngoal = \"max density\"\n";

    #[test]
    fn policy_and_schedules_come_from_one_file() {
        let text = format!("preset = \"dense\"\n{SCHEDULE}");
        let settings = Settings::parse(&text, "lighter.toml").unwrap();
        assert_eq!(settings.policy.preset, crate::policy::Preset::Dense);
        assert_eq!(settings.schedules[0].name, "night");
        let nothing = Settings::parse("", "lighter.toml").unwrap();
        assert_eq!(nothing.policy, Policy::default());
    }

    #[test]
    fn the_example_in_the_guide_is_right_and_shows_every_kind_of_table() {
        const GUIDE: &str = include_str!("../../../docs/user-guide.md");
        let (_, rest) = GUIDE.split_once("```toml\n# lighter.toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let settings = Settings::parse(example, "docs/user-guide.md").unwrap();
        let names: Vec<_> = settings.schedules.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["nightly", "noon"]);
        assert_eq!(settings.policy.guests.len(), 3);
        assert_eq!(settings.policy.goal, Goal::MaxDensity);
    }

    #[test]
    fn errors_name_their_line_in_one_format() {
        let wrong = |text: &str| Settings::parse(text, "lighter.toml").unwrap_err().to_string();
        let goal = wrong(&SCHEDULE.replace("max density", "all of it"));
        assert!(goal.starts_with("lighter.toml:4:") && goal.contains("all of it"), "{goal}");
        let key = wrong("\n[ballon]\n");
        assert!(key.starts_with("lighter.toml:2:") && key.contains("balloon"), "{key}");
    }

    #[test]
    fn a_file_that_becomes_invalid_keeps_the_previous_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lighter.toml");
        fs::write(&path, SCHEDULE).unwrap();
        let mut file = SettingsFile::open(&path);
        assert_eq!(file.refresh(), Change::None);
        let before = file.settings.clone();
        fs::write(&path, "preset = \"densest\"").unwrap();
        assert_eq!(file.refresh(), Change::Wrong);
        assert!(file.error.as_deref().unwrap().contains("densest"), "{:?}", file.error);
        assert_eq!(file.settings, before);
        // A file with the same length and the same modification time.
        let other = folder.path().join("other.toml");
        fs::write(&other, SCHEDULE.replace("night", "early")).unwrap();
        fs::write(&path, SCHEDULE).unwrap();
        assert_eq!(file.refresh(), Change::New);
        let age = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&other).unwrap().set_modified(age).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(file.refresh(), Change::New);
        assert_eq!(file.settings.schedules[0].name, "early");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.refresh(), Change::New);
        assert!(file.settings.schedules.is_empty() && file.error.is_none());
        assert!(file.path().is_none());
    }

    #[test]
    fn a_file_that_was_never_valid_allows_no_reclaim_until_fixed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lighter.toml");
        fs::write(&path, SCHEDULE.replace("max density", "all of it")).unwrap();
        let mut file = SettingsFile::open(&path);
        let refused = file.policy().unwrap_err();
        assert!(refused.contains("lighter.toml:4:") && refused.contains("until"), "{refused}");
        assert!(file.settings.schedules.is_empty());
        fs::write(&path, SCHEDULE.replace("night", "late")).unwrap();
        assert_eq!(file.refresh(), Change::New);
        assert_eq!(file.policy(), Ok(Policy::default()));
        fs::write(&path, "[ballon]").unwrap();
        assert_eq!(file.refresh(), Change::Wrong);
        assert_eq!(file.policy(), Ok(Policy::default()), "what it said before holds on");
    }
}
