//! The state folder of a host: certificates, live guests and records of migrations, and which
//! process owns a guest's name.
//!
//! ```text
//! certs/        ca.pem ca.key host.pem host.key crl.pem issued/
//! guests/NAME/  lock guest.json here api.sock api-ro.sock console.log console.log.old lighter.log
//! migrations/   guests/NAME/UUID/ID.source.json guests/NAME/UUID/ID.destination.json
//! departed/     guests/NAME/UUID/ID.json guests/NAME/UUID/ID.shared
//! ended/        guests/NAME/ended.json, failed.json and logs as in guests/NAME/
//! identities/   NAME.json, which no guest's process may write once its guest runs
//! definitions/  NAME.toml NAME.autostart
//! vsock/        NAME.sock NAME.sock_PORT
//! node.sock node-ro.sock node.json node.lock counted.json autostarted.json merge-domain
//! lighter.toml density.json density-history/ ksm.json
//! ```
//!
//! A name is taken while a live process holds its `lock`. The first process that finds a dead one's
//! files records its end, keeps its logs and removes the rest.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::definitions::Definitions;
use crate::durable;
use crate::ended::{Ended, EndedGuests, How, restore_command};
use crate::file_lock::FileLock;
use crate::names::GuestName;

mod claim;
mod dead;
mod process;
mod settling;

pub(crate) use self::claim::{GuestClaim, Settled};
pub(crate) use self::dead::LOST_WITH_HOST;
pub(crate) use self::process::ProcessHandle;

/// The file that says that the guest was here when its process ended, with the ID of the boot.
const HERE: &str = "here";

/// That file before the guest is here.
const HERE_PREPARED: &str = "here.new";

/// Largest `guest.json` that is read, in bytes.
const GUEST_FILE_BYTES_MAX: u64 = 64 << 10;

/// One host's state folder.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
    access: Access,
}

/// Which of a guest's API sockets commands use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Access {
    /// The owner's socket, which permits everything.
    #[default]
    Full,
    /// The socket for all users, which permits reading only.
    ReadOnly,
}

impl StateDir {
    /// Creates an empty folder that is removed with its guard, for tests.
    #[cfg(test)]
    pub(crate) fn temporary() -> (tempfile::TempDir, Self) {
        let folder = tempfile::tempdir().unwrap();
        let state = Self::new(folder.path()).unwrap();
        state.create().unwrap();
        (folder, state)
    }

