//! The host's folder of guest definitions.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use uuid::Uuid;

use super::document::{Document, Kept};
use crate::cli::spec::GuestSpec;
use crate::durable;
use crate::names::GuestName;

/// A guest that is defined.
#[derive(Debug)]
pub(crate) struct Definition {
    /// Name of the guest.
    pub(crate) name: GuestName,
    /// Path of its definition file.
    pub(crate) path: PathBuf,
    /// Whether the guest starts when the host boots.
    pub(crate) autostart: bool,
    /// The content of the file, or why it cannot be used: a damaged file stays listed.
    pub(crate) spec: Result<GuestSpec>,
}

impl Definition {
    /// Returns the guest's identity, if its file gives one. A fault elsewhere in the file does not
    /// matter.
    ///
    /// # Errors
    /// With the fault of the file, if it hides the identity.
    pub(crate) fn uuid(&self) -> Result<Option<Uuid>> {
        match &self.spec {
            Ok(spec) => Ok(spec.uuid),
            Err(fault) => match self.kept() {
                Some(kept) => Ok(kept.uuid),
                None => Err(anyhow!("{fault:#}")),
            },
        }
    }

    /// Returns what the guest keeps when it is defined again.
    fn kept(&self) -> Option<Kept> {
        match &self.spec {
            Ok(spec) => Some(Kept::of(spec)),
            Err(_) => Kept::read(&self.path, &self.name),
        }
    }
}

/// The folder of guest definitions.
#[derive(Debug, Clone)]
pub(crate) struct Definitions {
    folder: PathBuf,
}

impl Definitions {
    /// Uses the definitions in `folder`, whether or not it exists.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Stores the definition file at `path`; it replaces the definition of the same name. The guest
    /// keeps the UUID, addresses and machine of that or, without one, those that `running` returns
    /// of this guest; the rest is chosen here. Returns the name.
    ///
    /// # Errors
    /// If the file describes no valid guest or has no name, or the file cannot be written; or if
    /// `running` fails and the file has no UUID.
    pub(crate) fn define(
        &self,
        path: &Path,
        running: impl FnOnce(&GuestName) -> Result<Option<Kept>>,
    ) -> Result<GuestName> {
        let document = Document::read(path)?;
        let name = document.name(path)?;
        let before = match self.find(name)?.and_then(|definition| definition.kept()) {
            None => document.kept_of(running(name))?,
            before => before,
        };
        let text = document.text_to_keep(before.as_ref()).with_context(|| {
            format!("cannot define {name} (`lighter undefine {name}` forgets it)")
        })?;
        durable::replace(&self.file(name), text.as_bytes())?;
        Ok(name.clone())
    }

    /// Removes a definition, and with it the guest's autostart.
    ///
    /// # Errors
    /// If the guest is not defined, or a file cannot be removed.
    pub(crate) fn undefine(&self, name: &GuestName) -> Result<()> {
        self.expect(name)?;
        // In this order: a mark without a definition would apply to the next guest of this name.
        durable::remove_if_there(&self.mark(name))?;
        durable::remove_if_there(&self.file(name))
    }

    /// Sets whether a guest starts when the host boots.
    ///
    /// # Errors
    /// Like [`Self::undefine`].
    pub(crate) fn set_autostart(&self, name: &GuestName, autostart: bool) -> Result<()> {
        self.expect(name)?;
        if autostart {
            // An empty file cannot be half written.
            let path = self.mark(name);
            let mut options = OpenOptions::new();
            options.write(true).create(true).mode(0o600);
            let made = regular_file::open(&path, &mut options).and_then(|mark| mark.sync_all());
            made.with_context(|| format!("cannot write {}", path.display()))
        } else {
            durable::remove_if_there(&self.mark(name))
        }
    }

