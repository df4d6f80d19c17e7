//! The state folder of a host: where certificates, live guests and records of migrations are, and
//! who owns a guest's name.
//!
//! ```text
//! certs/        ca.pem ca.key host.pem host.key
//! guests/NAME/  lock guest.json api.sock api-ro.sock console.log lighter.log
//! migrations/   guests/NAME/UUID/ID.source.json guests/NAME/UUID/ID.destination.json
//! ended/        guests/NAME/ended.json
//! identities/   NAME.json, which no guest's process may write once its guest runs
//! definitions/  NAME.toml NAME.autostart
//! vsock/        NAME.sock NAME.sock_PORT
//! node.sock node-ro.sock node.json node.lock counted.json autostarted.json merge-domain
//! ```
//!
//! A name is taken while a live process holds its `lock`; what a dead one left behind is removed by
//! whoever finds it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::definitions::Definitions;
use crate::durable;
use crate::ended::EndedGuests;
use crate::file_lock::FileLock;
use crate::names::GuestName;
use crate::units::format_uptime;

mod process;
mod settling;

pub(crate) use self::process::ProcessHandle;

/// The longest path of a Unix socket, in bytes (`sun_path` of unix(7), less its terminating zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest `guest.json` that is read, in bytes.
const GUEST_FILE_BYTES_MAX: u64 = 64 << 10;

/// How long a start waits for others to remove what a dead process has left: some files.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks whether they have.
const REMOVAL_PAUSE: Duration = Duration::from_millis(1);

/// One host's state folder.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
    access: Access,
}

/// Which of a guest's sockets is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Access {
    /// The one of its owner, who may do everything.
    #[default]
    Full,
    /// The one of all users, who may look.
    ReadOnly,
}

impl StateDir {
    /// An empty folder that goes with its guard, for tests.
    #[cfg(test)]
    pub(crate) fn temporary() -> (tempfile::TempDir, Self) {
        let folder = tempfile::tempdir().unwrap();
        let state = Self::new(folder.path()).unwrap();
        state.create().unwrap();
        (folder, state)
    }