    /// Uses the folder at `root`, made absolute so that child processes with another working
    /// directory find it.
    ///
    /// # Errors
    /// If the working directory no longer exists.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)
            .with_context(|| format!("cannot find the folder {}", root.display()))?;
        Ok(Self { root, access: Access::Full })
    }

    /// Returns the access to guests.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Returns the folder that `--state-dir` or `LIGHTER_STATE_DIR` names, or this user's default.
    /// A user who has none, and only reads, looks into root's.
    ///
    /// # Errors
    /// If neither is set and there is no home folder.
    pub(crate) fn resolve(named: Option<&Path>, access: Access) -> Result<Self> {
        let of_root = Path::new("/var/lib/lighter");
        let root = match (named, Self::own_root()) {
            (Some(named), _) => named.to_owned(),
            _ if Uid::effective().is_root() => of_root.to_owned(),
            (None, Some(own)) if access == Access::Full || own.exists() => own,
            (None, _) if access == Access::ReadOnly => of_root.to_owned(),
            (None, _) => bail!("no home folder: name one with --state-dir"),
        };
        Ok(Self { access, ..Self::new(&root)? })
    }

    /// Returns the default of a user other than root, if this one has a home folder.
    fn own_root() -> Option<PathBuf> {
        let base = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")));
        Some(base?.join("lighter"))
    }

    /// Returns the folder's path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the host's certificates.
    pub(crate) fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// Folder of the records and reports of migrations.
    pub(crate) fn migrations(&self) -> PathBuf {
        self.root.join("migrations")
    }

    /// Records of how guests of this host ended.
    pub(crate) fn ended(&self) -> EndedGuests {
        EndedGuests::in_folder(self.ended_folder())
    }

    fn ended_folder(&self) -> PathBuf {
        self.root.join("ended")
    }

    /// Guests that are defined on this host.
    pub(crate) fn definitions(&self) -> Definitions {
        Definitions::in_folder(self.definitions_folder())
    }

    pub(crate) fn departures_folder(&self) -> PathBuf {
        self.root.join("departed")
    }

    fn definitions_folder(&self) -> PathBuf {
        self.root.join("definitions")
    }

    /// Folder of the sockets over which programs of this host and guests reach each other.
    pub(crate) fn vsock_folder(&self) -> PathBuf {
        self.root.join("vsock")
    }

    /// File with the boot ID under which guests were last autostarted.
    pub(crate) fn autostarted_file(&self) -> PathBuf {
        self.root.join("autostarted.json")
    }

    /// File that guests of the merge domain lock; it contains the domain's name.
    pub(crate) fn merge_domain_file(&self) -> PathBuf {
        self.root.join("merge-domain")
    }

    /// File of the policy and the schedules of memory optimization.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.root.join("lighter.toml")
    }

    /// History of memory optimization runs.
    pub(crate) fn density_history(&self) -> PathBuf {
        self.root.join("density-history")
    }

    /// What memory optimization remembers about guests.
    pub(crate) fn density_ledger(&self) -> PathBuf {
        self.root.join("density.json")
    }

    /// ksmd's settings before the node changed them.
    pub(crate) fn ksm_journal(&self) -> PathBuf {
        self.root.join("ksm.json")
    }

    /// The node's API socket for its owner.
    pub(crate) fn node_socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }

    /// The node's API socket for all users.
    pub(crate) fn node_readonly_socket(&self) -> PathBuf {
        self.root.join("node-ro.sock")
    }

    /// The node's socket that commands use.
    pub(crate) fn client_socket(&self) -> PathBuf {
        match self.access {
            Access::Full => self.node_socket(),
            Access::ReadOnly => self.node_readonly_socket(),
        }
    }

    /// File in which the node publishes its addresses and PID.
    pub(crate) fn node_file(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// Lock that the host's only node holds.
    pub(crate) fn node_lock(&self) -> PathBuf {
        self.root.join("node.lock")
    }

    /// Folder of the guests that have a process.
    pub(crate) fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// Returns the folder of the guest of this name, whether or not there is one.
    pub(crate) fn guest(&self, name: &GuestName) -> GuestDir {
        GuestDir {
            path: self.guests().join(name.as_str()),
            vsock: self.vsock_folder().join(format!("{name}.sock")),
            name: name.clone(),
            state: self.clone(),
        }
    }

    /// Creates the state folder and its subfolders. Only this user may read them, but all users may
    /// pass through to the sockets meant for them.
    ///
    /// # Errors
    /// If a folder or file cannot be created, or if another user could have planted links in it,
    /// which would be followed.
    pub(crate) fn create(&self) -> Result<()> {
        create(&self.root, PASSAGE)?;
        self.expect_own()?;
        create(&self.guests(), LISTED)?;
        let inside = [
            self.migrations(),
            self.certs(),
            self.ended_folder(),
            self.departures_folder(),
            self.identities(),
            self.definitions_folder(),
            self.vsock_folder(),
        ];
        inside.iter().try_for_each(|folder| create_private(folder))?;
        // Guests of a merge domain open it.
        let path = self.merge_domain_file();
        let mut options = fs::OpenOptions::new();
        let file = regular_file::open(&path, options.create(true).append(true).mode(0o600));
        file.map(drop)
            .with_context(|| format!("cannot create {}", path.display()))
            .with_context(|| format!("cannot write to the state folder {}", self.root.display()))
    }

    /// Checks that the folder and what is in it belong to this user or root.
    fn expect_own(&self) -> Result<()> {
        let (root, user) = (self.root.display(), Uid::effective());
        let listed = || format!("cannot look at the state folder {root}");
        let found = fs::metadata(&self.root).with_context(listed)?;
        expect_owner(found.uid(), user).with_context(|| format!("the state folder {root}"))?;
        ensure!(
            found.mode() & WRITABLE_BY_ALL == 0,
            "all users may write to the state folder {root}: see what they have left there, then `chmod o-w {root}`"
        );
        for entry in fs::read_dir(&self.root).with_context(listed)? {
            let path = entry.with_context(listed)?.path();
            // It may have gone since.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            expect_owner(found.uid(), user).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Returns the guests with a live process, by name; removes the files of dead ones.
    ///
    /// # Errors
    /// If the folder exists but cannot be read.
    pub(crate) fn live_guests(&self) -> Result<Vec<GuestDir>> {
        Ok(self.settle_guests()?.live)
    }

    /// As [`Self::live_guests`]; also returns the guests that were lost with their processes, as
    /// far as no process had recorded that.
    ///
    /// # Errors
    /// If the folder exists but cannot be read.
    pub(crate) fn settle_guests(&self) -> Result<Guests> {
        let mut guests = Guests::default();
        for guest in self.guest_dirs()? {
            match guest.settle() {
                Settled::Live => guests.live.push(guest),
                Settled::Gone => {}
                Settled::Lost(process, ended) => guests.lost.push((process, ended)),
            }
        }
        guests.live.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(guests)
    }

    /// Returns the folders of guests, whether or not their processes live.
    fn guest_dirs(&self) -> Result<Vec<GuestDir>> {
        let entries = match fs::read_dir(self.guests()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot list {}", self.guests().display()));
            }
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<GuestName>().ok());
        Ok(names.map(|name| self.guest(&name)).collect())
    }

    /// Returns the live guest of this name.
    ///
    /// # Errors
    /// If there is none; the message names the guests that there are.
    pub(crate) fn live_guest(&self, name: &GuestName) -> Result<GuestDir> {
        let guest = self.guest(name);
        if guest.is_live() {
            return Ok(guest);
        }
        let others: Vec<String> =
            self.live_guests()?.iter().map(|guest| guest.name.to_string()).collect();
        let known = if others.is_empty() {
            "no guest runs here".to_owned()
        } else {
            format!("live here: {}", others.join(", "))
        };
        bail!("no guest {name} in {} ({known}){}", self.root.display(), self.past_of(name))
    }

    /// Formats how the guest `name` ended, which has no process, and how to run it again.
    fn past_of(&self, name: &GuestName) -> String {
        let end = self.ended().find(name).map(|record| record.end);
        let past = match &end {
            Some(Ok(ended)) => format!("; it {} ({})", ended.reason, ended.ago()),
            Some(Err(fault)) => format!("; {fault}"),
            None => String::new(),
        };
        let way_on = match end {
            Some(Ok(Ended { how: How::Saved, reason, .. })) => {
                format!("; `{}` continues it", restore_command(name, &reason))
            }
            // It is not started as long as it may be elsewhere.
            Some(Err(_) | Ok(Ended { how: How::Moved | How::Discarded, .. })) => String::new(),
            _ if matches!(self.definitions().find(name), Ok(Some(_))) => {
                format!("; it is defined: `lighter start {name}` starts it")
            }
            _ => String::new(),
        };
        format!("{past}{way_on}")
    }
}

/// The guests that are found in a state folder.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    /// Those with a live process, by name.
    pub(crate) live: Vec<GuestDir>,
    /// Those that were lost with their processes, each with its process, as recorded now.
    pub(crate) lost: Vec<(GuestIdentity, Ended)>,
}