    /// Returns the guest of this name, if it is defined.
    ///
    /// # Errors
    /// If that cannot be determined, e.g. if this user may not read the folder.
    pub(crate) fn find(&self, name: &GuestName) -> Result<Option<Definition>> {
        let path = self.file(name);
        // A link that leads nowhere is listed, and is reported as a damaged file.
        let is_there = match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            found => found.map(|_| true).with_context(|| {
                format!("cannot tell whether {name} is defined: {}", path.display())
            })?,
        };
        Ok(is_there.then(|| Definition {
            name: name.clone(),
            autostart: self.mark(name).exists(),
            spec: read(&path, name),
            path,
        }))
    }

    /// Returns the guest of this name.
    ///
    /// # Errors
    /// If it is not defined (the message names those that are), or as for [`Self::find`].
    pub(crate) fn expect(&self, name: &GuestName) -> Result<Definition> {
        if let Some(definition) = self.find(name)? {
            return Ok(definition);
        }
        let others: Vec<String> = self.names()?.iter().map(GuestName::to_string).collect();
        let known = if others.is_empty() {
            "no guest is: see `lighter define --help`".to_owned()
        } else {
            format!("defined: {}", others.join(", "))
        };
        bail!("{name} is not defined in {} ({known})", self.folder.display())
    }

    /// Returns all definitions, by name.
    ///
    /// # Errors
    /// Like [`Self::find`].
    pub(crate) fn list(&self) -> Result<Vec<Definition>> {
        self.names()?.iter().filter_map(|name| self.find(name).transpose()).collect()
    }

    fn names(&self) -> Result<Vec<GuestName>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries.flatten(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot list {}", self.folder.display()));
            }
        };
        let name = |entry: fs::DirEntry| {
            let file = entry.file_name();
            file.to_str()?.strip_suffix(".toml")?.parse::<GuestName>().ok()
        };
        let mut names: Vec<GuestName> = entries.filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    fn file(&self, name: &GuestName) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    fn mark(&self, name: &GuestName) -> PathBuf {
        self.folder.join(format!("{name}.autostart"))
    }
}

/// Reads the definition file of the guest `name`.
fn read(path: &Path, name: &GuestName) -> Result<GuestSpec> {
    let document = Document::read(path)?;
    let said = document.name(path)?;
    if said != name {
        bail!("{} is the file of {name}, and the name in it is {said}", path.display());
    }
    Ok(document.spec)
}

#[cfg(test)]
mod tests {
    use vmm_core::MachineKind;

    use super::*;

    fn name(text: &str) -> GuestName {
        text.parse().unwrap()
    }

    /// Creates a folder of definitions, and one for a user's files.
    fn folders() -> (tempfile::TempDir, Definitions, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("definitions");
        fs::create_dir(&kept).unwrap();
        let file = folder.path().join("web.toml");
        (folder, Definitions::in_folder(kept), file)
    }

    #[test]
    fn a_definition_is_kept_verbatim_until_it_is_removed() {
        let (_folder, definitions, file) = folders();
        fs::write(&file, "# mine\nname = \"web\"\ncpus = 2\n").unwrap();
        assert_eq!(definitions.define(&file, |_| Ok(None)).unwrap(), name("web"));
        fs::remove_file(&file).unwrap();

        let web = definitions.expect(&name("web")).unwrap();
        assert!(fs::read_to_string(&web.path).unwrap().starts_with("# mine"));
        assert_eq!((web.spec.unwrap().cpus, web.autostart), (Some(2), false));

        definitions.undefine(&name("web")).unwrap();
        assert!(definitions.find(&name("web")).unwrap().is_none());
        assert!(definitions.undefine(&name("web")).is_err());
    }

    #[test]
    fn a_guest_that_runs_keeps_what_it_is_unless_the_file_says_otherwise() {
        let (_folder, definitions, file) = folders();
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let nets = "[[net]]\nbridge = \"br0\"\n[[net]]\nbridge = \"br0\"\n";
        let runs = |addresses: &[&str]| Kept {
            uuid: Some(own),
            addresses: addresses.iter().map(|mac| mac.parse().ok()).collect(),
            machine: Some(MachineKind::Mmio),
        };
        let [one, two] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
        for (given, addresses, keeps) in [
            (None, &[one, two][..], [true; 3]),
            (Some(own), &[one, two], [true; 3]),
            (None, &[one], [true, false, true]),
            (Some(other), &[one, two], [false; 3]),
        ] {
            let given = given.map(|uuid| format!("uuid = \"{uuid}\"\n")).unwrap_or_default();
            fs::write(&file, format!("name = \"web\"\nkernel = \"/k\"\n{given}{nets}")).unwrap();
            definitions.define(&file, |_| Ok(Some(runs(addresses)))).unwrap();
            let spec = definitions.expect(&name("web")).unwrap().spec.unwrap();
            let macs: Vec<_> = spec.net.iter().map(|net| net.mac.unwrap().to_string()).collect();
            let is_kept = [
                spec.uuid == Some(own),
                macs == [one, two],
                spec.machine == Some(MachineKind::Mmio),
            ];
            assert_eq!(is_kept, keeps, "{spec:?}");
            definitions.undefine(&name("web")).unwrap();
        }
        let silent = || definitions.define(&file, |_| anyhow::bail!("it does not answer"));
        silent().unwrap();
        definitions.undefine(&name("web")).unwrap();
        fs::write(&file, "name = \"web\"\n").unwrap();
        silent().unwrap_err();
    }