    /// The folder at `root`, made absolute so that children with another working directory find it.
    ///
    /// # Errors
    /// The working directory is gone.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)
            .with_context(|| format!("cannot find the folder {}", root.display()))?;
        Ok(Self { root, access: Access::Full })
    }

    /// What its guests may be asked.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// The same with another access to its guests.
    pub(crate) fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The folder that `--state-dir` or `LIGHTER_STATE_DIR` names, or this user's own.
    ///
    /// # Errors
    /// Neither a folder was named, nor is there a home folder.
    pub(crate) fn resolve(named: Option<&Path>) -> Result<Self> {
        if let Some(root) = named {
            return Self::new(root);
        }
        if nix::unistd::geteuid().is_root() {
            return Self::new(Path::new("/var/lib/lighter"));
        }
        let base = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")));
        Self::new(
            &base
                .ok_or_else(|| anyhow!("no home folder: name one with --state-dir"))?
                .join("lighter"),
        )
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The host's certificates.
    pub(crate) fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// Records and reports of migrations.
    pub(crate) fn migrations(&self) -> PathBuf {
        self.root.join("migrations")
    }

    /// How guests of this host ended.
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

    /// The sockets over which programs of this host reach guests, and guests them.
    pub(crate) fn vsock_folder(&self) -> PathBuf {
        self.root.join("vsock")
    }

    /// In which life of the host guests were last started with it.
    pub(crate) fn autostarted_file(&self) -> PathBuf {
        self.root.join("autostarted.json")
    }

    /// Held by the guests whose pages may be merged, with the name of their domain.
    pub(crate) fn merge_domain_file(&self) -> PathBuf {
        self.root.join("merge-domain")
    }

    /// The policy and the schedules of memory optimization.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.root.join("lighter.toml")
    }

    /// What memory optimization did.
    pub(crate) fn density_history(&self) -> PathBuf {
        self.root.join("density-history")
    }

    /// What memory optimization remembers of the guests.
    pub(crate) fn density_ledger(&self) -> PathBuf {
        self.root.join("density.json")
    }

    /// How ksmd was set before the node drove it.
    pub(crate) fn ksm_journal(&self) -> PathBuf {
        self.root.join("ksm.json")
    }

    /// The node's API socket.
    pub(crate) fn node_socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }

    /// The node's API socket for all users.
    pub(crate) fn node_readonly_socket(&self) -> PathBuf {
        self.root.join("node-ro.sock")
    }

    /// The node's socket that is asked.
    pub(crate) fn client_socket(&self) -> PathBuf {
        match self.access {
            Access::Full => self.node_socket(),
            Access::ReadOnly => self.node_readonly_socket(),
        }
    }

    /// What the node says about itself.
    pub(crate) fn node_file(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// Held by the host's one node.
    pub(crate) fn node_lock(&self) -> PathBuf {
        self.root.join("node.lock")
    }

    /// The folders of the guests that have a process.
    pub(crate) fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// Where a guest of this name lives, whether or not there is one.
    pub(crate) fn guest(&self, name: &GuestName) -> GuestDir {
        GuestDir {
            path: self.guests().join(name.as_str()),
            vsock: self.vsock_folder().join(format!("{name}.sock")),
            name: name.clone(),
            access: self.access,
        }
    }

    /// Creates the state folder and those inside it, for this user only, but for the way to the
    /// sockets of all users.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn create(&self) -> Result<()> {
        create(&self.root, PASSAGE)?;
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

    /// The guests with a live process, by name; removes what dead ones left.
    ///
    /// # Errors
    /// The folder exists but cannot be read.
    pub(crate) fn live_guests(&self) -> Result<Vec<GuestDir>> {
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
        let mut live: Vec<GuestDir> =
            names.map(|name| self.guest(&name)).filter(GuestDir::is_live_or_clean).collect();
        live.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(live)
    }

    /// The live guest of this name.
    ///
    /// # Errors
    /// There is none; the message names those that there are.
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
            format!("there is: {}", others.join(", "))
        };
        let past = self
            .ended()
            .read(name)
            .map(|ended| format!("; it {} {} ago", ended.reason, format_uptime(ended.age())));
        let past = past.unwrap_or_default();
        let way_on = if matches!(self.definitions().find(name), Ok(Some(_))) {
            format!("; it is defined: `lighter start {name}` starts it")
        } else {
            String::new()
        };
        bail!("no guest {name} in {} ({known}){past}{way_on}", self.root.display())
    }
}

/// What a guest's process makes in its folder, beside the lock.
const OWN_FILES: [&str; 7] = [
    "api.sock",
    "api-ro.sock",
    "guest.json",
    "guest.json.new",
    "console.log",
    "console.log.old",
    "lighter.log",
];

/// Where one guest's process keeps its files.
#[derive(Debug, Clone)]
pub(crate) struct GuestDir {
    path: PathBuf,
    vsock: PathBuf,
    name: GuestName,
    access: Access,
}

impl GuestDir {
    /// The guest's name.
    pub(crate) fn name(&self) -> &GuestName {
        &self.name
    }

    /// Where programs of this host reach the guest by vsock; `PATH_PORT` is where it reaches them.
    pub(crate) fn vsock_socket(&self) -> &Path {
        &self.vsock
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The guest process's API socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// The guest process's API socket for all users.
    pub(crate) fn readonly_socket(&self) -> PathBuf {
        self.path.join("api-ro.sock")
    }

    /// The socket that is asked.
    pub(crate) fn client_socket(&self) -> PathBuf {
        match self.access {
            Access::Full => self.socket(),
            Access::ReadOnly => self.readonly_socket(),
        }
    }

    /// What the guest wrote on its serial console, when that is not a terminal.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What a detached guest process logs.
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

    fn is_live_or_clean(&self) -> bool {
        if self.is_live() {
            return true;
        }
        // A folder without a lock, or one elsewhere, is none that a guest's process has made.
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|it| it.is_symlink());
        if is_link || !self.lock_file().exists() {
            return false;
        }
        if let Ok(Some(lock)) = FileLock::try_acquire_to_remove(&self.lock_file())
            && lock.is_at(&self.lock_file())
        {
            drop(GuestClaim { dir: self.clone(), _lock: lock });
            tracing::info!(guest = %self.name, "removed the folder of a guest whose process is gone");
        }
        false
    }