/// The folder in which one guest's process keeps its files.
#[derive(Debug, Clone)]
pub(crate) struct GuestDir {
    path: PathBuf,
    vsock: PathBuf,
    name: GuestName,
    state: StateDir,
}

impl GuestDir {
    /// The guest's name.
    pub(crate) fn name(&self) -> &GuestName {
        &self.name
    }

    /// The vsock socket for connections from this host to the guest; the guest's connections to
    /// this host arrive at `PATH_PORT`.
    pub(crate) fn vsock_socket(&self) -> &Path {
        &self.vsock
    }

    /// Returns the folder's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The guest process's API socket for its owner.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// The guest process's API socket for all users.
    pub(crate) fn readonly_socket(&self) -> PathBuf {
        self.path.join("api-ro.sock")
    }

    /// The socket that commands use.
    pub(crate) fn client_socket(&self) -> PathBuf {
        match self.state.access {
            Access::Full => self.socket(),
            Access::ReadOnly => self.readonly_socket(),
        }
    }

    /// File with the output of the guest's serial console, if that is not a terminal.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// Log of a detached guest process.
    pub(crate) fn process_log(&self) -> PathBuf {
        self.path.join("lighter.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn guest_file(&self) -> PathBuf {
        self.path.join("guest.json")
    }

    /// Whether a live process owns the name.
    pub(crate) fn is_live(&self) -> bool {
        FileLock::is_held(&self.lock_file())
    }

    /// Reads what the live process wrote about itself.
    ///
    /// # Errors
    /// If it has not written it yet, or the file is damaged.
    pub(crate) fn read_identity(&self) -> Result<GuestIdentity> {
        let path = self.guest_file();
        let text = regular_file::read(&path, GUEST_FILE_BYTES_MAX)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Durably publishes which process holds the name; the process itself calls this.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write_identity(&self, identity: &GuestIdentity) -> Result<()> {
        durable::write_json(&self.guest_file(), identity)
    }

    /// Whether the process has the guest, as far as this user can tell.
    pub(crate) fn is_marked_here(&self) -> bool {
        self.path.join(HERE).exists()
    }

    /// Prepares [`Self::mark_here`], which then needs no room on the disk. Should the power be cut
    /// before that, this and a migration's record tell that the guest ran here: it is durable once
    /// [`Self::write_identity`] has returned, too.
    ///
    /// # Errors
    /// If the file cannot be written or flushed.
    pub(crate) fn prepare_mark(&self) -> Result<()> {
        let path = self.path.join(HERE_PREPARED);
        let mut options = fs::OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        let prepared = clock::boot_id()
            .and_then(|boot| regular_file::open(&path, &mut options)?.write_all(boot.as_bytes()))
            .and_then(|()| fs::File::open(&path)?.sync_all());
        prepared.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Durably records that the live process has the guest: until now it may have been about to
    /// start or to receive it. Only the death of a process that has its guest is a failure of the
    /// guest. To be recorded again changes nothing.
    ///
    /// # Errors
    /// If the file cannot be renamed or flushed.
    pub(crate) fn mark_here(&self) -> Result<()> {
        let (prepared, mark) = (self.path.join(HERE_PREPARED), self.path.join(HERE));
        match fs::rename(&prepared, &mark) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && mark.exists() => return Ok(()),
            renamed => renamed.with_context(|| format!("cannot rename {}", prepared.display()))?,
        }
        let flushed = regular_file::sync_folder_of(&mark);
        flushed.with_context(|| format!("cannot flush {}", mark.display()))
    }
}

/// The process that holds a name, as in `guest.json`: for users and for other processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestIdentity {
    /// The guest's name on this host.
    pub(crate) name: GuestName,
    /// UUID of the guest, the same on every host.
    pub(crate) uuid: uuid::Uuid,
    /// The process that holds the name.
    pub(crate) pid: u32,
    /// When that process started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
}

/// Mode of a folder that other users cannot list, but can pass through to a path they know.
const PASSAGE: u32 = 0o711;
/// Mode of a folder that all users may list.
const LISTED: u32 = 0o755;
/// The bit of a mode that lets all users write.
const WRITABLE_BY_ALL: u32 = 0o002;

fn create_private(folder: &Path) -> Result<()> {
    create(folder, 0o700)
}

/// Creates a folder with this mode, or a stricter one by the user's umask. A folder that exists
/// keeps its mode.
fn create(folder: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Checks that `user` or root is the owner of a file.
///
/// # Errors
/// If another user is.
fn expect_owner(owner: u32, user: Uid) -> Result<()> {
    ensure!(
        [0, user.as_raw()].contains(&owner),
        "it belongs to another user (UID {owner}): `chown` it, or choose another folder with --state-dir"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