    #[test]
    fn a_guest_without_a_name_or_with_an_error_is_not_saved() {
        let (_folder, definitions, file) = folders();
        for (text, word) in [("cpus = 2", "`name` is missing"), ("name = \"web\"\nx = 1", ":2: x:")]
        {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", definitions.define(&file, |_| Ok(None)).unwrap_err());
            assert!(error.contains("web.toml") && error.contains(word), "{error}");
        }
        assert!(definitions.list().unwrap().is_empty());
    }

    #[test]
    fn autostart_is_removed_with_the_guest() {
        let (_folder, definitions, file) = folders();
        fs::write(&file, "name = \"web\"").unwrap();
        definitions.define(&file, |_| Ok(None)).unwrap();
        definitions.set_autostart(&name("web"), true).unwrap();
        definitions.set_autostart(&name("web"), true).unwrap();
        assert!(definitions.expect(&name("web")).unwrap().autostart);
        // A new file changes the guest's configuration, but not its autostart.
        definitions.define(&file, |_| Ok(None)).unwrap();
        assert!(definitions.expect(&name("web")).unwrap().autostart);

        definitions.undefine(&name("web")).unwrap();
        definitions.define(&file, |_| Ok(None)).unwrap();
        assert!(!definitions.expect(&name("web")).unwrap().autostart);
        definitions.set_autostart(&name("web"), false).unwrap();
    }

    #[test]
    fn damaged_and_foreign_files_are_distinguished_from_guests() {
        let (_folder, definitions, _) = folders();
        for (file, text) in [
            ("web.toml", "name = \"other\""),
            ("db.toml", "name ="),
            ("db.new", ""),
            ("-x.toml", "name = \"x\""),
            ("lone.autostart", ""),
        ] {
            fs::write(definitions.folder.join(file), text).unwrap();
        }
        let listed = definitions.list().unwrap();
        let names: Vec<&str> = listed.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["db", "web"]);
        assert!(listed.iter().all(|it| it.spec.is_err()), "{listed:?}");
    }

    #[test]
    fn a_guest_whose_file_has_a_fault_keeps_its_identity() {
        let (_folder, definitions, file) = folders();
        fs::write(&file, "name = \"web\"\nmemory = \"512M\"").unwrap();
        definitions.define(&file, |_| Ok(None)).unwrap();
        let web = definitions.expect(&name("web")).unwrap();
        let uuid = web.uuid().unwrap().expect("it was chosen");
        let text = fs::read_to_string(&web.path).unwrap();

        fs::write(&web.path, text.replace("512M", "512MB")).unwrap();
        let damaged = definitions.expect(&name("web")).unwrap();
        assert!(format!("{:#}", damaged.spec.as_ref().unwrap_err()).contains("write 512M"));
        assert_eq!(damaged.uuid().unwrap(), Some(uuid));
        definitions.define(&file, |_| Ok(None)).unwrap();
        assert_eq!(definitions.expect(&name("web")).unwrap().spec.unwrap().uuid, Some(uuid));

        fs::write(&web.path, "name = ").unwrap();
        let error = definitions.expect(&name("web")).unwrap().uuid().unwrap_err().to_string();
        assert!(error.contains("web.toml:1"), "{error}");
    }

    #[test]
    fn an_undefined_guest_is_refused_with_the_defined_names() {
        let (_folder, definitions, file) = folders();
        let error = definitions.expect(&name("web")).unwrap_err().to_string();
        assert!(
            error.contains("web is not defined") && error.contains("lighter define"),
            "{error}"
        );
        fs::write(&file, "name = \"web\"").unwrap();
        definitions.define(&file, |_| Ok(None)).unwrap();
        let error = definitions.set_autostart(&name("wbe"), true).unwrap_err().to_string();
        assert!(error.contains("defined: web"), "{error}");
    }
}