    /// What the live process wrote about itself.
    ///
    /// # Errors
    /// It has not done so yet, or the file is damaged.
    pub(crate) fn read_identity(&self) -> Result<GuestIdentity> {
        let path = self.guest_file();
        let text = regular_file::read(&path, GUEST_FILE_BYTES_MAX)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Tells others who holds the name; for the process that does.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn write_identity(&self, identity: &GuestIdentity) -> Result<()> {
        durable::write_json_unflushed(&self.guest_file(), identity)
    }

    /// Takes the name for this process, and removes what a dead one left in the folder.
    ///
    /// # Errors
    /// A live process has the name, the path is too long for a socket, or the file system refuses.
    pub(crate) fn claim(&self) -> Result<GuestClaim> {
        // The longer one.
        let socket = self.readonly_socket();
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            bail!(
                "{} is too long for a Unix socket: choose a shorter --state-dir",
                socket.display()
            );
        }
        // Another process may be removing the folder of a dead one just now, or this one, whose
        // lock it has seen before it was locked: begin again then, for a while.
        let begun = Instant::now();
        while begun.elapsed() < REMOVAL_PATIENCE {
            create(&self.path, PASSAGE)?;
            let lock = match FileLock::try_acquire(&self.lock_file()) {
                Ok(Some(lock)) => lock,
                Ok(None) if self.is_live() => {
                    bail!("{} is already running on this host", self.name)
                }
                Ok(None) => {
                    thread::sleep(REMOVAL_PAUSE);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot lock {}", self.lock_file().display()));
                }
            };
            if lock.is_at(&self.lock_file()) {
                self.remove_own_files();
                return Ok(GuestClaim { dir: self.clone(), _lock: lock });
            }
        }
        bail!("{} is being removed by another process again and again", self.path.display())
    }

    /// Removes what a guest's process makes, but the lock. Whatever else is there is somebody's and
    /// stays.
    fn remove_own_files(&self) {
        let inside = OWN_FILES.map(|name| self.path.join(name));
        for file in inside.iter().chain([&self.vsock]) {
            if let Err(error) = durable::remove_if_there(file) {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a file of a guest that is gone is left"
                );
            }
        }
    }
}

/// A name that this process holds; gives it back, with the folder, when dropped.
#[derive(Debug)]
pub(crate) struct GuestClaim {
    dir: GuestDir,
    _lock: FileLock,
}

impl GuestClaim {
    /// The folder that came with the name.
    pub(crate) fn dir(&self) -> &GuestDir {
        &self.dir
    }
}

impl Drop for GuestClaim {
    fn drop(&mut self) {
        self.dir.remove_own_files();
        // The lock goes last, while it is still held: whoever opened it before sees that it is gone
        // and begins again.
        let removed =
            fs::remove_file(self.dir.lock_file()).and_then(|()| fs::remove_dir(&self.dir.path));
        if let Err(error) = removed {
            tracing::warn!(folder = %self.dir.path.display(), %error, "cannot remove the guest's folder");
        }
    }
}

/// Who holds a name: `guest.json`, for people and for those who find the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestIdentity {
    /// The guest's name on this host.
    pub(crate) name: GuestName,
    /// The guest's own identity, the same on every host.
    pub(crate) uuid: uuid::Uuid,
    /// The process that holds it.
    pub(crate) pid: u32,
    /// When that process started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
}

/// Mode of a folder that others cannot look into, but go through when they know what is there.
const PASSAGE: u32 = 0o711;
/// Mode of a folder that all may list.
const LISTED: u32 = 0o755;

fn create_private(folder: &Path) -> Result<()> {
    create(folder, 0o700)
}

/// Creates a folder with this mode, or one that the user's umask makes stricter. One that is there
/// keeps its own.
fn create(folder: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.with_context(|| format!("cannot create the folder {}", folder.display()))
}

#[cfg(test)]
mod tests;
